"""What a recipe leaves open, decided by the teacher, the text, the machine and how long the run is."""

from __future__ import annotations

import math
from dataclasses import replace

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from homodistil.compress.plan import Planned
from homodistil.compress.schedule import Schedule
from homodistil.data.collate import COMPARED
from homodistil.data.corpus import Corpus
from homodistil.data.inputs import packs
from homodistil.errors import UserError
from homodistil.models.kind import LANGUAGE_MODELS
from homodistil.models.sentence import counts_prompts
from homodistil.models.teacher import Teacher
from homodistil.recipe import Recipe
from homodistil.settings import Cutting, Losses, Optim

BATCH, TOKENS = 32, (512, 4096)
"""Sequences in a batch, where the recipe does not say; and a language model's tokens in one at least and at most."""
RATE = 0.384
"""The learning rate times the teacher's hidden width, where the recipe does not say."""
LONG = 0.5
"""Steps to each target for each token of a step; in runs that are longer the learning rate is lower."""
STEPS = 1000
"""Steps to each target that a language model's batch is chosen for."""
RAMP, LONGEST = 0.1, 0.4
"""The share of a target's steps in which it is cut, where the recipe does not say; and of a short run at most."""
RAMP_STEPS = 50
"""Steps in which a language model is cut, as far as `LONGEST` allows."""
CUT_EVERY = 8
"""Steps between two measurements of importance, each with a cut after it while there is something to cut: both together
are a small part of the run, even where a measurement is a backward pass of its own."""
CUTS = 16
"""Of them until the last cut, at least: a short run measures and cuts at more of its steps."""


def accumulate_for(recipe: Recipe, processes: int) -> int:
    """How many batches make one step, of which every process takes equally many.

    Raises:
        UserError: they cannot.
    """
    batches = recipe.accumulate or processes
    if batches % processes:
        raise UserError(
            f"Cannot share {batches} batch{'es' if batches > 1 else ''} a step among {processes} processes.",
            "Each process must get equally many of the batches whose gradients make one step (accumulate).",
            f"Use --accumulate {processes}, or a multiple of it; a run that is resumed keeps what it was started "
            "with, and takes as many processes as divide it.",
        )
    return batches


def batch_for(recipe: Recipe, teacher: Teacher) -> int:
    """Sequences in a batch, where the recipe does not say: a power of two that leaves `STEPS` to each target.

    A language model learns far more from many small steps than from few large ones, as long as there are few. The
    similarities that a sentence encoder learns from are those within a batch, so its batches stay as they are. Texts
    and pairs that are not packed may be far shorter than `text.length`, and there are as many as there may be.
    """
    if teacher.kind not in LANGUAGE_MODELS:
        return BATCH
    assert recipe.text.length is not None
    least, most = TOKENS
    chosen = packs(recipe, teacher) and not recipe.steps
    a_batch = recipe.token_budget() / (recipe.accumulate * STEPS * len(recipe.target)) if chosen else most
    sequences = min(max(a_batch, least), most) / recipe.text.length
    return min(BATCH, 1 << math.floor(math.log2(max(1, sequences))))


def prompts_for(recipe: Recipe, teacher: Teacher) -> list[str] | None:
    """What is put before texts: what the recipe says, or what the teacher's users put there; None for nothing.

    Raises:
        UserError: texts with these prompts would not be read as they are in use.
    """
    packed, wanted = packs(recipe, teacher), recipe.text.prompts
    if wanted is None:
        return None if packed else list(teacher.prompts) or None
    if any(wanted) and packed:
        raise UserError(
            f"Cannot put prompts before the text of {teacher.source} (text.prompts = {wanted}).",
            "Prompts stand before texts that are kept apart, and these are joined into blocks.",
            "Use --text.packing texts, or leave the prompts out.",
        )
    if any(wanted) and teacher.sentence_folder is not None and not counts_prompts(teacher.sentence_folder):
        raise UserError(
            f"Cannot learn from texts after prompts with {teacher.source} (text.prompts = {wanted}).",
            "Its embeddings must be of the prompt's tokens, too, and its pooling leaves them out (include_prompt).",
            "Leave the prompts out: it is then distilled on the texts alone.",
        )
    return wanted


def step_tokens(recipe: Recipe, corpus: Corpus) -> float:
    """Tokens of a step, on average."""
    return corpus.mean_tokens * recipe.batch * recipe.accumulate


def steps_for(recipe: Recipe, corpus: Corpus, planned: list[Planned]) -> int:
    """The steps of the run: those that the recipe names, or as many as its tokens fill.

    Raises:
        UserError: they are too few for the targets.
    """
    a_step = step_tokens(recipe, corpus)
    steps = recipe.steps or max(1, round(recipe.token_budget() / a_step))
    if steps < 2 * len(planned):
        raise UserError(
            f"Cannot reach {len(planned)} target{'s' if len(planned) > 1 else ''} in {steps} "
            f"step{'s' if steps > 1 else ''}.",
            "Each target needs at least two steps, one to cut and one to settle.",
            f"Use --steps {100 * len(planned)}, or --tokens {round(100 * len(planned) * a_step)}, or more.",
        )
    return steps


