"""The loop: one run from its next step to its last target, read from top to bottom."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homodistil.axes.shape import LAYERS
from homodistil.compress.compensate import FADING
from homodistil.compress.cut import select
from homodistil.data.collate import Draw, heldout_draws, seen_after
from homodistil.distill.arrival import Result, refuse_missing, result_of, write
from homodistil.distill.ending import disk_explained, stop_requested
from homodistil.distill.heldout import measure
from homodistil.distill.learning import calibrate, drawn, feed_of, learn, read_off, score
from homodistil.distill.leaving import PROBES, all_but_one
from homodistil.distill.notices import notices
from homodistil.distill.optimizer import rate
from homodistil.distill.prepare import Run, prepare
from homodistil.distill.processes import Processes
from homodistil.distill.surroundings import undisturbed
from homodistil.errors import RunStopped, UserError
from homodistil.models.student import rounded
from homodistil.recipe import IN_MEMORY, Recipe
from homodistil.reports.live import Display
from homodistil.rundir import RunDir


@undisturbed()
def distil(
    recipe: Recipe,
    *,
    resume: bool = False,
    texts: Iterable[str] | None = None,
    display: Display | None = None,
) -> Result:
    """Run a recipe: distil while cutting, and save each target when it is reached and settled.

    Args:
        recipe: the run.
        resume: go on from the newest checkpoint in `recipe.out`, or from the start if there is none yet.
        texts: the data itself, where it is no file; `recipe.data` is then only its name.
        display: where progress is shown; nowhere by default.

    Raises:
        UserError: input that the user can correct, a loss that is no number, or a disk that is full.
        RunStopped: SIGTERM or Ctrl-C; the state has been saved.
    """
    run_dir = RunDir(Path(recipe.out))
    if resume and all((run_dir.student(t) / "config.json").exists() for t in recipe.target):
        # a kill may have left them after the last student
        shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
        return result_of(run_dir, recipe)
    if resume:
        refuse_missing(run_dir, recipe)
    if recipe.data == IN_MEMORY and texts is None:
        raise UserError(
            f"Cannot read the data of {run_dir.path}: they were texts in memory, which no run keeps.",
            "Whoever starts or resumes such a run gives its texts, as a list or as an iterator, as at its start.",
            f"Use homodistil.resume({str(run_dir.path)!r}, data=...), or give --data a file or a dataset.",
        )
    display = display or Display.silent()
    processes = Processes.launched()
    with disk_explained(run_dir.path), contextlib.ExitStack() as held:
        if resume:
            processes.agreed(lambda: held.enter_context(run_dir.alone()) if processes.main else None)
        run = prepare(recipe, resume=resume, texts=texts)
        if not resume:
            processes.agreed(lambda: held.enter_context(run_dir.alone()) if processes.main else None)
        alone = run.processes.count == 1
        if not run.processes.main:
            display = Display.silent()
        with stop_requested(insisting=alone) as stop, display.showing(run.state.step, run.schedule.steps):
            for line in notices(run, recipe):
                display.say(line)
            _train(run, display, stop)
        run.processes.wait()
        if run.processes.main:
            shutil.rmtree(run_dir.checkpoints, ignore_errors=True)
    return result_of(run_dir, recipe)


def _train(run: Run, display: Display, stop: list[int]) -> None:
    recipe, state, schedule, processes = run.recipe, run.state, run.schedule, run.processes
    feed = processes.agreed(lambda: feed_of(run))
    evaluations = {round(schedule.steps * (k + 1) / recipe.evaluations) for k in range(recipe.evaluations)}
    saved_at = time.monotonic()
    if state.step == 0:
        feed = calibrate(run, feed)
        probes = processes.agreed(lambda: list(itertools.islice(feed, PROBES)))
        feed = itertools.chain(probes, feed)
        _cut(run, schedule.widths(0), probes, display)

    learnt, batches = processes.agreed(lambda: drawn(run, feed)) if state.step < schedule.steps else ([], [])
    while state.step < schedule.steps:
        started = time.perf_counter()
        step = state.step + 1
        scored = schedule.measured(step)

        # forward, losses, backward
        if scored:
            # what was seen before is in the sum over all processes once
            state.moments.fade(FADING if processes.main else 0.0)
        made = [learn(run, batch, step, scored=scored) for batch in batches]
        tokens_here = sum(int(batch["tokens"]) for batch in batches)
        processes.sum_up(p.grad for p in state.learnt if p.grad is not None)
        if scored:
            processes.sum_up(state.moments.state().values())

        # importance, from the gradients as they are: clipping would weigh a step by its norm
        if scored:
            score(state)

        # step
        stage = schedule.stage(step)
        learning_rate = rate(recipe.optim, stage, step, narrower=state.projections.narrower)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = state.optimizer.step(recipe.optim.clip or math.inf)
        state.optimizer.zero_grad(set_to_none=not run.recorder.keeps_gradients)
        state.step = step

        # what it was, after all has been asked for and the next batches are made: a GPU computes meanwhile
        before, (learnt, batches), ended = learnt, ([], []), None
        if step < schedule.steps:
            try:
                learnt, batches = drawn(run, feed)
            except UserError as error:
                # what has been learnt is saved first
                ended = error
        if not run.corpus.digest:
            state.seen = seen_after(state.seen, before)
        asked = {"tokens": tokens_here, "asked to stop": len(stop), "ended": int(ended is not None)}
        asked["due"] = int(processes.main and time.monotonic() - saved_at >= 60 * recipe.checkpoint_minutes)
        terms, counts = read_off(run, made, step, asked, norm)
        tokens, stopping, torn = int(counts["tokens"]), counts["asked to stop"] > 0, counts["ended"] > 0
        saving = step < schedule.steps and (counts["due"] > 0 or stopping or torn)
        state.tokens += tokens
        state.sums = {name: state.sums.get(name, 0.0) + term for name, term in terms.items()}
        state.batches += len(made)

        # cut
        widths = schedule.widths(step)
        if widths != schedule.widths(step - 1):
            _cut(run, widths, before, display)

        # evaluate
        record: dict[str, Any] = {"step": step, "tokens": state.tokens}
        evaluated = step == stage.end or step in evaluations
        if processes.main and evaluated:
            record["heldout"] = _heldout(run, saved=step == stage.end)

        # log
        logged = step % recipe.log_every == 0 or evaluated
        if logged:
            means = {name: total / state.batches for name, total in state.sums.items()}
            record |= {"terms": means, "discrepancy": run.objective.discrepancy(means), "widths": widths}
            record["start"] = run.start
            record |= {"learning_rate": learning_rate, "gradient_norm": norm.item()}
            if state.layout.depth < run.start.get(LAYERS, 0):
                record["layers"] = state.origin[LAYERS].tolist()
            if step == stage.end:
                record["target"] = stage.target
            state.sums, state.batches = {}, 0
        display.step(step, tokens, time.perf_counter() - started, record)

        # write; where the main process cannot, all end
        if logged or saving:
            processes.agreed(functools.partial(write, run, record if logged else None, display, saving=saving))
        if saving:
            saved_at = time.monotonic()
        if torn:
            processes.wait()
            raise ended or UserError(
                f"Stopped at step {step}, because another process has nothing to learn from.",
                "All processes of a run must draw their batches.",
                "Read what the other one says; everything is saved.",
            )

        # stop
        if step < schedule.steps and stopping:
            # a launcher kills all others when one has ended
            processes.wait()
            raise RunStopped(
                stop[0] if stop else signal.SIGTERM,
                f"Stopped at step {step} of {schedule.steps}; everything is saved. "
                + (
                    f"Go on with: homodistil.resume({str(run.dir.path)!r}, data=...), with the same texts"
                    if recipe.data == IN_MEMORY
                    else f"Go on with: homodistil distil --resume {run.dir.path}"
                ),
            )


def _cut(run: Run, widths: Mapping[str, int], learnt: Sequence[Draw], display: Display) -> None:
    """Cut the student to `widths`, one layer after the other first; nothing happens if it has them."""
    state, processes = run.state, run.processes
    # they hold the memory of what is about to go
    run.recorder.forget()
    while state.layout.depth > widths.get(LAYERS, state.layout.depth):
        before = state.origin[LAYERS]
        left, caused = processes.as_main(all_but_one(run, [run.batch(draw) for draw in learnt[:PROBES]]))
        state.shrink(left, compensate=False)
        gone = ({*before.tolist()} - {*state.origin[LAYERS].tolist()}).pop()
        display.say(
            f"step {state.step}: layer {gone} leaves. Distance of the outputs without it {caused.min():.3f}, without "
            f"others {', '.join(f'{k}: {c:.3f}' for k, c in zip(before, caused, strict=True) if k != gone)}"
        )
    keep = select(state.layout, state.layout.sizes(state.student), state.importance.ranking(), widths)
    keep = processes.as_main({axis: units.cpu() for axis, units in keep.items()})
    if not keep:
        return
    state.shrink(keep, compensate=run.recipe.cutting.compensate != "none")
    processes.copy_main(state.student)


def _heldout(run: Run, *, saved: bool) -> dict[str, float]:
    """The student on held-out data, as it is or with its weights rounded as they will be saved."""
    student = run.state.student
    if saved:
        student = rounded(student, run.teacher)
    held = map(run.batch, heldout_draws(run.corpus.heldout, run.recipe.batch))
    return measure(run.runner, student, run.teacher.model, run.objective, held, run.descent, run.precision)
