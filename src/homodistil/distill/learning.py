"""One batch: both models read it, the student's losses and gradients, and what they say of its units."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from homodistil.compress import importance
from homodistil.compress.basis import HeadMoments, turn, turnable
from homodistil.distill.checkpoint import State
from homodistil.distill.collate import Draw
from homodistil.distill.ending import refuse_nonfinite
from homodistil.distill.leaving import descent
from homodistil.distill.outputs import Outputs
from homodistil.distill.prepare import Run
from homodistil.settings import Optim

_FROM_GRADIENTS = {"sensitivity": importance.sensitivity, "platon": importance.sensitivity}
_FROM_MODEL = {**_FROM_GRADIENTS, "magnitude": importance.magnitude}


def calibrate(run: Run, feed: Iterator[Draw]) -> Iterator[Draw]:
    """Turn the heads of the uncut student, and measure importance and moments on it; it learns nothing from it.

    Every process does all of it: it is a small part of a run, and what the main one finds counts.

    Returns:
        The feed with what was measured on put back: a stream may not be readable twice.
    """
    state = run.state
    count = run.recipe.cutting.calibration if run.schedule.cuts_units() else 0
    if run.schedule.cuts_units() and run.schedule.widths(0) != run.start:
        # what is cut before the first step must have been measured
        count = max(1, count)
    measured = list(itertools.islice(feed, count))
    if run.recipe.cutting.basis == "principal":
        # before anything is measured of the dimensions that are turned
        _turn_heads(run, measured)
        run.processes.copy_main(state.student)
    for index, batch in enumerate(map(run.batch, measured)):
        state.moments.fade()
        if state.importance.method in _FROM_GRADIENTS:
            learn(run, batch, -index, scored=True)
        else:
            # no losses: nothing is learnt, and these methods do not ask for them
            asked = state.importance.method == "output"
            with torch.set_grad_enabled(asked), run.precision, _listening(state, batch):
                mine = run.runner(state.student, batch)
            if asked:
                state.importance.update(_output(run, mine, -index))
        score(state)
        state.optimizer.zero_grad(set_to_none=True)
    return itertools.chain(measured, feed)


def _turn_heads(run: Run, draws: list[Draw]) -> None:
    """Turn those heads whose dimensions will be cut into the basis that is principal on these batches."""
    state, layout = run.state, run.state.layout
    lost = {w for p in run.planned for w, units in p.shape.items() if units < run.start[w]}
    heads = [h for h in turnable(state.student, layout) if layout.width_of(h.axis) in lost]
    if not heads:
        return
    moments = HeadMoments(state.student, layout, heads)
    for batch in map(run.batch, draws):
        with torch.no_grad(), run.precision, moments.listening(batch["ordinary"], batch.get("decoder_ordinary")):
            run.runner(state.student, batch)
    turn(state.student, layout, moments)


def _listening(state: State, batch: dict[str, Tensor]) -> AbstractContextManager[None]:
    return state.moments.listening(batch["ordinary"], batch.get("decoder_ordinary"))


def _output(run: Run, made: Outputs, number: int) -> importance.Scores:
    """What moves the last states that the student has just made, of the batch of this number."""
    state, seed = run.state, run.recipe.seed + number
    return importance.output(state.layout, state.student, made.hidden[-1], made.masks[-1], seed)


def score(state: State) -> None:
    """Take in what gradients or weights say of units, for the methods that read it off the student alone."""
    if state.importance.method in _FROM_MODEL:
        state.importance.update(_FROM_MODEL[state.importance.method](state.layout, state.student))


def learn(run: Run, batch: dict[str, Tensor], step: int, *, scored: bool) -> dict[str, float]:
    """Both models on one batch, and the gradients of the student.

    Args:
        run: the run.
        batch: what both read, on the device.
        step: the number of the step that it belongs to; what is drawn depends on it.
        scored: whether the student is listened to, and units are scored where that takes the graph.

    Returns:
        The loss terms, unweighted, in the mean over all processes.

    Raises:
        UserError: one of them is no number.
    """
    state = run.state
    with run.precision:
        with torch.no_grad():
            theirs = run.runner(run.teacher.model, batch)
        with _listening(state, batch) if scored else contextlib.nullcontext():
            mine = run.runner(state.student, batch)
        terms = run.objective.terms(mine, theirs, batch, descent(run))
    if scored and state.importance.method == "output" and not run.recipe.cutting.calibration:
        # what must be kept are the teacher's outputs, so that only the uncut student is asked, where there is a
        # calibration; before the backward pass, which frees the graph
        for scores in run.processes.each(_output(run, mine, step)):
            state.importance.update(scores)
    torch.autograd.backward(run.objective.total(terms) / run.recipe.accumulate)
    # once, and after all of it has been asked for: a GPU would stand still while its numbers are waited for
    here = dict(zip(terms, torch.stack([*terms.values()]).cpu().tolist(), strict=True))
    # all processes, so that none goes on where another refuses
    values = {name: total / run.processes.count for name, total in run.processes.total(here).items()}
    refuse_nonfinite(values, max(step, 0), run.dir)
    return values


def rate(optim: Optim, step: int, steps: int, *, narrower: float = 1.0) -> float:
    """The learning rate at the `step`-th of `steps` steps: linear up, then linear down.

    Args:
        optim: how the student learns; its learning rate is known.
        step: from 1.
        steps: of the run.
        narrower: the teacher's hidden width over the student's.
    """
    assert optim.learning_rate is not None
    rise = math.ceil(optim.warmup * steps)
    share = step / rise if step <= rise else optim.floor + (1 - optim.floor) * (steps - step + 1) / (steps - rise + 1)
    return float(optim.learning_rate * share * narrower**optim.width_power)
