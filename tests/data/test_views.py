"""From images to batches and to students: views are a function of seed and place, and so are runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessorPil, ViTModel

import homodistil
from homodistil.cli import main
from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.data.collate import batches
from homodistil.data.views import View, ViewCollator, Views, load_views
from homodistil.distill import arrival, learning, loop
from homodistil.distill.prepare import Run, prepare
from homodistil.errors import RunStopped, UserError
from homodistil.images import open_images
from homodistil.models.student import save_student
from homodistil.models.teacher import load_teacher
from homodistil.reading import build
from homodistil.settings import Images
from zoo import tiny

QUICK: dict[str, Any] = {"steps": 12, "batch": 6, "precision": "fp32", "log_every": 3}


def _saved(name: str, folder: Path, processor: Any, **changes: Any) -> Path:
    tiny(name, **changes).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, image_processor: Any) -> Path:
    """The folder of a tiny ViT with classes."""
    return _saved("ViT", tmp_path_factory.mktemp("classifier"), image_processor)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, image_processor: Any) -> Path:
    """The folder of a tiny bare ViT."""
    return _saved("ViT encoder", tmp_path_factory.mktemp("encoder"), image_processor)


def _collator(pictures: Path, processor: Any, **options: Any) -> ViewCollator:
    return ViewCollator(open_images(str(pictures), "image"), processor, 17, 1, Images(**options), seed=3)


def test_batches_can_be_entered_anywhere(pictures: Path, image_processor: Any) -> None:
    """Starting at the k-th batch gives what reaching it gives, over the ends of epochs, pieces included."""
    corpus, collate = load_views(
        str(pictures), image_processor, channels=3, tokens=17, class_tokens=1, options=Images(), seed=3
    )
    first = list(itertools.islice(batches(corpus.train, collate, 7, start=0), 20))
    for start in (1, 8, 19):
        later = next(batches(corpus.train, collate, 7, start=start))
        assert later.keys() == first[start].keys() == {"pixel_values", "attention_mask", "ordinary"}
        assert all(torch.equal(later[k], first[start][k]) for k in later)
    assert first[0]["ordinary"].sum(1).tolist() == [16] * 7


def test_each_epoch_has_each_image_once_and_none_that_is_held_out(pictures: Path, image_processor: Any) -> None:
    """Every view is another draw; what is held out is looked at as it is."""
    corpus, _ = load_views(
        str(pictures), image_processor, channels=3, tokens=17, class_tokens=1, options=Images(heldout=0.2), seed=3
    )
    assert corpus.mean_tokens == 17
    assert all(view.draw is None for view in corpus.heldout)
    held = {view.row for view in corpus.heldout}
    views = list(itertools.islice(corpus.train.sequences(0), 96))
    for epoch in (views[:48], views[48:]):
        assert {view.row for view in epoch} | held == set(range(60))
    assert len({view.draw for view in views}) == 96
    assert [v.row for v in views[:48]] != [v.row for v in views[48:]]


def test_a_piece_keeps_its_share_and_another_draw_is_another_piece(pictures: Path, image_processor: Any) -> None:
    """At least the asked-for share of the area, to a row or column of pixels; never outside; the same draw the same,
    and of another seed another.
    """
    collate = _collator(pictures, image_processor, crop=0.4, flip=0.0)
    for size in ((60, 40), (200, 9), (1, 1)):
        rows, columns = np.mgrid[: size[1], : size[0]]
        image = Image.fromarray(np.stack([columns, rows, rows * 0 + 7], -1).astype(np.uint8))
        pieces = [collate.look(image, draw) for draw in range(30)]
        for piece in pieces:
            least = 0.4 * size[0] * size[1] - piece.width - piece.height
            assert least <= piece.width * piece.height <= size[0] * size[1]
            # a piece: neighbours stay neighbours, and nothing black was added at an edge
            pixels = np.asarray(piece)
            assert (np.diff(pixels[..., 0].astype(int), axis=1) == 1).all()
            assert (pixels[..., 2] == 7).all()
        again = [collate.look(image, draw) for draw in range(30)]
        assert [p.tobytes() for p in pieces] == [p.tobytes() for p in again]
        assert len({p.tobytes() for p in pieces}) > 20 or size == (1, 1)
        others = [replace(collate, seed=4).look(image, draw).tobytes() for draw in range(30)]
        assert others != [p.tobytes() for p in pieces] or size == (1, 1)


def test_without_crops_and_flips_every_view_is_the_image(pictures: Path, image_processor: Any) -> None:
    """Both can be switched off, and mirrors switched always on."""
    image = Image.open(sorted(pictures.rglob("*.png"))[0])
    plain, mirrored = (_collator(pictures, image_processor, crop=1.0, flip=share) for share in (0.0, 1.0))
    for draw in range(10):
        assert plain.look(image, draw).tobytes() == image.tobytes()
        assert mirrored.look(image, draw).tobytes() == image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()


def test_a_torn_image_is_left_out_with_a_word(pictures: Path, image_processor: Any, tmp_path: Path) -> None:
    """The batch is smaller by it, each time; it is named once. A batch of nothing else is refused."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    torn = sorted(folder.rglob("*.png"))[2]
    torn.write_bytes(torn.read_bytes()[:60])
    collate = _collator(folder, image_processor)
    with pytest.warns(UserWarning, match=rf"{torn.name} \(1 so far\)"):
        assert len(collate([View(1), View(2), View(3)], 0)["pixel_values"]) == 2
    assert len(collate([View(2), View(3)], 0)["pixel_values"]) == 1
    with pytest.raises(UserError, match=f"Cannot decode any of 2 images(?s:.*){torn.name}"):
        collate([View(2), View(2, 5)], 0)


