"""Positions, distances and types of text that a run never reaches: their rows move as those that it does.

A student that learns from sequences of 128 tokens learns the first 128 rows of its table of positions, and all layers
with them. The rows after that would stay what was cut out of the teacher's, and say nothing to these layers any more.
But what a row has learnt is nearly a linear function of what it was, the same for all of them: it is fitted to the rows
that were reached, and moves the others. Of types of text one is reached, that of a single text: its change is what
layers expect of the others, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor
from transformers import PreTrainedModel

from homodistil.axes.layout import Layout

COUNTED = ("position", "distance", "type")
"""The axes of tables of which a text reaches some rows, in all families that have them."""
STRENGTHS = 10.0 ** np.arange(-3, 3.5, 0.5)
"""Of the ridge, in mean variances of what the rows were; each unit has the one that tells rows left out best."""
FEWEST = 16
"""Rows that must be reached; of fewer the mean change is all that is told of the others."""


def tables(model: PreTrainedModel, layout: Layout) -> dict[str, Tensor]:
    """The tables that a model learns of positions, distances and types, (rows, units), by their names."""
    named = dict(model.named_parameters())
    known = [(axis,) for axis in COUNTED]
    return {name: named[name] for name, dims in layout.dims.items() if len(dims) == 2 and dims[0] in known}


def unit_of(layout: Layout, table: str) -> str:
    """The axis of a table's units: the hidden units, or those of narrower embeddings, which are never cut."""
    (axis,) = layout.dims[table][1]
    assert isinstance(axis, str)
    return axis


@contextlib.contextmanager
@torch.no_grad()
def all_moved(
    model: PreTrainedModel, layout: Layout, start: Mapping[str, Tensor], reached: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within it, rows that were not reached are moved as the others were.

    Args:
        model: what has learnt.
        layout: its axes.
        start: what each table was at first, of the units that are left, (rows, units).
        reached: which rows have learnt, (rows,); a table that is not named has no such row.
    """
    moved = {name: table for name, table in tables(model, layout).items() if name in reached}
    before = {name: table.clone() for name, table in moved.items()}
    for name, table in moved.items():
        table.copy_(moved_along(table, start[name], reached[name]))
    try:
        yield
    finally:
        for name, table in moved.items():
            table.copy_(before[name])


def moved_along(table: Tensor, start: Tensor, reached: Tensor) -> Tensor:
    """A table of which some rows have learnt, with the others moved as those were.

    Args:
        table: as it is, (rows, units).
        start: as it was, (rows, units).
        reached: which rows have learnt, (rows,).
    """
    made = table.clone()
    if reached.all() or not reached.any():
        return made
    was, now = (t.double().cpu().numpy() for t in (start, table))
    known = reached.cpu().numpy()
    # some tables have a row of zeros for padding, which is nobody's position
    others = ~known & was.any(axis=1)
    spread = float(was[known].var(axis=0).sum() * known.sum() / was.shape[1])
    if not others.any():
        return made
    change = (now - was)[known]
    if known.sum() < FEWEST or not spread:
        moves = change.mean(axis=0, keepdims=True)
    else:
        moves = RidgeCV(alphas=spread * STRENGTHS, alpha_per_target=True).fit(was[known], change).predict(was[others])
    made[torch.from_numpy(others).to(made.device)] = torch.from_numpy(was[others] + moves).to(made)
    return made
