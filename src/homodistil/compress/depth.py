"""Whole layers: which of them stay, and how a model, and all that is named after layers, goes on without the others.

A layer that leaves is a list entry less. The layers after it move up: names of parameters, axes and modules, the
numbers under which attention finds its cache, and lists of the configuration with an entry a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from homodistil.axes.layout import Layout

T = TypeVar("T")


def stay(layout: Layout, count: int, scores: Tensor | None = None) -> Tensor:
    """The layers that stay, ascending, (count,): those with the highest scores, or evenly spaced ones without scores.

    Evenly spaced ones end with the last, as is usual (DistilBERT, Sanh et al. 2019); a first layer that cannot be
    replaced stays in any case.
    """
    assert layout.stack is not None
    depth, first = layout.depth, layout.stack.first_stays
    if scores is None and first:
        return torch.linspace(0, depth - 1, count).round().long()
    if scores is None:
        return torch.tensor([round((k + 1) * depth / count) - 1 for k in range(count)])
    if first:
        scores = scores.index_fill(0, torch.tensor([0], device=scores.device), torch.inf)
    return scores.cpu().sort(descending=True, stable=True).indices[:count].sort().values


def ends(kept: Sequence[int], depth: int) -> list[int]:
    """For each layer that stays, the last one whose work it takes over: the one before the next that stays.

    Where 0, 1 and 4 are left of 6, the student's first layer ends where layer 0 did, its second where layer 3 did,
    and its last where layer 5 did.
    """
    return [*(layer - 1 for layer in kept[1:]), depth - 1]


def weigh(model: PreTrainedModel, layout: Layout, measure: Callable[[], float]) -> Tensor:
    """What leaving out each layer alone causes, (layers,): scores to choose by. The model is as before afterwards.

    Args:
        model: it is run without one layer after the other.
        layout: its axes.
        measure: how far the model, as it is then, is from where it should be.
    """
    caused = []
    for layer in range(layout.depth):
        with left_out(model, layout, layer):
            caused.append(measure())
    return torch.tensor(caused)


@contextlib.contextmanager
def left_out(model: PreTrainedModel, layout: Layout, layer: int) -> Iterator[None]:
    """The model without one layer, inside the block."""
    layers, lists = _layers(model, layout), _lists(model, layout)
    kept = [k for k in range(len(layers)) if k != layer]
    whole = list(layers)
    _restack(model, layout, [whole[k] for k in kept], {key: [v[k] for k in kept] for key, v in lists.items()})
    try:
        yield
    finally:
        _restack(model, layout, whole, lists)


def drop(model: PreTrainedModel, layout: Layout, kept: Tensor, optimizer: Optimizer | None = None) -> None:
    """Take every layer but those of `kept` out of a model, in place; an optimizer forgets their parameters.

    Args:
        model: as deep as `layout` says; afterwards as deep as `layout.shallower(len(kept))`.
        layout: its axes.
        kept: the layers that stay, ascending.
        optimizer: of its parameters.
    """
    layers, lists, numbers = list(_layers(model, layout)), _lists(model, layout), kept.tolist()
    _restack(model, layout, [layers[k] for k in numbers], {key: [v[k] for k in numbers] for key, v in lists.items()})
    if optimizer is not None:
        forget(optimizer, [p for k, layer in enumerate(layers) if k not in numbers for p in layer.parameters()])


def forget(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Take parameters that are gone out of an optimizer, with their moments."""
    gone = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def moved_up(layout: Layout, store: Mapping[str, T], kept: Tensor) -> dict[str, T]:
    """A mapping by names of parameters, modules or axes, without the layers that leave and with the new numbers.

    Args:
        layout: of the model before the layers leave.
        store: anything by such names; those that are in no layer stay as they are.
        kept: the layers that stay, ascending.
    """
    number = {old: new for new, old in enumerate(kept.tolist())}
    named: dict[str, T] = {}
    for key, value in store.items():
        place = layout.layer_of(key)
        if place is None:
            named[key] = value
        elif place[1] in number:
            named[f"{place[0]}{number[place[1]]}{place[2]}"] = value
    return named


def _layers(model: PreTrainedModel, layout: Layout) -> nn.ModuleList:
    assert layout.stack is not None
    layers = model.get_submodule(layout.stack.path)
    assert isinstance(layers, nn.ModuleList)
    return layers


def _lists(model: PreTrainedModel, layout: Layout) -> dict[str, list[object]]:
    """What the configuration says of each layer."""
    found = {key: getattr(model.config, key, None) for key in layout.family.each_layer}
    return {key: list(value) for key, value in found.items() if value is not None}


def _restack(
    model: PreTrainedModel, layout: Layout, layers: Sequence[nn.Module], lists: Mapping[str, list[object]]
) -> None:
    """Let a model consist of these layers, in the same list object, and its configuration say so."""
    stack = _layers(model, layout)
    del stack[:]
    stack.extend(layers)
    model.config.num_hidden_layers = len(layers)
    for key, value in lists.items():
        setattr(model.config, key, value)
    for number, layer in enumerate(layers):
        for module in layer.modules():
            # transformers' name for the place at which attention keeps its keys and values
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # type: ignore[assignment]
