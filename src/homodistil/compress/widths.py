"""What else a change of widths means: weights that are scaled, and what configuration and modules say of themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from homodistil.axes.layout import Layout
from homodistil.axes.shape import Shape, product


class Scale(NamedTuple):
    """A parameter p becomes (p + added)·by - added, in the first 1/share of its dimension `along`."""

    by: float
    added: float = 0.0
    along: int = 0
    share: int = 1


def scales_of(layout: Layout, before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Scale]:
    """What is scaled when the widths of axes change, by parameter name."""
    family = layout.family
    scales: dict[str, Scale] = {}
    for name in (n for row in family.queries if family.temperature for n in layout.matches(row)):
        dim = layout.head_dims(name)
        for axis in (p for p in dim if isinstance(p, str) and p in layout.parent and after[p] < before[p]):
            # keys and values may follow the queries in one matrix
            share = dim[0] if isinstance(dim[0], int) else 1
            scales[name] = Scale(math.sqrt(after[axis] / before[axis]), 0.0, layout.dims[name].index(dim), share)
    wide, narrow = ({**layout.fixed, **layout.shape_of(sizes)} for sizes in (before, after))
    for row, power in family.scaled.items():
        pattern, _, added = row.partition(" + ")
        by = product(power, narrow) / product(power, wide)
        scales |= {name: Scale(by, float(added or 0)) for name in layout.matches(pattern) if by != 1}
    return scales


def write_widths(model: PreTrainedModel, layout: Layout, shape: Shape) -> None:
    """Write the widths into the configuration and the modules' own attributes."""
    family = layout.family
    known = {**layout.fixed, **shape}
    # the two sides of an encoder-decoder have copies of their own
    configs = {
        id(m.config): m.config for m in model.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)
    }
    for key, text in family.config.items():
        for config in configs.values():
            setattr(config, key, product(text, known))
    for pattern, attributes in family.attributes.items():
        for name in layout.matches(pattern):
            module = model.get_submodule(name)
            for attribute, text in attributes.items():
                value, held = product(text, known), getattr(module, attribute, None)
                if isinstance(held, Tensor):
                    held.fill_(value)
                else:
                    setattr(module, attribute, value)


def follow(module: nn.Module) -> None:
    """Let a module's own attributes say what its tensors are."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D):
        module.nx, module.nf = module.weight.shape
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
