"""What tests do with a run that is ready for its first step."""

from __future__ import annotations

import torch
from torch import Tensor

from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.compress.schedule import Schedule, Stage
from homodistil.data.collate import batches
from homodistil.distill.prepare import Run

NARROW = {"hidden": 24, "heads": 3, "head_dim": 8, "ffn": 40}


def batch_of(run: Run) -> dict[str, Tensor]:
    """The first four sequences of its text."""
    return next(batches(run.corpus.train, run.collate, 4, start=0))


def terms_of(run: Run, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss terms of a batch, through which the student can be asked for gradients."""
    with run.precision:
        with torch.no_grad():
            theirs = run.runner(run.teacher.model, batch)
        mine = run.runner(run.state.student, batch)
        return run.objective.terms(mine, theirs, batch, run.descent)


def cut_narrow(run: Run) -> None:
    """Cut its student to `NARROW`, by magnitude."""
    layout, student = run.state.layout, run.state.student
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), NARROW), compensate=True)


def stages_of(*targets: str, steps: int) -> tuple[Stage, ...]:
    """The stages of a run to these targets, in which nothing is cut."""
    widths = {"hidden": 48}
    return Schedule.over(widths, [(t, widths) for t in targets], steps=steps, ramp=(0.0, 0.1), grain=8).stages
