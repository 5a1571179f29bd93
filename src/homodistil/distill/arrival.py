"""What a run leaves at a step and where it has reached a target, and what it has made in all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from homodistil.axes.shape import LAYERS
from homodistil.compress.positions import all_moved, tables, unit_of
from homodistil.distill import checkpoint
from homodistil.distill.ending import disk_explained
from homodistil.distill.prepare import Run
from homodistil.errors import UserError
from homodistil.models.student import save_student
from homodistil.recipe import Recipe
from homodistil.reports.card import card
from homodistil.reports.live import Display
from homodistil.rundir import RunDir, write_text


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        out: the run's folder.
        students: for each target, as it was written, the folder of its student.
        heldout: for each target, what the held-out text said when its student was saved.
    """

    out: Path
    students: dict[str, Path]
    heldout: dict[str, dict[str, float]]


def write(run: Run, record: dict[str, Any] | None, display: Display, *, saving: bool) -> None:
    """Write what a step leaves, in the main process alone.

    Args:
        run: after the step.
        record: its metrics, if there are any; with a target that is reached its student is saved.
        display: says so.
        saving: whether the state is saved as well.

    Raises:
        UserError: the disk is full, or cannot be written to.
    """
    if not run.processes.main:
        return
    with disk_explained(run.dir.path):
        if record is not None:
            run.dir.append_metrics(record)
        # the student first, because a checkpoint of this step says that it is there
        if record is not None and "target" in record:
            save_target(run, record["target"])
            display.say(f"{record['target']}: saved to {run.dir.student(record['target'])}")
        if saving:
            checkpoint.save(run.dir.checkpoints, run.state, run.recipe.digest(), run.corpus.identity, run.weights)


def save_target(run: Run, target: str) -> None:
    """Save the student of a target that is reached, its card, and which of the teacher's units it kept.

    Raises:
        UserError: the disk is full, or cannot be written to.
    """
    made = next(p for p in run.planned if p.target == target)
    tokens = (run.vocabulary.before, len(run.vocabulary.rows)) if run.vocabulary else None
    metrics, reads = run.dir.read_metrics(), run.teacher.reads
    text = card(run.recipe, asdict(run.figures), asdict(made), metrics, tokens=tokens, reads=reads)
    origin, layout = run.state.origin, run.state.layout
    layers = origin[LAYERS].tolist() if LAYERS in origin else list(range(run.states))
    # by the numbers that layers had at the start, not by those that they have now
    kept = {_named_at_start(axis, layers): ids.tolist() for axis, ids in origin.items()}
    whole = {axis: run.start[layout.width_of(axis)] for axis in kept}
    parent = {_named_at_start(axis, layers): _named_at_start(outer, layers) for axis, outer in layout.parent.items()}
    said = {"start": run.start, "teacher": whole, "kept": kept, "parent": parent}
    write_text(run.dir.units(target), json.dumps(said))
    with _positions_moved(run):
        save_student(run.dir.student(target), run.state.student, run.teacher, text, run.state.projections.last)


def _positions_moved(run: Run) -> AbstractContextManager[None]:
    """Within it, positions and types that the text has not reached are as those that it has."""
    state, start, reached = run.state, dict[str, Tensor](), dict[str, Tensor]()
    for name, table in tables(state.student, state.layout).items():
        if moments := state.optimizer.state.get(table):
            reached[name] = (moments["exp_avg_sq"] > 0).any(1)
            left = state.origin.get(unit_of(state.layout, name))
            start[name] = run.positions[name] if left is None else run.positions[name][:, left.cpu()]
    return all_moved(state.student, state.layout, start, reached)


def _named_at_start(axis: str, layers: Sequence[int]) -> str:
    kind, _, layer = axis.partition(".")
    return f"{kind}.{layers[int(layer)]}" if layer else axis


def refuse_missing(run_dir: RunDir, recipe: Recipe) -> None:
    """Refuse to go on without a student of a target that the run has passed: nothing would make it anew.

    Raises:
        UserError: a student is not where it was saved, and the run is finished or has a checkpoint of after it.
    """
    reached = {r["target"]: r["step"] for r in run_dir.read_metrics() if "target" in r}
    passed = max((int(path.name.rpartition("-")[2]) for path in run_dir.checkpoints.glob("step-*")), default=-1)
    # the folder of checkpoints goes when all is done; a run that was killed before has it, if nothing in it
    if not run_dir.checkpoints.exists() and reached.keys() >= {target.strip() for target in recipe.target}:
        passed = max(reached.values())
    missing = [
        str(run_dir.student(target))
        for target in recipe.target
        if reached.get(target.strip(), math.inf) <= passed and not (run_dir.student(target) / "config.json").exists()
    ]
    if missing:
        raise UserError(
            f"Cannot resume {run_dir.path}: it has made a student, and there is none in {' or '.join(missing)}.",
            "The students of all targets that a run has passed must lie where it saved them: it makes none twice.",
            "Put the folder back, or start a new run with another --out.",
        )


def result_of(run_dir: RunDir, recipe: Recipe) -> Result:
    """What a run has made, read off its folder."""
    records = {r["target"]: r["heldout"] for r in run_dir.read_metrics() if "target" in r}
    return Result(
        run_dir.path,
        {target: run_dir.student(target) for target in recipe.target},
        {target: records.get(target.strip(), {}) for target in recipe.target},
    )
