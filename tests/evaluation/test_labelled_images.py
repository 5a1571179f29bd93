"""What a head says of labelled images is what it says of each alone; probes learn what they tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import homodistil
from conftest import coloured
from homodistil.cli import main
from homodistil.errors import UserError
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.labelled_images import open_labelled_images, probe_images
from homodistil.evaluation.models import open_model
from homodistil.evaluation.tasks import Splits
from zoo import tiny

NAMES = {0: "Cat", 1: "Dog", 2: "House"}


@pytest.fixture(scope="module")
def classifier(image_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny classifier of three classes with names."""
    folder = tmp_path_factory.mktemp("classifier")
    model = tiny("ViT", num_labels=3)
    model.config.id2label, model.config.label2id = NAMES, {name: number for number, name in NAMES.items()}
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def said(classifier: Path, pictures: Path, image_processor: Any) -> dict[Path, int]:
    """The class of each picture by the classifier, one at a time."""
    model = tiny("ViT").from_pretrained(classifier).eval()
    made = {}
    for file in sorted(pictures.rglob("*.png")):
        pixels = image_processor(Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            made[file] = int(model(pixel_values=pixels).logits.argmax())
    assert len(set(made.values())) > 1
    return made


def _in_folders(files: dict[Path, int], names: Sequence[str], folder: Path) -> Path:
    for k, (file, label) in enumerate(files.items()):
        place = folder / "deep" / names[label]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{k}.png")
    return folder


def _accuracy(model: Path, data: Path, **options: Any) -> dict[str, float]:
    (found,) = (r for r in evaluate(model, answers=str(data), time=False, **options) if "answers" in r["measure"])
    assert found["measure"] == f"{data.name} answers"
    values: dict[str, float] = found["values"]
    return values


@pytest.mark.parametrize("kind", ["folders by name", "folders by number", "a dataset's names", "numbers", "words"])
def test_classes_are_those_that_the_head_says_of_each_image_alone(
    kind: str, classifier: Path, said: dict[Path, int], tmp_path: Path
) -> None:
    """However their labels are given; every third one is another class than the head says."""
    labels = {file: (k + (row % 3 == 0)) % 3 for row, (file, k) in enumerate(said.items())}
    data, options = tmp_path / "data", {}
    if kind.startswith("folders"):
        _in_folders(labels, ["cat", "dog", "HOUSE"] if kind == "folders by name" else ["0", "1", "2"], data)
    else:
        order = ["house", "cat", "dog"]
        given: list[Any] = [order.index(NAMES[k].lower()) for k in labels.values()]
        if kind != "a dataset's names":
            given = [NAMES[k] if kind == "words" else k for k in labels.values()]
        made = datasets.Dataset.from_dict({"label": [str(f) for f in labels], "kind": given})
        made = made.cast_column("label", datasets.Image())
        if kind == "a dataset's names":
            made = made.cast_column("kind", datasets.ClassLabel(names=order))
        made.save_to_disk(str(data))
        # the image column may have the label's usual name
        options = {"image_column": "label", "label": "kind"}
    made_of_it = _accuracy(classifier, data, **options)
    assert made_of_it["accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert made_of_it["score"] == pytest.approx(50 * (made_of_it["accuracy"] + made_of_it["macro_f1"]))


def test_a_student_is_scored_beside_its_teacher_and_again_when_an_image_changes(
    classifier: Path, said: dict[Path, int], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the classes' names, which a student keeps; other bytes in a file of the same name are another image."""
    data = _in_folders(said, list(NAMES.values()), tmp_path / "pets")
    student = homodistil.distil(
        classifier, pictures, "0.5", tmp_path / "run", steps=3, batch=8, precision="fp32"
    ).students["0.5"]
    numbers = tmp_path / "numbers.json"
    words = [str(student), "--against", str(classifier), "--answers", str(data), "--no-speed", "--json", str(numbers)]
    found: list[dict[str, Any]] = []
    for _ in range(2):
        assert main(["evaluate", *words]) == 0
        assert "pets answers" in capsys.readouterr().out
        records = json.loads(numbers.read_text())["records"]
        found.append({r["model"]: r["values"] for r in records if r["measure"] == "pets answers"})
        assert len([r for r in records if r["measure"] == "pets answers"]) == 2
    assert found[0] == found[1]
    assert found[0][str(classifier)]["accuracy"] == 1
    first, other = (next(data.rglob(f"{k}.png")) for k in (0, 1))
    first.write_bytes(other.read_bytes())
    assert main(["evaluate", *words]) == 0
    records = json.loads(numbers.read_text())["records"]
    assert len([r for r in records if r["measure"] == "pets answers"]) == 4


def test_images_that_cannot_be_decoded_do_not_count_and_are_counted(
    classifier: Path, said: dict[Path, int], tmp_path: Path
) -> None:
    """Torn ones, whose headers are whole; where none is left there is nothing to score."""
    data = _in_folders(said, list(NAMES.values()), tmp_path / "pets")
    files = sorted(data.rglob("*.png"))
    for file in files[::4]:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.warns(UserWarning, match=f"{len(files[::4])} of {len(files)} images of pets cannot be decoded"):
        assert _accuracy(classifier, data)["accuracy"] == 1
    for file in files:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=f"none of its {len(files)} images can be decoded"):
        _accuracy(classifier, data)


@pytest.mark.parametrize("kind", ["a folder", "two folders", "a dataset"])
def test_a_probe_learns_what_class_tokens_tell(
    kind: str, image_processor: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shades are told apart, labels that no image tells are not; of two folders the one is learnt, the other scored."""
    model = tmp_path / "model"
    tiny("ViT encoder").save_pretrained(model)
    image_processor.save_pretrained(model)
    data, shades = tmp_path / "data", (0, 90, 180)
    if kind == "two folders":
        coloured(data / "train", 120, shades, 0)
        coloured(data / "validation", 30, shades, 1)
    else:
        coloured(data, 150, shades, 0)
    if kind == "a dataset":
        files = sorted(data.rglob("*.png"))
        made = datasets.Dataset.from_dict({"image": list(map(str, files)), "label": [f.parent.name for f in files]})
        data = tmp_path / "saved"
        made.cast_column("image", datasets.Image()).save_to_disk(str(data))
    assert main(["evaluate", str(model), "--probes", str(data), "--no-speed"]) == 0
    assert f"{data.name} probe" in capsys.readouterr().out
    opened = open_model(str(model))
    splits = open_labelled_images(str(data), opened, learnt=True)
    assert (len(splits.train), len(splits.evaluated["validation"])) == (120, 30)
    made_of_it = probe_images(opened, splits)
    assert made_of_it["accuracy"] > 0.95
    few = open_labelled_images(str(data), opened, learnt=True, limit=9)
    assert len(few.train) == 9
    # all but those to learn from have answers
    assert len(open_labelled_images(str(data), opened).evaluated["validation"]) == (
        30 if kind == "two folders" else 150
    )

    draw = np.random.default_rng(0)
    thrown = {
        split: rows.remove_columns("label").add_column("label", draw.integers(3, size=len(rows)).tolist())
        for split, rows in {"train": splits.train, **splits.evaluated}.items()
    }
    by_chance = probe_images(opened, Splits(splits.task, thrown["train"], {"validation": thrown["validation"]}))
    assert by_chance["accuracy"] < 0.7


def test_a_class_without_an_image_that_can_be_decoded_is_not_learnt(classifier: Path, tmp_path: Path) -> None:
    """It is said in words which one is missing."""
    data = tmp_path / "data"
    coloured(data / "train", 20, (0, 180), 0)
    coloured(data / "validation", 10, (0, 180), 1)
    for file in (data / "train" / "shade 1").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.warns(UserWarning, match="10 of 20"), pytest.raises(UserError, match="no training row has: 'shade 1'"):
        evaluate(classifier, probes=str(data), time=False)
    for file in (data / "train" / "shade 1").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no training row has: 'shade 1'"):
        evaluate(classifier, probes=str(data), time=False, say=lambda what: pytest.fail(what))


def test_images_whose_label_is_not_told_are_refused(
    classifier: Path, said: dict[Path, int], pictures: Path, image_processor: Any, masked_lm: Path, tmp_path: Path
) -> None:
    """No folder, no column, no class of the head's, no head; before anything is measured."""
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(next(iter(said)), flat)
    (tmp_path / "one" / "Cat").mkdir(parents=True)
    shutil.copy(next(iter(said)), tmp_path / "one" / "Cat")
    files = [str(file) for file in said]
    bare = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    bare.save_to_disk(str(tmp_path / "bare"))
    bare.add_column("kind", [None] * len(files)).save_to_disk(str(tmp_path / "empty"))
    headless = tmp_path / "headless"
    tiny("ViT encoder").save_pretrained(headless)
    image_processor.save_pretrained(headless)
    cases: tuple[tuple[Path, Path, dict[str, Any], str], ...] = (
        (classifier, flat, {}, r"it lies in none below"),
        (classifier, next(flat.iterdir()), {}, r"it lies in none below"),
        (classifier, tmp_path / "one", {}, "has 1 labelled rows"),
        (classifier, tmp_path / "bare", {}, "(?s)label column 'label'.*Give a dataset with labels"),
        (classifier, tmp_path / "bare", {"label": "image"}, "label column 'image'"),
        (classifier, tmp_path / "empty", {}, "for example --label kind"),
        (classifier, tmp_path / "empty", {"label": "kind"}, "rows without a label"),
        (classifier, pictures, {}, "(?s)does not tell 'deep'.*Cat, Dog, House, or the number of one, 0 to 2"),
        (headless, pictures, {}, "this one tells nothing of the kind"),
        (masked_lm, pictures, {}, "Cannot use .* as a task"),
    )
    for model, data, options, pattern in cases:
        with pytest.raises(UserError, match=pattern) as caught:
            evaluate(model, answers=str(data), time=False, say=lambda what: pytest.fail(what), **options)
        assert len(str(caught.value).splitlines()) == 3
