"""Everything that a run needs before its first step, checked in the order in which it gets expensive."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homodistil.axes.families import read_family, register
from homodistil.axes.shape import LAYERS
from homodistil.compress.plan import Planned, plan, refuse_growth, teacher_figures
from homodistil.compress.positions import tables
from homodistil.compress.schedule import Schedule
from homodistil.compress.vocabulary import Vocabulary
from homodistil.data.collate import Collate, Draw
from homodistil.data.corpus import Corpus
from homodistil.data.inputs import length_for, read, refuse_other_options
from homodistil.distill import checkpoint
from homodistil.distill.defaults import (
    accumulate_for,
    batch_for,
    cutting_for,
    losses_for,
    optim_for,
    prompts_for,
    schedule_for,
    steps_for,
)
from homodistil.distill.layers import quicken
from homodistil.distill.processes import Processes
from homodistil.distill.recorder import Recorder
from homodistil.distill.start import first_state, first_student, round_products, weights_of
from homodistil.distill.state import State
from homodistil.distill.surroundings import keep_freed_memory
from homodistil.errors import UserError
from homodistil.loading import computes_bf16
from homodistil.losses.descent import Descent
from homodistil.losses.objective import Objective
from homodistil.losses.outputs import Runner
from homodistil.models.kind import INPUTS, LANGUAGE_MODELS
from homodistil.models.teacher import Teacher, keeping_space, load_teacher
from homodistil.models.trim import Texts, trim, trim_to
from homodistil.recipe import Recipe
from homodistil.rundir import RunDir, write_text


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
        positions: its tables of positions, distances and types as it starts, by name, on the CPU.
        states: how many hidden states it starts with, the first embeddings aside: one a layer, and of encoder-decoders
            the target's embeddings.
        planned: the targets, widest first.
        weights: what tells the models that it began with from others.
        corpus: what is learnt from, and what is held out.
        schedule: the widths over the steps.
        runner: forward passes.
        objective: the losses.
        collate: sequences or images to batches.
        precision: the context in which forward passes compute.
        state: what steps change; on the device, and as far as the newest checkpoint.
        processes: this one and the others that share its steps.
        recorder: plays back what steps do, where the device is a GPU.
    """

    recipe: Recipe
    dir: RunDir
    teacher: Teacher
    figures: Planned
    vocabulary: Vocabulary | None
    start: dict[str, int]
    positions: dict[str, Tensor]
    states: int
    planned: list[Planned]
    weights: str
    corpus: Corpus
    schedule: Schedule
    runner: Runner
    objective: Objective
    collate: Collate
    precision: AbstractContextManager[Any]
    state: State
    processes: Processes
    recorder: Recorder[Any]

    @property
    def descent(self) -> Descent:
        """Which of the layers and heads that the student started with it still has."""
        state, heads = self.state, dict[int, Tensor]()
        for axis, ids in state.origin.items():
            if state.layout.width_of(axis) == "heads" and len(ids) < self.start["heads"]:
                number = axis.partition(".")[2]
                # an axis without a number is all layers'
                heads |= dict.fromkeys([int(number)] if number else range(self.states), ids.to(state.student.device))
        return Descent(self.states, state.origin[LAYERS].tolist() if LAYERS in state.origin else (), heads)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """What both models read, on this process's device, but for the number of tokens."""
        made = self.collate(*draw)
        tokens = sum(mask.sum() for name, mask in made.items() if name.endswith("attention_mask"))
        on_device = {name: tensor.to(self.processes.device, non_blocking=True) for name, tensor in made.items()}
        return on_device | {"tokens": torch.as_tensor(tokens)}


def prepare(recipe: Recipe, *, resume: bool, texts: Iterable[str] | None) -> Run:
    """Load the teacher, plan the targets, read the data, and make the state of step 0 or of the newest checkpoint.

    Raises:
        UserError: something that the user can correct. Nothing has been written unless all of it holds.
    """
    processes = Processes.launched()
    run = processes.main_first(lambda: _prepared(recipe, resume, texts, processes))
    try:
        processes.refuse_different(
            {
                "the recipe": run.recipe.digest(),
                "the teacher, or --student,": run.weights,
                "the data": run.corpus.identity,
                "the step of the newest checkpoint": run.state.step,
            }
        )
    except UserError:
        if processes.main and not resume:
            # the folder was new, and nothing else is in it
            shutil.rmtree(run.dir.path)
        raise
    return run


