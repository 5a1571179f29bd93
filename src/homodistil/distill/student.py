"""Saving a student as what its users open: a model folder, or a sentence-transformers folder if the teacher was one."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from homodistil.distill.teacher import Teacher
from homodistil.rundir import disk_failure, writing_folder


def as_saved(student: PreTrainedModel, teacher: Teacher) -> PreTrainedModel:
    """The student in its teacher's precision, or a student of a teacher in bf16 might be the larger file."""
    return student if student.dtype == teacher.dtype else copy.deepcopy(student).to(teacher.dtype)


def save_student(path: Path, student: PreTrainedModel, teacher: Teacher, card: str) -> None:
    """Write configuration, weights, tokenizer or image processor, and model card; whole or not at all.

    Raises:
        UserError: the disk is full or gone.
    """
    student = as_saved(student, teacher)
    try:
        with writing_folder(path) as folder:
            student.save_pretrained(folder)
            teacher.processor.save_pretrained(folder)
            if teacher.sentence_folder is not None:
                _sentence_files(folder, teacher.sentence_folder, student.config.hidden_size)
            (folder / "README.md").write_text(card)
    except (OSError, SafetensorError) as error:
        raise disk_failure(path, error) from error


def _sentence_files(folder: Path, source: Path, width: int) -> None:
    """The modules of a sentence encoder, with the transformer in the folder itself, so that both libraries open it."""
    modules = json.loads((source / "modules.json").read_text())
    for module in modules:
        place = source / module["path"]
        if module["type"].endswith("Transformer"):
            for name in ("sentence_bert_config.json",):
                if (place / name).exists():
                    shutil.copy(place / name, folder / name)
            module["path"] = ""
            continue
        (folder / module["path"]).mkdir(parents=True, exist_ok=True)
        for file in place.glob("*.json"):
            options = json.loads(file.read_text())
            for key in ("word_embedding_dimension", "embedding_dimension"):
                if key in options:
                    options[key] = width
            (folder / module["path"] / file.name).write_text(json.dumps(options, indent=2))
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    if (source / "config_sentence_transformers.json").exists():
        shutil.copy(source / "config_sentence_transformers.json", folder)
