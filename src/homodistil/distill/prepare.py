"""Everything that a run needs before its first step, checked in the order in which it gets expensive."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homodistil.axes.families import read_family, register
from homodistil.compress.plan import Planned, plan, refuse_growth, teacher_figures
from homodistil.compress.schedule import Schedule
from homodistil.compress.vocabulary import Vocabulary
from homodistil.distill import checkpoint
from homodistil.distill.checkpoint import State
from homodistil.distill.collate import Collate, Draw
from homodistil.distill.data import Corpus
from homodistil.distill.inputs import packs, read, refuse_other_options
from homodistil.distill.objective import Objective
from homodistil.distill.outputs import Runner
from homodistil.distill.processes import Processes
from homodistil.distill.start import first_state, first_student, round_products
from homodistil.distill.teacher import INPUTS, LANGUAGE_MODELS, Teacher, load_teacher
from homodistil.distill.trim import Texts, trim, trim_to
from homodistil.errors import UserError
from homodistil.recipe import Recipe
from homodistil.rundir import RunDir, write_text
from homodistil.settings import Cutting, Losses, Optim

BATCH, SMALLEST = 32, 4
"""Sequences in a batch, where the recipe does not say and where it leaves too few steps."""
RATE = 0.384
"""The learning rate times the teacher's hidden width, where the recipe does not say."""
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


@dataclass(frozen=True)
class Run:
    """A run that is ready for its next step.

    Attributes:
        recipe: what it is.
        dir: its folder.
        teacher: frozen, on the device.
        figures: shape and counts of the teacher, with its whole vocabulary.
        vocabulary: which of the teacher's tokens are left; None if all are.
        start: the widths and the depth that the student starts with.
        layers: how many hidden states it starts with, the first embeddings aside: one a layer, and of encoder-decoders
            the target's embeddings.
        planned: the targets, widest first.
        corpus: what is learnt from, and what is held out.
        schedule: the widths over the steps.
        runner: forward passes.
        objective: the losses.
        collate: sequences or images to batches.
        precision: the context in which forward passes compute.
        state: what steps change; on the device, and as far as the newest checkpoint.
        processes: this one and the others that share its steps.
    """

    recipe: Recipe
    dir: RunDir
    teacher: Teacher
    figures: Planned
    vocabulary: Vocabulary | None
    start: dict[str, int]
    layers: int
    planned: list[Planned]
    corpus: Corpus
    schedule: Schedule
    runner: Runner
    objective: Objective
    collate: Collate
    precision: AbstractContextManager[Any]
    state: State
    processes: Processes

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """What both models read, on this process's device."""
        return {name: tensor.to(self.processes.device) for name, tensor in self.collate(*draw).items()}


def prepare(recipe: Recipe, *, resume: bool, texts: Iterable[str] | None) -> Run:
    """Load the teacher, plan the targets, read the data, and make the state of step 0 or of the newest checkpoint.

    Raises:
        UserError: something that the user can correct. Nothing has been written unless all of it holds.
    """
    processes = Processes.launched()
    run = processes.main_first(lambda: _prepared(recipe, resume, texts, processes))
    processes.refuse_different(run.state.step, run.dir.checkpoints)
    return run


def _prepared(recipe: Recipe, resume: bool, texts: Iterable[str] | None, processes: Processes) -> Run:
    run_dir = RunDir(Path(recipe.out))
    new = processes.main and not resume
    if new:
        run_dir.refuse_taken()
    recipe = replace(recipe, accumulate=_accumulate(recipe, processes.count))
    if recipe.family is not None:
        register(read_family(recipe.family))
    teacher = load_teacher(recipe.teacher, trust_remote_code=recipe.trust_remote_code)
    refuse_other_options(recipe, teacher)
    figures = teacher_figures(teacher.layout, teacher.layout.shape(teacher.model))
    vocabulary = None
    if recipe.trim_vocab and not new and run_dir.vocabulary.exists():
        vocabulary = Vocabulary.from_json(run_dir.vocabulary.read_text())
        teacher = trim(teacher, vocabulary)
    elif recipe.trim_vocab:
        teacher, vocabulary = trim_to(
            teacher, Texts(texts if texts is not None else recipe.data, recipe.text.column, recipe.text.target)
        )
    # before the data is read, in whose order batches show
    recipe = replace(recipe, batch=recipe.batch or batch_for(recipe, teacher), optim=_optim(recipe, teacher))
    losses = _losses(recipe, teacher)
    origin = teacher if recipe.student is None else first_student(recipe, teacher, vocabulary, losses)
    whole = origin.layout.shape(origin.model)
    planned = plan(origin.layout, whole, recipe.target)
    refuse_growth(planned)
    corpus, collate = read(recipe, teacher, texts)
    steps = _steps(recipe, corpus, planned)
    recipe = replace(recipe, cutting=_cutting(recipe, teacher, steps / len(planned)))
    schedule = _schedule(recipe, planned, whole, steps)
    if new:
        run_dir.create(recipe.to_yaml())
    if processes.main and vocabulary is not None and not run_dir.vocabulary.exists():
        write_text(run_dir.vocabulary, vocabulary.as_json())

    if processes.device.type == "cpu":
        _keep_freed_memory()
    teacher.model.to(processes.device)
    state = first_state(recipe, teacher, origin)
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and _computes_bf16(processes.device))
    if bf16:
        round_products(teacher.model)
    checkpoint.restore(run_dir.checkpoints, state, recipe.digest())
    if processes.main:
        run_dir.rewind_metrics(state.step)
    return Run(
        recipe=recipe,
        dir=run_dir,
        teacher=teacher,
        figures=figures,
        vocabulary=vocabulary,
        start=whole,
        layers=origin.states,
        planned=planned,
        corpus=corpus,
        schedule=schedule,
        runner=Runner(
            kind=teacher.kind,
            layout=teacher.layout,
            pooling=teacher.pooling,
            attention=bool(losses.attention),
            prediction=bool(losses.prediction) or (losses.lm > 0 and teacher.kind in LANGUAGE_MODELS),
            inputs=INPUTS[teacher.reads],
        ),
        objective=Objective(teacher.kind, losses, state.projections),
        collate=collate,
        precision=torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=bf16),
        state=state,
        processes=processes,
    )


