"""A new head, and the model below it, learn what images tell of their classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import coloured
from homodistil.cli import main
from homodistil.evaluation.finetune_images import finetune_images
from homodistil.evaluation.labelled_images import open_labelled_images
from homodistil.evaluation.models import open_model
from homodistil.evaluation.tasks import Splits
from homodistil.evaluation.training import Settings
from zoo import tiny

LEARN = Settings(learning_rate=3e-3, epochs=3, batch=8)


@pytest.mark.parametrize("name", ["ViT encoder", "ViT", "DeiT"])
def test_fine_tuning_learns_what_images_tell(
    name: str, image_processor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever head the model had, or one that only predicts; the same by a seed; nothing where labels are thrown."""
    model, data = tmp_path / "model", tmp_path / "data"
    tiny(name).save_pretrained(model)
    image_processor.save_pretrained(model)
    coloured(data / "train", 120, (0, 90, 180), 0)
    coloured(data / "validation", 30, (0, 90, 180), 1)
    opened = open_model(str(model))
    splits = open_labelled_images(str(data), opened, learnt=True)
    first, again, other = (finetune_images(opened, splits, LEARN, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert min(first["accuracy"], other["accuracy"]) > 0.9
    # what was opened to be measured has learnt nothing
    before = open_model(str(model)).model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in opened.model.state_dict().items())

    order = np.random.default_rng(0).permutation(len(splits.train))
    thrown = splits.train.remove_columns("label").add_column("label", splits.train.select(order)["label"][:])
    by_chance = finetune_images(opened, Splits(splits.task, thrown, splits.evaluated), LEARN, seed=0)
    assert by_chance["accuracy"] < 0.7

    numbers = tmp_path / "numbers.json"
    words = [str(model), "--tasks", str(data), "--no-speed", "--seeds", "2", "--grid", "--limit", "40"]
    assert main(["evaluate", *words, "--json", str(numbers)]) == 0
    assert "data" in capsys.readouterr().out
    records = [r for r in json.loads(numbers.read_text())["records"] if r["measure"] == "data"]
    assert [(r["seed"], r["settings"]["rows"], r["settings"]["length"]) for r in records] == [(0, 40, 0), (1, 40, 0)]


def test_fine_tuning_passes_over_images_that_cannot_be_decoded(image_processor: Any, tmp_path: Path) -> None:
    """Of those to learn from and of those that are scored, each by its own label still; they are counted."""
    model, data = tmp_path / "model", tmp_path / "data"
    tiny("ViT").save_pretrained(model)
    image_processor.save_pretrained(model)
    coloured(data / "train", 120, (0, 90, 180), 0)
    coloured(data / "validation", 30, (0, 90, 180), 1)
    opened = open_model(str(model))
    for file in sorted(data.rglob("*.png"))[::5]:
        file.write_bytes(file.read_bytes()[:60])
    splits = open_labelled_images(str(data), opened, learnt=True)
    with (
        pytest.warns(UserWarning, match="24 of 120 images of data"),
        pytest.warns(UserWarning, match="6 of 30 images of data"),
    ):
        assert finetune_images(opened, splits, LEARN, seed=0)["accuracy"] > 0.9
