"""Where a run starts: its first student, and the state before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from homodistil.axes.layout import Layout
from homodistil.compress.compensate import InputMoments
from homodistil.compress.importance import Importance, Method
from homodistil.compress.vocabulary import Vocabulary
from homodistil.distill.optimizer import Muon, between_widths
from homodistil.distill.state import State, every_unit
from homodistil.errors import UserError
from homodistil.losses.projections import Projections
from homodistil.models.kind import LABELLED, LANGUAGE_MODELS
from homodistil.models.teacher import Teacher, copy_of, load_teacher
from homodistil.models.trim import trim
from homodistil.recipe import Recipe
from homodistil.settings import Losses, Optim


def first_student(recipe: Recipe, teacher: Teacher, vocabulary: Vocabulary | None, losses: Losses) -> Teacher:
    """The student that a run starts from where it is no copy of the teacher.

    Args:
        recipe: names it.
        teacher: what it will be compared with.
        vocabulary: which of the teacher's tokens are left; None if all are.
        losses: the weights that the run will have.

    Raises:
        UserError: it cannot be loaded, or it and its teacher cannot be compared.
    """
    assert recipe.student is not None
    student = load_teacher(recipe.student, trust_remote_code=recipe.trust_remote_code)
    if vocabulary is not None and student.layout.fixed.get("vocab") == vocabulary.before:
        student = trim(student, vocabulary)
    if student.kind != teacher.kind or not _read_alike(student, teacher) or not _of_one_make(student, teacher):
        raise UserError(
            f"Cannot start from the student {recipe.student}, a {type(student.model).__name__}.",
            f"It must read and predict what its teacher, a {type(teacher.model).__name__}, does: be a model of the "
            f"kind {teacher.kind}{', of its family' * (teacher.kind in LANGUAGE_MODELS)}, with the teacher's "
            "vocabulary and labels, or its size of images and patches.",
            "Give a student that was made of this teacher, or leave --student out.",
        )
    _refuse_other_names(recipe.student, student, teacher)
    for name, key in (("layers", "num_hidden_layers"), ("hidden", "hidden_size")):
        most, has = (getattr(m.model.config, key) for m in (teacher, student))
        if has > most:
            raise UserError(
                f"Cannot start from the student {recipe.student}: {name} is {has}, and its teacher's {most}.",
                "A student must not be larger than its teacher.",
                "Exchange the two, or give another student.",
            )
    if teacher.kind == "seq2seq-lm" and student.layout.lists != teacher.layout.lists:
        raise UserError(
            f"Cannot start from the student {recipe.student}: it has other numbers of layers than its teacher.",
            "Layers of an encoder-decoder are compared one by one, those of each side among themselves.",
            "Give a student with the teacher's layers, or leave --student out.",
        )
    family = student.layout.family
    looks_back = not family.attention_loss and type(student.model.config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if teacher.kind == "similarity" and teacher.pooling == "cls" and teacher.reads == "text" and looks_back:
        raise UserError(
            f"Cannot start from the student {recipe.student}, a {family.name} model.",
            "Its teacher embeds a text by its first token, which sees no other one in a model that looks back only: "
            "all texts would have one embedding.",
            "Give an encoder, or a teacher that pools by mean or last token.",
        )
    if losses.attention and not family.attention_loss:
        raise UserError(
            f"Cannot compare the attention of {recipe.student}, a {family.name} model, with that of its teacher.",
            "Queries and keys are compared where every token attends to every other.",
            "Switch the loss off with --losses.attention 0, or give a student of the teacher's family.",
        )
    heads = [m.model.config.num_attention_heads for m in (teacher, student)]
    if losses.attention and heads[0] != heads[1]:
        raise UserError(
            f"Cannot compare the attention of {heads[1]} heads of {recipe.student} with {heads[0]} of its teacher.",
            "Which heads belong together is known only for a student that starts as a copy.",
            "Switch the loss off with --losses.attention 0, or start from a student with as many heads.",
        )
    return student


def _of_one_make(student: Teacher, teacher: Teacher) -> bool:
    """Whether both make logits of the same classes, and those over a vocabulary in the way of one family."""
    speaks = teacher.kind in LANGUAGE_MODELS
    counts = [m.layout.fixed.get("vocab" if speaks else "label") for m in (student, teacher)]
    return counts[0] == counts[1] and (not speaks or student.layout.family == teacher.layout.family)


def _refuse_other_names(source: str, student: Teacher, teacher: Teacher) -> None:
    """Logits are compared by their places: names in another order would say something else of them in the end.

    Raises:
        UserError: the names of both models' labels, where both have some, differ.
    """
    if teacher.kind not in LABELLED:
        return
    mine, theirs = (_names(m.model.config.id2label) for m in (student, teacher))
    # transformers gives labels without names their numbers
    if any(name == f"label_{k}" for names in (mine, theirs) for k, name in names.items()):
        return
    if differing := [k for k, name in theirs.items() if mine.get(k) != name]:
        said = [m.model.config.id2label.get(differing[0]) for m in (student, teacher)]
        raise UserError(
            f"Cannot start from the student {source}: its label {differing[0]} is {said[0]}, its teacher's {said[1]}.",
            "Labels of both must have the same names in the same order, by which the student learns them.",
            "Give a student with the teacher's labels, or correct id2label in the config.json of the one that is "
            "wrong.",
        )


def _names(labels: Mapping[int, str]) -> dict[int, str]:
    return {int(number): str(name).casefold() for number, name in labels.items()}


def _read_alike(student: Teacher, teacher: Teacher) -> bool:
    if student.reads == teacher.reads == "text":
        return bool(student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab())
    return student.layout.fixed == teacher.layout.fixed


def weights_of(teacher: Teacher, origin: Teacher) -> str:
    """What tells another teacher, or another student that a run starts from, apart: a digest of all that they are.

    Args:
        teacher: as it was loaded, on the CPU.
        origin: the student, or the teacher itself.
    """
    models = [teacher] if origin is teacher else [teacher, origin]
    parts = [part for model in models for part in (model.model, model.tail) if part is not None]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_digest, [tensor for part in parts for tensor in part.state_dict().values()]))
    return hashlib.sha256("".join([*sums, *map(_described, models)]).encode()).hexdigest()[:16]


def _described(model: Teacher) -> str:
    """What a model is beside its weights."""
    # of the library that reads it, and of where it lies
    passing = ("transformers_version", "_name_or_path")
    config = {key: value for key, value in model.model.config.to_diff_dict().items() if key not in passing}
    processor = model.processor if model.reads == "images" else None
    return repr((config, model.kind, model.pooling, model.tail, model.dtype, model.layout.family, processor))


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def first_state(recipe: Recipe, teacher: Teacher, origin: Teacher, dtype: torch.dtype) -> State:
    """The state before the first step: the student is a copy of the teacher, or of the student that was given.

    Args:
        recipe: the run.
        teacher: what the student is compared with.
        origin: the student, or the teacher itself.
        dtype: in which products are computed.
    """
    student = copy_of(origin)
    family = teacher.layout.family
    pooled = teacher.kind == "similarity" and getattr(student, family.pooler or "", None) is not None
    narrow, wide = (m.config.hidden_size for m in (student, teacher.model))
    projections = Projections(origin.states, pooled=pooled, narrow=narrow, wide=wide).to(teacher.model.device)
    student.to(teacher.model.device)
    method: Method = recipe.cutting.importance if recipe.cutting.importance != "auto" else _method(recipe, teacher)
    return State(
        layout=origin.layout,
        student=student,
        projections=projections,
        optimizer=_optimizer(recipe.optim, origin.layout, student, projections, dtype),
        importance=Importance(method, window=recipe.cutting.window, decay=recipe.cutting.decay),
        moments=InputMoments(student, origin.layout, covariance=recipe.cutting.compensate == "least-squares"),
        origin=every_unit(origin.layout, origin.layout.sizes(student)),
    )


def _optimizer(
    options: Optim, layout: Layout, student: nn.Module, projections: Projections, dtype: torch.dtype
) -> Muon:
    named = list(student.named_parameters())
    matrices = {n for n, _ in named if between_widths(layout, n)}
    moved = {"momentum": options.momentum, "scale": options.scale} if options.method == "muon" else {}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if n in matrices], "weight_decay": options.weight_decay, **moved},
        # decay would pull norms and biases off the teacher's, projections off the identity, and to nothing what is
        # never read: tokens that the text lacks, positions that it does not reach
        {"params": [*(p for n, p in named if n not in matrices), *projections.parameters()], "weight_decay": 0.0},
    ]
    return Muon(groups, dtype=dtype, betas=(options.beta1, options.beta2), eps=options.eps)


def _method(recipe: Recipe, teacher: Teacher) -> Method:
    """Distillation losses are zero before the first cut: without a language-model loss only outputs have gradients."""
    return "sensitivity" if teacher.kind in LANGUAGE_MODELS and recipe.losses.lm else "output"


def round_products(teacher: nn.Module) -> None:
    """Round the products of a frozen teacher once, as autocast would do at every step, to the very same numbers."""
    for module in teacher.modules():
        if isinstance(module, nn.Linear):
            # a new Parameter, because a matrix that is tied to the embeddings must not round those
            module.weight = nn.Parameter(module.weight.detach().bfloat16(), requires_grad=False)
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach().bfloat16(), requires_grad=False)