def test_torn_images_are_not_held_out(pictures: Path, image_processor: Any, tmp_path: Path) -> None:
    """Others are, in their place; a run would end where it is first measured."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    files = sorted(folder.rglob("*.png"))
    for file in files[:-5]:
        file.write_bytes(file.read_bytes()[:60])
    options = {"channels": 3, "tokens": 17, "class_tokens": 1, "options": Images(), "seed": 0}
    with pytest.warns(UserWarning, match="Left out"):
        corpus, collate = load_views(str(folder), image_processor, **options)  # type: ignore[arg-type]
    assert len(collate(corpus.heldout, -1)["pixel_values"]) == len(corpus.heldout) == 3
    for file in files:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match="to hold out"), pytest.warns(UserWarning, match="Left out"):
        load_views(str(folder), image_processor, **options)  # type: ignore[arg-type]


def test_a_corpus_of_images_is_told_by_each_of_them(pictures: Path, image_processor: Any, tmp_path: Path) -> None:
    """Also by one that is learnt from."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    options = {"channels": 3, "tokens": 17, "class_tokens": 1, "options": Images(), "seed": 0}
    before, _ = load_views(str(folder), image_processor, **options)  # type: ignore[arg-type]
    again, _ = load_views(str(folder), image_processor, **options)  # type: ignore[arg-type]
    files = sorted(folder.rglob("*.png"))
    learnt = next(row for row in range(len(files)) if View(row) not in before.heldout)
    shutil.copy(files[learnt - 1], files[learnt])
    after, _ = load_views(str(folder), image_processor, **options)  # type: ignore[arg-type]
    assert before.heldout == after.heldout
    assert before.identity == again.identity != after.identity


