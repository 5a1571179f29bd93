"""Saving a student as what its users open: a model's folder, or one of sentence-transformers if the teacher's was."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from homodistil.loading import unused_positions
from homodistil.models.sentence import folded, write_modules
from homodistil.models.teacher import Teacher
from homodistil.rundir import RESUME, disk_failure, write_text, writing_folder


def as_saved(student: PreTrainedModel, teacher: Teacher) -> PreTrainedModel:
    """The student in its teacher's precision, or a student of a teacher in bf16 might be the larger file."""
    return student if student.dtype == teacher.dtype else copy.deepcopy(student).to(teacher.dtype)


@torch.no_grad()
def rounded(student: PreTrainedModel, teacher: Teacher) -> PreTrainedModel:
    """The student with its weights as they will be saved, in its own precision.

    Buffers, such as the frequencies of rotary positions, are not saved: who opens it makes them anew.
    """
    if student.dtype == teacher.dtype:
        return student
    made = copy.deepcopy(student)
    for parameter in made.parameters():
        parameter.copy_(parameter.to(teacher.dtype))
    return made


def _processor_for(student: PreTrainedModel, teacher: Teacher) -> Any:
    """The teacher's tokenizer or image processor; for a student with fewer positions, one that cuts texts for them."""
    most, before = (getattr(m.config, "max_position_embeddings", math.inf) for m in (student, teacher.model))
    if teacher.reads != "text" or most >= before:
        return teacher.processor
    tokenizer = copy.deepcopy(teacher.processor)
    tokenizer.model_max_length = min(tokenizer.model_max_length, most - unused_positions(student))
    return tokenizer


def save_student(
    path: Path,
    student: PreTrainedModel,
    teacher: Teacher,
    card: str,
    projection: Tensor | None = None,
    *,
    then: str = RESUME,
) -> None:
    """Write configuration, weights, tokenizer or image processor, and model card; whole or not at all.

    Args:
        path: the folder.
        student: the model.
        teacher: whose student it is.
        card: what its README.md says.
        projection: W of the last hidden states, (narrow, wide), through which a sentence encoder's tail reads them; it
            reads them as they are by default.
        then: what to do as soon as a disk that was full has room; see `disk_failure`.

    Raises:
        UserError: the disk is full, or cannot be written to.
    """
    student = as_saved(student, teacher)
    try:
        with writing_folder(path) as folder:
            student.save_pretrained(folder)
            _processor_for(student, teacher).save_pretrained(folder)
            if teacher.modules is not None:
                tail = teacher.tail
                if tail is not None and projection is not None:
                    tail = folded(tail, projection)
                write_modules(folder, teacher.modules, student.config.hidden_size, tail)
            write_text(folder / "README.md", card)
    except (OSError, SafetensorError) as error:
        raise disk_failure(path, error, then) from error
