"""What a recipe leaves open is decided by teacher, text and budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    BertForMaskedLM,
    BertModel,
    PreTrainedModel,
)

import homodistil
from homodistil.distill.defaults import batch_for
from homodistil.distill.prepare import Run, prepare
from homodistil.models.teacher import load_teacher
from homodistil.recipe import Recipe
from homodistil.settings import Cutting, Optim, Text


@pytest.mark.parametrize(
    ("model_class", "given", "used"),
    [
        (BertForMaskedLM, {}, {"prediction": 1.0, "hidden": 120.0, "attention": 0.25}),
        (BertModel, {}, {"prediction": 0.5, "hidden": 120.0, "attention": 0.25}),
        (BertModel, {"hidden_kind": "relative"}, {"prediction": 0.5, "hidden": 20.0, "attention": 0.1}),
        (BertModel, {"prediction": 3.0, "hidden": 0.0}, {"prediction": 3.0, "hidden": 0.0, "attention": 0.25}),
    ],
)
def test_weights_that_are_left_open_are_decided_by_the_teacher(
    model_class: type[PreTrainedModel], given: dict[str, object], used: dict[str, float], ready: Callable[..., Run]
) -> None:
    """Those that are given are used as they are, 0 as well."""
    weights = ready(model_class, losses=given).objective.weights
    assert {name: getattr(weights, name) for name in used} == used


QUICK: dict[str, Any] = {"steps": 12, "batch": 4, "text": {"length": 32}, "precision": "fp32", "log_every": 3}


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({"tokens": "200k"}, 4),
        ({"tokens": "2M"}, 8),
        ({"tokens": "2M", "target": ["0.5", "0.3"]}, 4),
        ({"tokens": "2M", "text": Text(length=32)}, 32),
        ({"tokens": "2M", "text": Text(length=512)}, 2),
        ({"tokens": "200k", "text": Text(length=512)}, 1),
        ({"tokens": "10B", "text": Text(length=512)}, 8),
        ({"steps": 100, "text": Text(length=512)}, 8),
        ({"tokens": "10M"}, 32),
        ({"tokens": "10M", "accumulate": 4}, 16),
        ({"tokens": "10B"}, 32),
        ({"steps": 100}, 32),
        ({"tokens": "200k", "text": Text(length=128, packing="texts")}, 32),
        ({"tokens": "200k", "text": Text(length=128, target="summary")}, 32),
        ({"tokens": "200k", "text": Text(length=512, packing="texts")}, 8),
    ],
)
def test_a_language_model_with_few_tokens_takes_small_steps(
    options: dict[str, Any], batch: int, masked_lm: Path, encoder: Path
) -> None:
    """A thousand steps to each target, where the tokens last; encoders compare texts within a batch and keep theirs."""
    given = {"teacher": "t", "data": "d", "out": "o", "target": ["0.5"], "accumulate": 1, "text": Text(length=128)}
    recipe = Recipe(**{**given, **options})
    assert batch_for(recipe, load_teacher(str(masked_lm))) == batch
    assert batch_for(recipe, load_teacher(str(encoder))) == 32


@pytest.mark.parametrize(("steps", "every"), [(1600, 8), (640, 4), (12, 1)])
def test_units_leave_where_importance_was_just_measured(
    steps: int, every: int, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """At every eighth step of a ramp, and of a short one so often that it is measured sixteen times."""
    options: dict[str, Any] = {"teacher": str(encoder), "data": str(corpus), "out": str(tmp_path / "run")}
    recipe = Recipe(**options, target=["0.5"], steps=steps, text=Text(length=32))
    schedule = prepare(recipe, resume=False, texts=None).schedule
    assert schedule.every == every
    assert all(schedule.measured(step) for step, _ in schedule.changes())


@pytest.mark.parametrize("steps", [1600, 640, 12])
def test_targets_that_follow_change_nothing_of_the_way_to_the_first(
    steps: int, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """Importance is measured where a run to the first alone measures it, and the widths are the same."""
    options: dict[str, Any] = {"teacher": str(encoder), "data": str(corpus), "text": Text(length=32)}
    alone, both = (
        prepare(
            Recipe(**options, target=targets, steps=len(targets) * steps, out=str(tmp_path / str(len(targets)))),
            resume=False,
            texts=None,
        ).schedule
        for targets in (["0.5"], ["0.5", "0.25"])
    )
    first = range(1, steps + 1)
    assert [both.widths(step) for step in first] == [alone.widths(step) for step in first]
    ramp = range(1, alone.last_cut + 1)
    assert [both.measured(step) for step in ramp] == [alone.measured(step) for step in ramp]


def test_a_late_ramp_is_cut_as_often_as_an_early_one(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    """What counts is how long it is, not when it ends."""
    options: dict[str, Any] = {"teacher": str(encoder), "data": str(corpus), "out": str(tmp_path / "run")}
    cutting = Cutting(ramp_start=0.8, ramp_end=1.0)
    recipe = Recipe(**options, target=["0.5"], steps=100, text=Text(length=32), cutting=cutting)
    schedule = prepare(recipe, resume=False, texts=None).schedule
    assert schedule.every == 1


def test_targets_that_follow_change_nothing_of_a_student(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """The first of two students is the one that a run to it alone makes, bit for bit."""
    both = homodistil.distil(masked_lm, corpus, ["0.75", "0.5"], tmp_path / "both", **{**QUICK, "steps": 24})
    alone = homodistil.distil(masked_lm, corpus, "0.75", tmp_path / "alone", **QUICK)
    first, same = (load_file(run.students["0.75"] / "model.safetensors") for run in (both, alone))
    assert first.keys() == same.keys()
    assert all(torch.equal(first[name], same[name]) for name in first)


def test_the_learning_rate_of_a_long_run_falls_with_the_cube_root_of_its_steps(
    encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """Of its steps to each target, over the tokens of one; a short run has the whole rate, and a named one stays."""

    def highest(steps: int, **options: Any) -> float:
        options = {"target": ["0.5"], "steps": steps, "text": Text(length=32), **options}
        recipe = Recipe(teacher=str(encoder), data=str(corpus), out=str(tmp_path / "run"), **options)
        run = prepare(recipe, resume=False, texts=None)
        shutil.rmtree(run.dir.path)
        assert run.recipe.optim.learning_rate is not None
        return run.recipe.optim.learning_rate

    assert highest(100) == highest(20) == pytest.approx(0.384 / 48)
    assert highest(8_000) < 0.9 * highest(100)
    assert highest(64_000) == pytest.approx(highest(8_000) / 2)
    assert highest(16_000, target=["0.5", "0.3"]) == pytest.approx(highest(8_000))
    # as many tokens by steps of half the size
    assert highest(16_000, batch=16) == pytest.approx(highest(8_000, batch=32) / 4 ** (1 / 3), rel=0.01)
    assert highest(64_000, optim=Optim(learning_rate=1e-3)) == 1e-3


@pytest.mark.parametrize(
    ("steps", "start", "language_model", "other"),
    [(2000, 0.0, 0.1, 0.1), (200, 0.0, 0.25, 0.1), (20, 0.0, 0.4, 0.1), (20, 0.3, 0.7, 0.4), (20, 0.95, 1.0, 1.0)],
)
def test_a_short_run_of_a_language_model_takes_time_to_be_cut(
    steps: int, start: float, language_model: float, other: float, masked_lm: Path, encoder: Path, corpus: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Fifty steps, as far as two fifths of them go; a tenth in long ones, and of other models; it is written down."""
    for source, end in ((masked_lm, language_model), (encoder, other)):
        out = tmp_path / source.name
        options: dict[str, Any] = {"teacher": str(source), "data": str(corpus), "out": str(out)}
        cutting = Cutting(ramp_start=start)
        recipe = Recipe(**options, target=["0.5"], steps=steps, text=Text(length=32), cutting=cutting)
        made = prepare(recipe, resume=False, texts=None)
        assert made.recipe.cutting.ramp_end == pytest.approx(end)
        assert made.schedule.last_cut == min(round(end * steps), steps - 1)
        assert yaml.safe_load((out / "recipe.yaml").read_text())["cutting"]["ramp_end"] == pytest.approx(end)