def test_order_depends_on_the_seed() -> None:
    """Another seed, another order."""
    orders = [[v.row for v in itertools.islice(Views(range(50), seed).sequences(0), 50)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def _run(teacher: Path, pictures: Path, out: Path, **options: Any) -> Run:
    values = {"teacher": str(teacher), "data": str(pictures), "target": "0.5", "steps": 10, "out": str(out), "batch": 4}
    return prepare(build({**values, "precision": "fp32", **options}), resume=False, texts=None)


@pytest.mark.parametrize("name", ["ViT", "ViT encoder", "DeiT", "DeiT of one token"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_uncut_student_has_no_loss_and_a_cut_one_gradients_everywhere(
    name: str, precision: str, pictures: Path, image_processor: Any, tmp_path: Path
) -> None:
    """All terms are exactly 0.0 before a cut; after one, all are above it and reach every parameter."""
    run = _run(_saved(name, tmp_path / "teacher", image_processor), pictures, tmp_path / "run", precision=precision)
    batch = next(batches(run.corpus.train, run.collate, 4, start=0))

    def terms() -> dict[str, torch.Tensor]:
        with run.precision:
            with torch.no_grad():
                theirs = run.runner(run.teacher.model, batch)
            return run.objective.terms(run.runner(run.state.student, batch), theirs, batch, run.descent)

    assert {n: t.item() for n, t in terms().items()} == dict.fromkeys(
        ("prediction", "hidden", "attention", "embedding"), 0.0
    )
    layout, student = run.state.layout, run.state.student
    shape = {"hidden": 24, "heads": 3, "head_dim": 8, "ffn": 40}
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), shape), compensate=True)
    after = terms()
    assert all(term > 1e-5 for term in after.values())
    run.objective.total(after).backward()  # type: ignore[no-untyped-call]
    assert [n for n, p in student.named_parameters() if p.grad is None] == []


def test_an_encoder_is_known_by_its_class_token(encoder: Path, pictures: Path, tmp_path: Path) -> None:
    """What is compared in a batch is what users read: the class token's state after the last norm."""
    run = _run(encoder, pictures, tmp_path / "run")
    assert (run.teacher.kind, run.teacher.pooling) == ("similarity", "cls")
    batch = next(batches(run.corpus.train, run.collate, 4, start=0))
    with torch.no_grad():
        made = run.runner(run.teacher.model, batch)
        answers = run.objective.answers(made, made)
        plain = ViTModel.from_pretrained(encoder)(pixel_values=batch["pixel_values"]).last_hidden_state[:, 0]
    assert answers is not None
    torch.testing.assert_close(answers[1], torch.nn.functional.normalize(plain, dim=-1))


OPEN = """
import sys, torch
from PIL import Image
from pathlib import Path
from transformers import AutoImageProcessor, AutoModelForImageClassification
student, picture, out = sys.argv[1:]
model, info = AutoModelForImageClassification.from_pretrained(student, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
pixels = AutoImageProcessor.from_pretrained(student)(Image.open(picture).convert("RGB"), return_tensors="pt")
with torch.no_grad():
    torch.save(model.eval()(**pixels).logits, out)
assert "homodistil" not in sys.modules
"""


def test_a_fresh_process_opens_the_student_and_computes_the_same(
    classifier: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain transformers makes pixels and logits out of the student's folder; its card tells of images."""
    kept: dict[str, Any] = {}

    def save(path: Path, student: Any, *rest: Any) -> None:
        kept["student"] = student
        save_student(path, student, *rest)

    monkeypatch.setattr(arrival, "save_student", save)
    target = "hidden=36,heads=3,ffn=64"
    result = homodistil.distil(classifier, pictures, target, tmp_path / "run", **QUICK)
    picture = next(pictures.rglob("*.png"))
    words = [str(result.students[target]), str(picture), str(tmp_path / "said.pt")]
    done = subprocess.run([sys.executable, "-c", OPEN, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = load_teacher(str(classifier)).processor(Image.open(picture).convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        expected = kept["student"].eval()(**pixels).logits
    torch.testing.assert_close(torch.load(tmp_path / "said.pt"), expected, rtol=1e-5, atol=1e-5)
    assert 0 <= result.heldout[target]["agreement"] <= 1
    card = (result.students[target] / "README.md").read_text()
    assert "17 tokens a sequence" in card
    assert f"Images: `{pictures.name}`" in card
    assert "plain text" not in card
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["tokens"] == 12 * 6 * 17
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page")]) == 0


def test_a_stopped_run_goes_on_to_the_same_student(
    encoder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, pieces and mirrors included."""
    whole = homodistil.distil(encoder, pictures, "0.5", tmp_path / "whole", **QUICK)
    real = learning.learn

    def learn(run: Any, batch: Any, step: int, **options: Any) -> Any:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batch, step, **options)

    monkeypatch.setattr(loop, "learn", learn)
    with pytest.raises(RunStopped, match="Stopped at step 5 of 12"):
        homodistil.distil(encoder, pictures, "0.5", tmp_path / "stopped", **QUICK)
    resumed = homodistil.resume(tmp_path / "stopped")
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (resumed.students["0.5"] / name).read_bytes() == (whole.students["0.5"] / name).read_bytes()
    assert resumed.heldout == whole.heldout


def test_a_run_may_start_from_a_student_of_its_teacher(
    classifier: Path, pictures: Path, image_processor: Any, tmp_path: Path
) -> None:
    """A narrower one goes on; one that cuts images into other patches is refused."""
    half = homodistil.distil(classifier, pictures, "0.5", tmp_path / "half", **QUICK).students["0.5"]
    result = homodistil.distil(classifier, pictures, "0.5", tmp_path / "quarter", student=str(half), **QUICK)
    assert ViTForImageClassification.from_pretrained(result.students["0.5"]).config.hidden_size == 12
    other = _saved("ViT", tmp_path / "other", image_processor, patch_size=8)
    with pytest.raises(UserError, match="size of images and patches"):
        homodistil.distil(classifier, pictures, "1.0", tmp_path / "no", student=str(other), **QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": {"length": 64}}, r"text.length = 64(?s:.*)reads images"),
        ({"text": {"stream": True}}, r"text.stream = True"),
        ({"trim_vocab": True}, "Cannot read text(?s:.*)--trim_vocab"),
        ({"images": {"crop": 0}}, "images.crop = 0"),
        ({"images": {"flip": 1.5}}, "images.flip = 1.5"),
        ({"images": {"heldout": 1}}, "images.heldout = 1"),
        ({"images": {"crops": 1}}, "Did you mean 'crop'"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    options: dict[str, Any], said: str, classifier: Path, pictures: Path, tmp_path: Path
) -> None:
    """Nothing is passed over in silence, and nothing is written."""
    with pytest.raises(UserError, match=said):
        homodistil.distil(classifier, pictures, "0.5", tmp_path / "run", **QUICK, **options)
    assert not (tmp_path / "run").exists()


def test_text_and_images_are_told_apart(
    classifier: Path, masked_lm: Path, corpus: Path, pictures: Path, tmp_path: Path
) -> None:
    """Text for a teacher of images, images for one of text, and options of images for text: each is said."""
    cases: tuple[tuple[Path, Any, str, dict[str, Any]], ...] = (
        (classifier, corpus, r"1 \.txt(?s:.*)a teacher that reads text", {}),
        (classifier, ["a cat", "a dog"], "must lie on a disk", {}),
        (masked_lm, pictures, r"no text file, but \.png", {"text": {"length": 32}}),
        (masked_lm, corpus, r"images.flip = 0.0(?s:.*)reads text", {"images": {"flip": 0.0}}),
    )
    for teacher, data, said, options in cases:
        with pytest.raises(UserError, match=said):
            homodistil.distil(teacher, data, "0.5", tmp_path / "run", **QUICK, **options)
    assert not (tmp_path / "run").exists()


def test_the_vocabulary_of_a_teacher_of_images_cannot_be_trimmed(
    classifier: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by itself nor in a plan."""
    for words in (
        ["trim", classifier, "--data", corpus, "--out", tmp_path / "out"],
        ["plan", classifier, "--target", "0.5", "--data", corpus],
    ):
        assert main([str(word) for word in words]) == 2
        assert "This model reads images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_too_few_images_are_refused(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    """One cannot be learnt from and held out."""
    (tmp_path / "one").mkdir()
    shutil.copy(next(pictures.rglob("*.png")), tmp_path / "one")
    with pytest.raises(UserError, match="it holds 1 image"):
        homodistil.distil(classifier, tmp_path / "one", "0.5", tmp_path / "run", **QUICK)


def test_a_teacher_needs_an_image_processor_of_its_size(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    """Without one, and with one that makes images of another size: refused before anything is written."""
    teacher = tmp_path / "teacher"
    shutil.copytree(classifier, teacher)
    (teacher / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json"):
        homodistil.distil(teacher, pictures, "0.5", tmp_path / "run", **QUICK)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(teacher)
    with pytest.raises(UserError, match=r"makes them 3 x 32 x 32, and it reads 3 x 24 x 24"):
        homodistil.distil(teacher, pictures, "0.5", tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_student_of_text_is_none_of_images(masked_lm: Path, classifier: Path, pictures: Path, tmp_path: Path) -> None:
    """A teacher and a first student that read different things are refused."""
    with pytest.raises(UserError, match="read and predict what its teacher, a ViT"):
        homodistil.distil(classifier, pictures, "1.0", tmp_path / "run", student=str(masked_lm), **QUICK)
