"""One batch: both models read it, the student's losses and gradients, and what they say of its units."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from homodistil.compress import importance
from homodistil.compress.basis import HeadMoments, turn, turnable
from homodistil.data.collate import Draw, draws, seen_after
from homodistil.distill.checkpoint import other_data
from homodistil.distill.ending import refuse_nonfinite
from homodistil.distill.prepare import Run
from homodistil.distill.state import State
from homodistil.losses.descent import Descent
from homodistil.losses.outputs import Batch, Outputs

Values = dict[str, float]


class Terms(NamedTuple):
    """The loss terms of a batch, unweighted: their names, and their values (terms,) on the device."""

    names: tuple[str, ...]
    values: Tensor


_FROM_GRADIENTS = {"sensitivity": importance.sensitivity, "platon": importance.sensitivity}
_FROM_MODEL = {**_FROM_GRADIENTS, "magnitude": importance.magnitude}


def calibrate(run: Run, feed: Iterator[Draw]) -> Iterator[Draw]:
    """Turn the heads of the uncut student, and measure importance and moments on it; it learns nothing from it.

    Every process does all of it: it is a small part of a run, and what the main one finds counts.

    Returns:
        The feed with what was measured on put back: a stream may not be readable twice.

    Raises:
        UserError: in all processes, if what it reads fails in one of them.
    """
    state = run.state
    count = run.recipe.cutting.calibration if run.schedule.cuts_units else 0
    if run.schedule.cuts_units and run.schedule.widths(0) != run.start:
        # what is cut before the first step must have been measured
        count = max(1, count)
    if run.corpus.once:
        # no more than is learnt from on the way to the first target: it may end with that
        count = min(count, run.schedule.stages[0].end * run.recipe.accumulate)
    measured = run.processes.agreed(lambda: list(itertools.islice(feed, count)))
    if run.recipe.cutting.basis == "principal":
        # before anything is measured of the dimensions that are turned
        _turn_heads(run, measured)
        run.processes.copy_main(state.student)
    for index, batch in enumerate(map(run.batch, measured)):
        state.moments.fade()
        if state.importance.method in _FROM_GRADIENTS:
            # each is measured like a whole step, of however many batches steps are made
            read_off(run, [learn(run, batch, -index, scored=True, batches=1)], 0, {})
        else:
            # no losses: nothing is learnt, and these methods do not ask for them
            asked = state.importance.method == "output"
            with torch.set_grad_enabled(asked), run.precision, _listening(state, batch):
                mine = run.runner(state.student, batch)
                if mine.tokens is not None:
                    with torch.no_grad():
                        for part in mine.tokens.chunks():
                            mine.tokens.head(mine.tokens.states[part])
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


def feed_of(run: Run) -> Iterator[Draw]:
    """What batches are made of, from the next step on.

    A stream is read anew up to there, and must be the one that was learnt from; all else was compared as a whole.

    Raises:
        UserError: it is another one.
    """
    done = run.state.step * run.recipe.accumulate
    if run.corpus.digest:
        return draws(run.corpus.train, run.recipe.batch, start=done)
    feed = draws(run.corpus.train, run.recipe.batch, start=0)
    if seen_after("", itertools.islice(feed, done)) != run.state.seen:
        raise other_data(run.dir.checkpoints)
    return feed


def drawn(run: Run, feed: Iterator[Draw]) -> tuple[list[Draw], list[dict[str, Tensor]]]:
    """What the batches of a step are made of, and this process's share of them."""
    draws = list(itertools.islice(feed, run.recipe.accumulate))
    return draws, [run.batch(draw) for draw in run.processes.share(draws)]


def learn(run: Run, batch: dict[str, Tensor], step: int, *, scored: bool, batches: int | None = None) -> Terms:
    """Both models on one batch, and the gradients of the student.

    A GPU is not waited for; on one, what steps between two cuts do is played back (see `recorder`).

    Args:
        run: the run.
        batch: what both read, on the device.
        step: the number of the step that it belongs to; what is drawn depends on it.
        scored: whether the student is listened to, and units are scored where that takes the graph.
        batches: of how many the step is made; those of the recipe by default.

    Returns:
        The loss terms, unweighted.
    """
    state, share = run.state, 1 / (batches or run.recipe.accumulate)
    if not scored:
        nobody, whence = contextlib.nullcontext(), run.descent
        made = run.recorder(lambda b: _backward(run, _forward(run, b, whence, nobody)[0], share), batch, state.learnt)
        return Terms(made.names, made.values.clone())
    terms, mine = _forward(run, batch, run.descent, _listening(state, batch))
    if state.importance.method == "output" and not run.recipe.cutting.calibration:
        # what must be kept are the teacher's outputs, so that only the uncut student is asked, where there is a
        # calibration; before the backward pass, which frees the graph
        for scores in run.processes.each(_output(run, mine, step)):
            state.importance.update(scores)
    return _backward(run, terms, share)


def read_off(
    run: Run, made: Sequence[Terms], step: int, counts: Mapping[str, int], norm: Tensor | None = None
) -> tuple[Values, Values]:
    """The terms of a step, summed over its batches and in the mean over processes, and the sums of counts over them.

    A GPU is waited for here, so that everything else must have been asked for.

    Raises:
        UserError: in all processes, if a term is no finite number in one of them, or the norm of the gradients is
            none, if they moved anything: an infinite one would shorten all of them to nothing.
    """
    summed = torch.stack([terms.values for terms in made]).sum(0)
    norm = torch.zeros_like(summed[0]) if norm is None else norm
    *values, gradient = torch.cat((summed, norm.to(summed).view(1))).cpu().tolist()
    here = dict(zip(made[0].names, values, strict=True))
    everywhere = run.processes.total({**here, **counts})
    terms = {name: everywhere[name] / run.processes.count for name in here}
    refuse_nonfinite(terms, gradient, step, run.dir)
    return terms, {name: everywhere[name] for name in counts}


def _forward(
    run: Run, batch: Batch, whence: Descent, listening: AbstractContextManager[None]
) -> tuple[dict[str, Tensor], Outputs]:
    """The loss terms of both models on a batch, and what the student has made, who is listened to."""
    with run.precision:
        with torch.no_grad():
            theirs = run.runner(run.teacher.model, batch)
        with listening:
            mine = run.runner(run.state.student, batch)
            # the head of a language model reads, too, and it is the losses that ask it
            return run.objective.terms(mine, theirs, batch, whence), mine


def _backward(run: Run, terms: Mapping[str, Tensor], share: float) -> Terms:
    """The values of the terms, after this share of their gradients has been added to what each parameter has."""
    torch.autograd.backward(run.objective.total(terms) * share)
    return Terms(tuple(terms), torch.stack([term.detach() for term in terms.values()]))
