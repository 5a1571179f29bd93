"""Models of images are measured by size, speed, and agreement with their teacher; the rest is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from scipy.stats import spearmanr

from homodistil.axes.layout import Layout
from homodistil.cli import main
from homodistil.compress.shrink import shrink
from homodistil.errors import UserError
from homodistil.evaluation.agreement import image_agreement
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.models import open_model
from homodistil.images import open_images
from zoo import tiny


def _saved(model: Any, folder: Path, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["ViT", "DeiT", "ViT encoder"])
def test_size_speed_and_agreement_are_measured(
    name: str, image_processor: Any, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy agrees wholly and a cut one less; operations are those of the plan; figures are beside the teacher's."""
    teacher = _saved(tiny(name), tmp_path / "teacher", image_processor)
    copied, smaller = tmp_path / "copy", tiny(name)
    shutil.copytree(teacher, copied)
    planned = shrink(smaller, "0.5")
    half = _saved(smaller, tmp_path / "half", image_processor)
    said = {}
    for student in (copied, half):
        words = ["evaluate", student, "--against", teacher, "--images", pictures, "--json", tmp_path / "numbers.json"]
        timed = name == "ViT" and student == half
        assert main([*map(str, words), *([] if timed else ["--no-speed"])]) == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in ("parameters", "hidden cka", "similarity"))
        assert ("ms, batch 1" in shown) == timed
        records = json.loads((tmp_path / "numbers.json").read_text())["records"]
        said[student] = {r["measure"]: r["values"] for r in records if r["model"] == str(student)}
    whole, less = (said[s]["agreement with the teacher"] for s in (copied, half))
    classes = {} if name == "ViT encoder" else {"top1": 1.0, "kl": 0.0}
    assert whole == pytest.approx({**classes, "hidden_cka": 1.0, "similarity": 1.0}, abs=1e-5)
    assert less["hidden_cka"] < 0.99
    assert less["similarity"] < 0.99
    assert said[half]["size"]["parameters"] == planned.parameters
    assert said[half]["size"]["flops_per_token"] == pytest.approx(planned.flops_per_token)
    assert planned.sequence == Layout.of(smaller).sequence == (18 if name == "DeiT" else 17)


@torch.no_grad()
def test_images_are_as_similar_as_their_class_tokens_say(image_processor: Any, pictures: Path, tmp_path: Path) -> None:
    """Over all pairs, in the order in which their cosines come."""
    smaller = tiny("ViT encoder")
    shrink(smaller, "0.5")
    folders = [_saved(m, tmp_path / str(k), image_processor) for k, m in enumerate((tiny("ViT encoder"), smaller))]
    images = open_images(str(pictures), "image")
    seen = [image for row in range(12) if (image := images.read(row))]
    opened = [open_model(str(folder)) for folder in folders]
    pixels, pairs = image_processor(seen, return_tensors="pt")["pixel_values"], torch.triu_indices(12, 12, 1)
    tokens = [one.model(pixel_values=pixels).last_hidden_state[:, 0] for one in opened]
    cosines = [torch.cosine_similarity(t[pairs[0]], t[pairs[1]], dim=-1).numpy() for t in tokens]
    found = image_agreement(opened[1], opened[0], seen)["similarity"]
    assert found == pytest.approx(spearmanr(*cosines).statistic, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ["sst2"]}, "that task is of text"),
        ({"pairs": ["stsb"]}, "Cannot use --pairs"),
        ({"text": "corpus.txt"}, "Cannot use --text"),
        ({"tasks": ["."], "columns": ["name"]}, "Cannot use --columns"),
        ({"tasks": ["."], "max_length": 64}, "Cannot use --max-length"),
        ({"images": "."}, "--against TEACHER"),
    ],
)
def test_what_is_for_text_is_refused(options: dict[str, Any], said: str, image_processor: Any, tmp_path: Path) -> None:
    """Before anything is measured."""
    model = _saved(tiny("ViT"), tmp_path / "model", image_processor)
    with pytest.raises(UserError, match=said):
        evaluate(str(model), **options, say=lambda what: pytest.fail(what))


def test_images_and_text_are_not_mixed(masked_lm: Path, image_processor: Any, pictures: Path, tmp_path: Path) -> None:
    """Images for a model of text, a teacher that reads something else, other patches, and images that are not there."""
    model = _saved(tiny("ViT"), tmp_path / "model", image_processor)
    coarse = _saved(tiny("ViT", patch_size=12), tmp_path / "coarse", image_processor)
    (tmp_path / "few").mkdir()
    shutil.copy(next(pictures.rglob("*.png")), tmp_path / "few")
    photos = datasets.Dataset.from_dict({"photo": [str(file) for file in pictures.rglob("*.png")]})
    photos.cast_column("photo", datasets.Image()).save_to_disk(str(tmp_path / "photos"))
    cases: tuple[tuple[Path, Path, Path | None, str], ...] = (
        (masked_lm, masked_lm, pictures, "Cannot use --images"),
        (model, masked_lm, None, "One reads text, and the other images"),
        (model, coarse, pictures, "17 and 5 tokens in an image"),
        (model, model, tmp_path / "few", "holds 1 images"),
        (model, model, tmp_path / "photos", "for example --image-column photo"),
    )
    for one, against, data, said in cases:
        with pytest.raises(UserError, match=said):
            evaluate(str(one), against=str(against), images=str(data) if data else None, time=False)
    photos_dir = tmp_path / "photos"
    found = evaluate(model, against=model, images=photos_dir, image_column="photo", time=False)
    assert found[-1]["values"]["hidden_cka"] == pytest.approx(1)
