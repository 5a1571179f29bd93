"""The layer that leaves next: the one without which what comes out of the student stays nearest to its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from homodistil.axes.shape import LAYERS
from homodistil.compress.cut import Keep
from homodistil.compress.depth import stay, weigh
from homodistil.distill.prepare import Run
from homodistil.losses import losses
from homodistil.losses.descent import Descent
from homodistil.losses.objective import Objective
from homodistil.losses.outputs import Batch, Outputs

PROBES = 2
"""Batches, at most, on which the student is tried without each of its layers."""


def apart(objective: Objective, student: Outputs, teacher: Outputs, batch: Batch, last: Tensor) -> float:
    """How far what comes out is from the teacher's: relative distance of the last states, and the weighted
    L_pred and L_cos.

    States between are left out: without an early layer more of them differ than without a late one, and they are
    learnt again.

    Args:
        objective: the run's.
        student: its outputs.
        teacher: its outputs on the same batch.
        batch: what both have read.
        last: W of the last states.
    """
    weights = replace(objective.weights, lm=0.0, hidden=0.0, attention=0.0, embedding=0.0)
    terms = replace(objective, weights=weights).terms(student, teacher, batch, Descent(len(student.hidden) - 1))
    states = losses.hidden(student.hidden[-1], teacher.hidden[-1], last, student.masks[-1], relative=True)
    return states.item() + objective.discrepancy({name: term.item() for name, term in terms.items()})


@torch.no_grad()
def all_but_one(run: Run, batches: Sequence[Batch]) -> tuple[Keep, Tensor]:
    """The layers that stay when one leaves, and how far the student is from its teacher without each, (layers,).

    The student is run without one layer after the other. A function of the student and of the batches alone.
    """
    state, probes = run.state, batches[:PROBES]
    with run.precision:
        taught = [run.runner(run.teacher.model, batch) for batch in probes]
        # once whole: transformers lets those layers record their states that are there at the first run
        run.runner(state.student, probes[0])

    # the last states end in the same place, whichever layer leaves
    last = state.projections[state.layout.depth]

    def measure() -> float:
        with run.precision:
            distances = [
                apart(run.objective, run.runner(state.student, batch), theirs, batch, last)
                for batch, theirs in zip(probes, taught, strict=True)
            ]
        return sum(distances) / len(distances)

    caused = weigh(state.student, state.layout, measure)
    return {LAYERS: stay(state.layout, state.layout.depth - 1, caused)}, caused
