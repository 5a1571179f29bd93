"""The cut: units leave every tensor that has them, and the model stays an ordinary, trainable model.

What a cut keeps: the attention's temperature (queries are scaled by what the library's own scaling changes), the
loudness of embeddings that the library multiplies by a power of a width, what the other units tell of the cut ones
(folded into the layers that read them), ties, optimizer moments, and gradients to every parameter. What it changes:
widths and depth, in tensors, modules and configuration alike.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from homodistil.axes.layout import Layout
from homodistil.axes.notation import Dim
from homodistil.axes.shape import LAYERS, Shape
from homodistil.compress import depth
from homodistil.compress.compensate import Inputs, compensate, read_dim
from homodistil.compress.importance import Scores
from homodistil.compress.widths import follow, scales_of, write_widths

Keep = dict[str, Tensor]
"""For each axis that loses units, the indices of those that stay, ascending: (kept,), or for a nested axis
(parent units before the cut, kept). Axes that keep all are left out. Under `layers` the layers that stay, (kept,);
axes of layers that leave may be named as well."""


def select(layout: Layout, sizes: Mapping[str, int], scores: Scores, shape: Shape) -> Keep:
    """The units that stay: on each axis, and within each parent unit, those with the highest scores.

    Ranking is local (HomoDistil, section 3): every layer gives up the same number. Of equal scores the first stay.
    Layers without scores stay evenly spaced.
    """
    keep: Keep = {}
    if LAYERS in sizes and shape.get(LAYERS, layout.depth) < layout.depth:
        keep[LAYERS] = depth.stay(layout, shape[LAYERS], scores.get(LAYERS))
    for axis in layout.axes:
        width = shape[layout.width_of(axis)]
        if width < sizes[axis]:
            best = scores[axis].sort(dim=-1, descending=True, stable=True).indices[..., :width]
            keep[axis] = best.sort(dim=-1).values
    return keep


def narrowed(layout: Layout, axis: str, vector: Tensor, keep: Keep) -> Tensor:
    """A vector of one value a unit, (units,) or (parent units, units), without the units that leave."""
    if axis in keep:
        vector = vector.gather(-1, keep[axis].to(vector.device))
    parent = layout.parent.get(axis)
    return vector[keep[parent].to(vector.device)] if parent in keep else vector


@torch.no_grad()
def cut(
    model: PreTrainedModel,
    layout: Layout,
    keep: Keep,
    *,
    optimizer: Optimizer | None = None,
    inputs: Mapping[str, Inputs] | None = None,
) -> None:
    """Take every unit that `keep` does not name out of a model, in place; then the layers.

    Without layers, the model goes on with `layout.shallower(len(keep["layers"]))`.

    Args:
        model: a transformer of the layout's family.
        layout: the axes of its parameters.
        keep: the units that stay; with none named, nothing happens.
        optimizer: its parameters are replaced and its moments sliced alike.
        inputs: for linear layers, by module name, what they read; they take over what the cut units said as far as
            the others tell it (see `compensate`). Layers that are not named are not compensated.
    """
    if not keep:
        return
    inputs, sizes = inputs or {}, layout.sizes(model)
    for name, index in kept_inputs(layout, keep, sizes, inputs).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | Conv1D)
        compensate(layer, inputs[name], index)
    left = {axis: keep[axis].shape[-1] if axis in keep else size for axis, size in sizes.items()}
    scales = scales_of(layout, sizes, left)
    modules = dict(model.named_modules(remove_duplicate=False))
    index_of = functools.cache(lambda dim: flat_index(dim, keep, layout.parent, sizes))
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    while places:
        # one at a time, so that what is cut makes room for what is kept of the next
        old, names = places.popitem()
        indices = [index_of(dim) for dim in layout.dims[names[0]]]
        if all(index is None for index in indices):
            continue
        sliced = _sliced(old.detach(), indices)
        factor = None
        if names[0] in scales:
            by, added, along, share = scales[names[0]]
            factor = torch.ones([n if i == along else 1 for i, n in enumerate(sliced.shape)], device=old.device)
            factor.narrow(along, 0, sliced.shape[along] // share).fill_(by)
            sliced.add_(added).mul_(factor).sub_(added)
        # a new Parameter, because autograd's accumulator of the old one remembers the old size
        new = nn.Parameter(sliced, requires_grad=old.requires_grad)
        for name in names:
            place, _, attribute = name.rpartition(".")
            setattr(modules[place], attribute, new)
            follow(modules[place])
        if optimizer is not None:
            migrate(optimizer, old, new, indices, factor)
    write_widths(model, layout, layout.shape_of(left))
    if LAYERS in keep:
        depth.drop(model, layout, keep[LAYERS], optimizer)


def flat_index(dim: Dim, keep: Keep, parent: Mapping[str, str], sizes: Mapping[str, int]) -> Tensor | None:
    """The positions along one, perhaps fused, dimension that stay; None if all do.

    `(heads qk)` with heads 0 and 2 kept of 3, and of 4 dims of each head the pairs (0, 1) and (2, 3):
    [0, 1, 10, 11].
    """
    if not any(p in keep for p in dim if isinstance(p, str)):
        return None
    flat = torch.zeros(1, dtype=torch.long)
    # of each axis before the part, the unit that a position belongs to
    units: dict[str, Tensor] = {}
    for part in dim:
        size = part if isinstance(part, int) else sizes[part]
        kept = keep.get(part, torch.arange(size)).cpu() if isinstance(part, str) else torch.arange(size)
        # a nested axis keeps other units in each unit of its parent
        chosen = kept[units[parent[str(part)]]] if kept.dim() == 2 else kept.expand(len(flat), -1)
        flat = (flat[:, None] * size + chosen).reshape(-1)
        units = {axis: unit.repeat_interleave(chosen.shape[1]) for axis, unit in units.items()}
        units |= {part: chosen.reshape(-1)} if isinstance(part, str) else {}
    return flat


def _sliced(tensor: Tensor, indices: list[Tensor | None]) -> Tensor:
    for i, index in enumerate(indices):
        if index is not None:
            index = index.to(tensor.device)
            # of columns `gather` takes two thirds of the time
            columns = i == 1 and tensor.dim() == 2
            tensor = tensor.gather(1, index.expand(len(tensor), -1)) if columns else tensor.index_select(i, index)
    return tensor


def kept_inputs(layout: Layout, keep: Keep, sizes: Mapping[str, int], layers: Iterable[str]) -> dict[str, Tensor]:
    """For each of these linear layers that loses inputs, by module name, the positions of its input that stay."""
    indices = {name: flat_index(read_dim(layout, name), keep, layout.parent, sizes) for name in layers}
    return {name: index for name, index in indices.items() if index is not None}


def migrate(
    optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, indices: list[Tensor | None], factor: Tensor | None
) -> None:
    """Put the new parameter in the old one's place, with its moments sliced alike.

    A parameter scaled by c has gradients scaled by 1/c, hence first moments by 1/c and second by 1/c².
    """
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    powers = {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2, "momentum_buffer": -1}
    moved = {key: _moved(value, old, indices) for key, value in state.items()}
    if any(value is None for value in moved.values()):
        # what cannot be cut is made anew at the next step
        return
    optimizer.state[new] = moved
    for key, power in powers.items():
        if factor is not None and key in optimizer.state[new]:
            optimizer.state[new][key].mul_(factor**power)


def _moved(value: object, old: Tensor, indices: list[Tensor | None]) -> object:
    """A tensor of an optimizer's state, which may have one row or column for all; None if it has yet other ones."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.dim() != old.dim() or any(n not in (1, size) for n, size in zip(value.shape, old.shape, strict=True)):
        return None
    return _sliced(value, [i if n > 1 else None for i, n in zip(indices, value.shape, strict=True)])