def cutting_for(recipe: Recipe, teacher: Teacher, steps: float) -> Cutting:
    """What is cut when, with the end of the ramp of a run of so many steps to each target."""
    start, end = recipe.cutting.ramp_start, recipe.cutting.ramp_end
    if end is None:
        least = RAMP_STEPS / steps if teacher.kind in LANGUAGE_MODELS else RAMP
        end = min(1.0, start + min(LONGEST, max(RAMP, least)))
    return replace(recipe.cutting, ramp_end=end)


def schedule_for(recipe: Recipe, planned: list[Planned], whole: dict[str, int], steps: int) -> Schedule:
    """The widths over so many steps, from the `whole` ones on, and at which steps importance is measured."""
    assert recipe.cutting.ramp_end is not None
    schedule = Schedule.over(
        whole,
        [(p.target, p.shape) for p in planned],
        steps=steps,
        ramp=(recipe.cutting.ramp_start, recipe.cutting.ramp_end),
        grain=recipe.cutting.grain,
    )
    # of the first ramp, so that targets that follow change nothing of it; the others are as long
    ramp = next((s.ramp_end - s.ramp_start for s in schedule.stages if s.cuts_units), 0)
    return replace(schedule, every=recipe.cutting.every or max(1, min(CUT_EVERY, ramp // CUTS)))


def optim_for(recipe: Recipe, teacher: Teacher, corpus: Corpus, steps: float) -> Optim:
    """How the student learns, with the rate of a run of so many steps to each target.

    It goes with one over the teacher's width and, where steps are many and small, with the cube root of a step's tokens
    over the steps: a rate that is best for hundreds of steps leaves a student of thousands farther from its teacher.
    """
    if recipe.optim.learning_rate is not None:
        return recipe.optim
    share = min(1.0, (LONG * step_tokens(recipe, corpus) / steps) ** (1 / 3))
    return replace(recipe.optim, learning_rate=share * RATE / teacher.model.config.hidden_size)


def losses_for(recipe: Recipe, teacher: Teacher) -> Losses:
    """The losses, with what the teacher decides.

    Raises:
        UserError: the attention of this family cannot be compared, or batches are too small for similarities.
    """
    family, wanted = teacher.layout.family, recipe.losses
    if wanted.attention and not family.attention_loss:
        raise UserError(
            f"Cannot compare the attention of a {family.name} model (losses.attention = {wanted.attention}).",
            "Queries and keys are compared where every token attends to every other.",
            "Use --losses.attention 0, or leave it out.",
        )
    # where the residual stream has no norm on it, a few states would be all of a plain mean
    decodes = type(teacher.model.config) in MODEL_FOR_CAUSAL_LM_MAPPING and not family.attention_loss
    unnormed = decodes or teacher.kind in ("causal-lm", "seq2seq-lm") or teacher.reads == "images"
    kind = ("relative" if unnormed else "mse") if wanted.hidden_kind == "auto" else wanted.hidden_kind
    if wanted.cosine and teacher.kind != "similarity":
        raise UserError(
            f"Cannot compare embeddings of texts of {teacher.source} (losses.cosine = {wanted.cosine}).",
            f"The teacher must be a sentence encoder or a bare encoder; it is made for {teacher.kind}.",
            "Use --losses.cosine 0, or leave it out.",
        )
    embeds = teacher.sentence_folder is not None
    weights = {
        "cosine": 1.0 if embeds else 0.0,
        # similarities say less of a text than its embedding does
        "prediction": 0.25 if embeds else 0.5 if teacher.kind == "similarity" else 1.0,
        "hidden": 20.0 if kind == "relative" else 120.0,
        "attention": (0.1 if kind == "relative" else 0.25) if family.attention_loss else 0.0,
    }
    left_open = {name: weight for name, weight in weights.items() if getattr(wanted, name) is None}
    losses: Losses = replace(wanted, hidden_kind=kind, **left_open)  # type: ignore[arg-type]
    if teacher.kind == "similarity" and losses.prediction and 0 < recipe.batch < COMPARED:
        raise UserError(
            f"Cannot compare similarities in batches of {recipe.batch} (losses.prediction = {losses.prediction}).",
            f"A batch must hold {COMPARED} texts or images, so that each has others of which one is the nearer.",
            f"Use --batch {BATCH}, or another from {COMPARED} on, or --losses.prediction 0.",
        )
    terms = [name for name, weight in weights.items() if weight] + ["embedding"]
    terms += ["lm"] if teacher.kind in LANGUAGE_MODELS else []
    if not any(getattr(losses, name) for name in {*terms, *weights}):
        raise UserError(
            f"Cannot learn from {teacher.source}: the weight of each of its losses is 0.",
            f"A teacher of the kind {teacher.kind} has the losses {', '.join(terms)}, of which one must count.",
            "Use, for example, --losses.hidden 1, or leave a weight out.",
        )
    return losses