def _prepared(recipe: Recipe, resume: bool, texts: Iterable[str] | None, processes: Processes) -> Run:
    asked, run_dir = recipe, RunDir(Path(recipe.out))
    new = processes.main and not resume
    if new:
        run_dir.refuse_taken()
        run_dir.refuse_inside(recipe.data)
    recipe = replace(recipe, accumulate=accumulate_for(recipe, processes.count))
    if recipe.family is not None:
        register(read_family(recipe.family))
    teacher = load_teacher(recipe.teacher, trust_remote_code=recipe.trust_remote_code)
    if recipe.space == "teacher":
        teacher = keeping_space(teacher)
    refuse_other_options(recipe, teacher)
    recipe = replace(recipe, text=replace(recipe.text, prompts=prompts_for(recipe, teacher)))
    figures = teacher_figures(teacher.layout, teacher.layout.shape(teacher.model))
    vocabulary = None
    # the main process looks again unless steps have been made by it: the data may be other data by now
    known = not processes.main or (resume and any(run_dir.checkpoints.glob("step-*")))
    if recipe.trim_vocab and known and run_dir.vocabulary.exists():
        vocabulary = Vocabulary.from_json(run_dir.vocabulary.read_text())
        teacher = trim(teacher, vocabulary)
    elif recipe.trim_vocab:
        teacher, vocabulary = trim_to(
            teacher,
            Texts(texts if texts is not None else recipe.data, recipe.text.column, recipe.text.target),
            # what is said to a text stands after no prompt
            recipe.text.prompts if recipe.text.target is None else [*(recipe.text.prompts or ()), ""],
        )
    losses = losses_for(recipe, teacher)
    recipe = replace(recipe, losses=losses)
    origin = teacher if recipe.student is None else first_student(recipe, teacher, vocabulary, losses)
    if teacher.reads == "text":
        recipe = replace(recipe, text=replace(recipe.text, length=length_for(recipe, teacher, origin, texts)))
    # before the data is read, in whose order batches show
    recipe = replace(recipe, batch=recipe.batch or batch_for(recipe, teacher))
    whole = origin.layout.shape(origin.model)
    planned = plan(origin.layout, whole, recipe.target)
    refuse_growth(planned)
    corpus, collate = read(recipe, teacher, origin, texts)
    steps = steps_for(recipe, corpus, planned)
    each = steps / len(planned)
    recipe = replace(recipe, cutting=cutting_for(recipe, teacher, each), optim=optim_for(recipe, teacher, corpus, each))
    schedule = schedule_for(recipe, planned, whole, steps)
    if new:
        run_dir.create(recipe.to_yaml(), asked.asked_yaml())
    if processes.main and vocabulary is not None:
        write_text(run_dir.vocabulary, vocabulary.as_json())

    # as they were loaded: what follows moves the teacher to its device, and rounds it
    weights = weights_of(teacher, origin)
    positions = {name: table.detach().clone() for name, table in tables(origin.model, origin.layout).items()}
    if processes.device.type == "cpu":
        keep_freed_memory()
    teacher.model.to(processes.device)
    if teacher.tail is not None:
        teacher.tail.to(processes.device)
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and computes_bf16(processes.device))
    state = first_state(recipe, teacher, origin, torch.bfloat16 if bf16 else torch.float32)
    if bf16:
        round_products(teacher.model)
    checkpoint.restore(run_dir.checkpoints, state, recipe.digest(), corpus.identity, weights)
    if bf16:
        for model in (teacher.model, state.student):
            quicken(model)
    if processes.main:
        run_dir.rewind_metrics(state.step)
    return Run(
        recipe=recipe,
        dir=run_dir,
        teacher=teacher,
        figures=figures,
        vocabulary=vocabulary,
        start=whole,
        positions=positions,
        states=origin.states,
        planned=planned,
        weights=weights,
        corpus=corpus,
        schedule=schedule,
        runner=Runner(
            kind=teacher.kind,
            layout=teacher.layout,
            pooling=teacher.pooling,
            attention=bool(losses.attention),
            prediction=bool(losses.prediction or losses.cosine) or (losses.lm > 0 and teacher.kind in LANGUAGE_MODELS),
            inputs=INPUTS[teacher.reads],
        ),
        objective=Objective(teacher.kind, losses, state.projections, teacher.tail),
        collate=collate,
        precision=torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=bf16),
        state=state,
        processes=processes,
        recorder=Recorder(processes.device),
    )
