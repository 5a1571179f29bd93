"""What a run says before its first step: what it has chosen that a user might not expect."""

from __future__ import annotations

from collections.abc import Iterator

from homodistil.compress.targets import CLOSE
from homodistil.distill.defaults import BATCH
from homodistil.distill.prepare import Run
from homodistil.models.kind import LANGUAGE_MODELS
from homodistil.packing import LENGTHS
from homodistil.recipe import Recipe
from homodistil.settings import Losses, Optim, Text

CUT = 0.01
"""The share of texts of which the end is not read that is worth a word."""


def notices(run: Run, recipe: Recipe) -> Iterator[str]:
    """The lines that a user is told.

    Args:
        run: what will be done.
        recipe: what was asked for.
    """
    chosen, length = run.recipe, run.recipe.text.length
    if run.vocabulary is not None:
        yield f"vocabulary: {len(run.vocabulary.rows):,} of {run.vocabulary.before:,} tokens"
    if chosen.text.prompts:
        yield f"before each text one of {chosen.text.prompts}"
    if recipe.text.length is None and length not in (None, LENGTHS[0]):
        yield f"sequences of up to {length} tokens"
    if run.corpus.cut > CUT:
        yield f"{run.corpus.cut:.0%} of the texts are read to their token {length} and no further (--text.length)"
    if chosen.batch != (recipe.batch or BATCH):
        tokens = "" if recipe.steps else f", so that {recipe.tokens} tokens are {run.schedule.steps:,} steps"
        yield f"batch: {chosen.batch}{tokens}"
    for planned in run.planned:
        if planned.missed is not None and abs(planned.missed) > CLOSE:
            yield (
                f"{planned.target}: {planned.parameters:,} parameters, {planned.missed:+.1%} off the budget; "
                "no shape near the teacher's proportions meets it"
            )
    for option, value in _without_effect(run, recipe):
        yield f"{option} = {value} has no effect in this run"
    if run.processes.count > 1:
        yield f"{run.processes.count} processes: {chosen.accumulate} batches of {chosen.batch} a step"


def _without_effect(run: Run, recipe: Recipe) -> Iterator[tuple[str, object]]:
    """What was asked for and is read where the teacher, or the optimizer, is another one."""
    kind, muon = run.teacher.kind, recipe.optim.method == "muon"
    read = {
        "losses.lm": kind in LANGUAGE_MODELS,
        "losses.masked": kind == "masked-lm",
        "losses.temperature": kind != "similarity",
        "losses.similarity_temperature": kind == "similarity",
        "text.crops": kind == "similarity",
        "optim.momentum": muon,
        "optim.scale": muon,
    }
    default = {"losses": Losses(), "text": Text(), "optim": Optim()}
    for option in (option for option, reads in read.items() if not reads):
        group, _, name = option.partition(".")
        if (value := getattr(getattr(recipe, group), name)) != getattr(default[group], name):
            yield option, value
