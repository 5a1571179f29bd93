"""Closed forms: how many parameters and operations a model has at any shape, as polynomials in the widths."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from homodistil.axes.shape import LAYERS, Polynomial

if TYPE_CHECKING:
    from homodistil.axes.layout import Layout

Product = tuple[int, tuple[str, ...]]
"""A fixed factor and the widths that it is multiplied with."""
_OF_SEQUENCES = ("ForSequenceClassification", "ForMultipleChoice")
"""How classes are called whose head reads a sequence once, where one of the same names reads every token elsewhere."""


@dataclass(frozen=True)
class Counts:
    """What is counted of one model.

    Attributes:
        parameters: their number, tied ones once.
        token_flops: a forward pass's floating point operations a token, without attention.
        sequence_flops: the same, what is spent once a sequence.
        attention_flops: the same, what is spent a token and for each token attended to.
    """

    parameters: Polynomial = field(default_factory=Counter)
    token_flops: Polynomial = field(default_factory=Counter)
    sequence_flops: Polynomial = field(default_factory=Counter)
    attention_flops: Polynomial = field(default_factory=Counter)


def count(layout: Layout, model: PreTrainedModel) -> Counts:
    """The counts of a model, which may be on the meta device; operations are those of matrix products."""
    family = layout.family
    made = Counts()
    has_pooler = family.pooler is not None and any(layout.matches(family.pooler))
    of_sequences = type(model).__name__.endswith(_OF_SEQUENCES)
    rows = (
        *family.once,
        *(family.once_with_pooler if has_pooler else ()),
        *(family.once_for_sequences if of_sequences else ()),
    )
    pooled = {n for row in rows for n in layout.matches(row)}
    projected = {n for row in family.distances for n in layout.matches(row)}
    distances = layout.fixed.get("distance", 0)
    for name, dims in layout.dims.items():
        parts = [p for dim in dims for p in dim]
        module = model.get_submodule(name.rpartition(".")[0])
        for factor, term in _repeated(layout, name, parts):
            if name not in layout.tied:
                made.parameters[term] += factor
            if len(dims) == 2 and not isinstance(module, nn.Embedding):
                each = 2 * factor * _times(layout, name, model)
                if name not in pooled:
                    made.token_flops[term] += each
                if name in pooled or name in projected:
                    made.sequence_flops[term] += each * (distances if name in projected else 1)
            elif isinstance(module, nn.Conv1d | nn.Conv2d) and len(dims) > 1:
                # once a patch: at every token but the class tokens
                made.token_flops[term] += 2 * factor
                made.sequence_flops[term] -= 2 * factor * family.class_tokens
    for name in projected:
        for factor, term in _repeated(layout, name, _over_heads(layout, name)):
            made.token_flops[term] += 2 * factor * distances
    for query in {n for row in family.queries for n in layout.matches(row)} - pooled:
        if len(layout.dims[query]) == 2:
            # scores and their product with the values: a multiply-add a head dimension each
            for factor, term in _repeated(layout, query, _over_heads(layout, query)):
                made.attention_flops[term] += 4 * factor * _times(layout, query, model)
    return made


def _over_heads(layout: Layout, name: str) -> list[str | int]:
    return [p for p in layout.head_dims(name) if isinstance(p, str)]


def _times(layout: Layout, name: str, model: PreTrainedModel) -> int:
    """How often a forward pass computes with a parameter."""
    shared = layout.family.shared and layout.family.shared in name
    return int(model.config.num_hidden_layers) if shared else 1


def _repeated(layout: Layout, name: str, parts: Iterable[str | int]) -> Iterator[Product]:
    """What a parameter adds to a count, as products; the last layer's stand for those of every layer."""
    factor, term = _product(layout, parts)
    place = layout.stack.split(name) if layout.stack is not None and layout.depth else None
    if layout.stack is None or place is None:
        yield factor, term
        return
    layer, rest = place
    first, last = (f"{layout.stack.path}.{k}.{rest}" in layout.dims for k in (0, layout.depth - 1))
    if layer == layout.depth - 1:
        yield factor, (*term, LAYERS)
        if not first:
            # every layer but the first has it
            yield -factor, term
    elif layer == 0 and not last:
        yield factor, term


def _product(layout: Layout, parts: Iterable[str | int]) -> Product:
    """A product of axes as a fixed factor and the widths that vary."""
    parts = list(parts)
    factor = math.prod(p if isinstance(p, int) else layout.fixed.get(p, 1) for p in parts)
    return factor, tuple(sorted(layout.width_of(p) for p in parts if isinstance(p, str) and p not in layout.fixed))
