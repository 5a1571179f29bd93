"""The layer that leaves next: the one without which the student stays nearest to its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from homodistil.axes.stack import LAYERS
from homodistil.compress.depth import stay, weigh
from homodistil.compress.shrink import Keep
from homodistil.distill.descent import Descent
from homodistil.distill.outputs import Batch
from homodistil.distill.prepare import Run

PROBES = 2
"""Batches, at most, on which the student is tried without each of its layers."""


def descent(run: Run) -> Descent:
    """Which of the layers and heads that the student started with it still has."""
    state, whole = run.state, run.start
    heads = {
        int(axis.partition(".")[2]): ids
        for axis, ids in state.origin.items()
        if state.layout.width_of(axis) == "heads" and len(ids) < whole["heads"]
    }
    layers = state.origin[LAYERS].tolist() if LAYERS in state.origin else ()
    return Descent(run.layers, layers, heads)


@torch.no_grad()
def all_but_one(run: Run, batches: Sequence[Batch]) -> tuple[Keep, Tensor]:
    """The layers that stay when one leaves, and the discrepancy without each layer, (layers,).

    The student is run without one layer after the other, and compared with its teacher as it would be if the layer
    were gone. A function of the student and of the batches alone.
    """
    state, now = run.state, descent(run)
    probes = [{k: v.to(run.accelerator.device) for k, v in batch.items()} for batch in batches[:PROBES]]
    with run.precision:
        taught = [run.runner(run.teacher.model, batch) for batch in probes]
        # once whole: transformers lets those layers record their states that are there at the first run
        run.runner(state.student, probes[0])

    def measure(layer: int) -> float:
        others = [k for k in range(state.layout.depth) if k != layer]
        objective = replace(run.objective, projections=state.projections.compared(others))
        sums = 0.0
        for batch, theirs in zip(probes, taught, strict=True):
            with run.precision:
                mine = run.runner(state.student, batch)
                terms = objective.terms(mine, theirs, batch, now.without(layer))
            sums += objective.discrepancy({name: term.item() for name, term in terms.items()})
        return sums / len(probes)

    caused = weigh(state.student, state.layout, measure)
    return {LAYERS: stay(state.layout, state.layout.depth - 1, caused)}, caused
