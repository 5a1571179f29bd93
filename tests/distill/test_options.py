"""Every option of a recipe reaches the student, or is one of those that must not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import homodistil
from homodistil.reading import _leaves, over
from homodistil.recipe import Recipe

BASE: dict[str, Any] = {
    "steps": 8, "batch": 4, "accumulate": 1, "precision": "fp32", "evaluations": 0,
    "text": {"length": 16}, "cutting": {"calibration": 4, "ramp_end": 0.6, "every": 1},
}  # fmt: skip
MASKED: dict[str, Any] = {
    "seed": 1, "steps": 9, "batch": 5, "accumulate": 2,
    "losses.lm": 3.0, "losses.prediction": 3.0, "losses.hidden": 3.0, "losses.attention": 3.0, "losses.embedding": 3.0,
    "losses.hidden_kind": "relative", "losses.attention_kind": "probabilities", "losses.masked": 0.6,
    "losses.temperature": 2.0,
    "text.length": 24, "text.packing": "texts", "text.heldout": 0.4, "text.stream": True,
    "cutting.importance": "platon", "cutting.window": 1, "cutting.decay": 0.0, "cutting.calibration": 2,
    "cutting.basis": "teacher", "cutting.ramp_start": 0.3, "cutting.ramp_end": 0.3, "cutting.grain": 24,
    "cutting.every": 3, "cutting.compensate": "mean",
    "optim.method": "adamw", "optim.learning_rate": 1e-3, "optim.width_power": 0.0, "optim.warmup": 0.9,
    "optim.floor": 0.9, "optim.weight_decay": 0.5, "optim.momentum": 0.5, "optim.scale": 0.1, "optim.beta1": 0.5,
    "optim.beta2": 0.5, "optim.eps": 1e-2, "optim.clip": 1e-3, "precision": "bf16",
}  # fmt: skip
ENCODER: dict[str, Any] = {"losses.cosine": 3.0, "losses.similarity_temperature": 1.0, "text.crops": 0.0,
                           "text.prompts": ["one dog "], "cutting.importance": "magnitude"}  # fmt: skip
STILL: dict[str, Any] = {"log_every": 1, "evaluations": 3, "checkpoint_minutes": 0.0, "text.workers": 2,
                         "trust_remote_code": True}  # fmt: skip
ELSEWHERE = {"tokens", "trim_vocab", "teacher", "data", "out", "target", "student", "space", "family", "text.column",
             "text.target",
             "images.column", "images.crop", "images.flip", "images.heldout"}  # fmt: skip


def test_every_option_is_tried_here_or_elsewhere() -> None:
    """One that is new must be added."""
    assert {*MASKED, *ENCODER, *STILL} | ELSEWHERE == set(_leaves(Recipe))


@pytest.fixture(scope="module")
def student(
    masked_lm: Path, encoder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., bytes]:
    """The weights of the student of a tiny teacher, with one option changed."""
    known: dict[str, bytes] = {}
    teachers = {"masked_lm": masked_lm, "encoder": encoder}

    def made(teacher: str, option: str = "", value: Any = None) -> bytes:
        if (key := f"{teacher} {option} {value}") not in known:
            group, _, name = option.rpartition(".")
            changed = {group: {name: value}} if group else {name: value} if name else {}
            out = tmp_path_factory.mktemp("run") / "run"
            result = homodistil.distil(teachers[teacher], corpus, "0.5", out, **over(BASE, changed))
            known[key] = (result.students["0.5"] / "model.safetensors").read_bytes()
        return known[key]

    return made


@pytest.mark.parametrize(
    ("teacher", "option", "value"),
    [(t, o, v) for t, options in (("masked_lm", MASKED), ("encoder", ENCODER)) for o, v in options.items()],
)
def test_an_option_makes_another_student(teacher: str, option: str, value: Any, student: Callable[..., bytes]) -> None:
    """Whatever else is as it was."""
    assert student(teacher, option, value) != student(teacher)


@pytest.mark.parametrize(("option", "value"), STILL.items())
def test_what_is_told_on_the_way_changes_no_student(option: str, value: Any, student: Callable[..., bytes]) -> None:
    """How often lines are written, how often is measured and saved, and by how many processes text is read."""
    assert student("masked_lm", option, value) == student("masked_lm")