def _accumulate(recipe: Recipe, processes: int) -> int:
    """How many batches make one step, of which every process takes equally many."""
    batches = recipe.accumulate or processes
    if batches % processes:
        raise UserError(
            f"Cannot share {batches} batch{'es' if batches > 1 else ''} a step among {processes} processes.",
            "Each process must get equally many of the batches whose gradients make one step (accumulate).",
            f"Use --accumulate {processes}, or a multiple of it; a run that is resumed keeps what it was started "
            "with, and takes as many processes as divide it.",
        )
    return batches


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: a step frees and asks for the same sizes, and new pages cost more than sums."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    library.mallopt(mmap_max, 0)
    library.mallopt(trim_threshold, 2**31 - 1)
    library.mallopt(top_pad, 64 << 20)


def batch_for(recipe: Recipe, teacher: Teacher) -> int:
    """Sequences in a batch, where the recipe does not say: a power of two that leaves `STEPS` to each target.

    A language model learns far more from many small steps than from few large ones, as long as there are few. The
    similarities that a sentence encoder learns from are those within a batch, so its batches stay as they are; and so
    do those of texts and pairs that are not packed, which may be far shorter than `text.length`.
    """
    if teacher.kind not in LANGUAGE_MODELS or not packs(recipe, teacher) or recipe.steps is not None:
        return BATCH
    a_batch = recipe.token_budget() / (recipe.text.length * recipe.accumulate * STEPS * len(recipe.target))
    return min(BATCH, 1 << math.floor(math.log2(max(SMALLEST, a_batch))))


def _steps(recipe: Recipe, corpus: Corpus, planned: list[Planned]) -> int:
    a_step = corpus.mean_tokens * recipe.batch * recipe.accumulate
    steps = recipe.steps or max(1, round(recipe.token_budget() / a_step))
    if steps < 2 * len(planned):
        raise UserError(
            f"Cannot reach {len(planned)} target{'s' if len(planned) > 1 else ''} in {steps} "
            f"step{'s' if steps > 1 else ''}.",
            "Each target needs at least two steps, one to cut and one to settle.",
            f"Use --steps {100 * len(planned)}, or --tokens {round(100 * len(planned) * a_step)}, or more.",
        )
    return steps


def _cutting(recipe: Recipe, teacher: Teacher, steps: float) -> Cutting:
    """What is cut when, with the end of the ramp of a run of so many steps to each target."""
    start, end = recipe.cutting.ramp_start, recipe.cutting.ramp_end
    if end is None:
        least = RAMP_STEPS / steps if teacher.kind in LANGUAGE_MODELS else RAMP
        end = min(1.0, start + min(LONGEST, max(RAMP, least)))
    return replace(recipe.cutting, ramp_end=end)


def _schedule(recipe: Recipe, planned: list[Planned], whole: dict[str, int], steps: int) -> Schedule:
    assert recipe.cutting.ramp_end is not None
    schedule = Schedule.over(
        whole,
        [(p.target, p.shape) for p in planned],
        steps=steps,
        ramp=(recipe.cutting.ramp_start, recipe.cutting.ramp_end),
        grain=recipe.cutting.grain,
    )
    return replace(schedule, every=max(1, min(CUT_EVERY, schedule.last_cut() // CUTS)))


def _optim(recipe: Recipe, teacher: Teacher) -> Optim:
    """How the student learns, with the rate that the teacher's width decides."""
    if recipe.optim.learning_rate is not None:
        return recipe.optim
    return replace(recipe.optim, learning_rate=RATE / teacher.model.config.hidden_size)


def _losses(recipe: Recipe, teacher: Teacher) -> Losses:
    """The losses, with what the teacher decides.

    Raises:
        UserError: the attention of this family cannot be compared.
    """
    family, wanted = teacher.layout.family, recipe.losses
    assert family is not None
    if wanted.attention and not family.attention_loss:
        raise UserError(
            f"Cannot compare the attention of a {family.name} model (losses.attention = {wanted.attention}).",
            "Queries and keys are compared where every token attends to every other.",
            "Use --losses.attention 0, or leave it out.",
        )
    # where the residual stream has no norm on it, a few states would be all of a plain mean
    unnormed = teacher.kind in ("causal-lm", "seq2seq-lm") or teacher.reads == "images"
    kind = ("relative" if unnormed else "mse") if wanted.hidden_kind == "auto" else wanted.hidden_kind
    weights = {
        "prediction": 0.5 if teacher.kind == "similarity" else 1.0,
        "hidden": 20.0 if kind == "relative" else 60.0,
        "attention": 0.1 if family.attention_loss else 0.0,
    }
    left_open = {name: weight for name, weight in weights.items() if getattr(wanted, name) is None}
    return replace(wanted, hidden_kind=kind, **left_open)  # type: ignore[arg-type]


def _computes_bf16(device: torch.device) -> bool:
    """Whether the machine has instructions for bf16; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
