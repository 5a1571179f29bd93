"""Finding images: every kind of data gives the same pictures, and what is none is named before a run starts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from homodistil.errors import UserError
from homodistil.images import open_images


@pytest.mark.parametrize("kind", ["folder", "saved paths", "saved bytes", "another column", "splits"])
def test_every_kind_of_data_holds_the_same_images(kind: str, pictures: Path, tmp_path: Path) -> None:
    """A folder, and saved datasets of paths or of bytes, whole or in splits, give equal pixels in one order."""
    files = sorted(pictures.rglob("*.png"))
    expected = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    data, column = str(pictures), "image"
    if kind != "folder":
        column = "photo" if kind == "another column" else "image"
        stored: list[Any] = [str(f) for f in files]
        if kind == "saved bytes":
            stored = [{"path": None, "bytes": f.read_bytes()} for f in files]
        made = datasets.Dataset.from_dict({column: stored, "label": list(range(len(files)))})
        made = made.cast_column(column, datasets.Image())
        data = str(tmp_path / "saved")
        (datasets.DatasetDict({"train": made}) if kind == "splits" else made).save_to_disk(data)
    images = open_images(data, column)
    assert len(images) == len(files)
    for row, pixels in enumerate(expected):
        read = images.read(row)
        assert read is not None
        np.testing.assert_array_equal(np.asarray(read), pixels)


def test_images_come_upright_and_in_the_asked_for_channels(tmp_path: Path) -> None:
    """Transparency and palettes become colours, colours grey where the model reads grey; a camera's turn counts."""
    photo = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    turned = photo.getexif()
    turned[274] = 6
    photo.save(tmp_path / "a.png", exif=turned)
    photo.convert("P").save(tmp_path / "b.gif")
    photo.convert("RGBA").save(tmp_path / "c.webp")
    images = open_images(str(tmp_path), "image")
    read = [images.read(row) for row in range(3)]
    assert [(r.size, r.mode) for r in read if r] == [((2, 4), "RGB"), ((4, 2), "RGB"), ((4, 2), "RGB")]
    grey = open_images(str(tmp_path), "image", channels=1).read(0)
    assert grey is not None
    assert grey.mode == "L"


def _bad(kind: str, folder: Path, pictures: Path) -> Path:
    folder.mkdir()
    good = next(pictures.rglob("*.png")).read_bytes()
    if kind == "missing":
        return folder / "nothing.png"
    if kind == "texts":
        (folder / "a.txt").write_text("a cat")
        (folder / "b.txt").write_text("a dog")
    if kind == "a text":
        (folder / "a.txt").write_text("a cat")
        return folder / "a.txt"
    if kind in ("broken", "no bytes", "deep"):
        (folder / "good.png").write_bytes(good)
    if kind == "broken":
        (folder / "bad.png").write_bytes(b"no picture")
        (folder / "worse.jpg").write_bytes(good[:10])
    if kind == "no bytes":
        (folder / "none.png").touch()
    if kind == "deep":
        Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(folder / "deep.png")
    if kind in ("no column", "texts in columns"):
        row = {"photo": [{"bytes": good, "path": None}] * 3} if kind == "no column" else {"image": ["a cat"] * 3}
        made = datasets.Dataset.from_dict(row)
        made = made.cast_column("photo", datasets.Image()) if kind == "no column" else made
        made.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    return folder


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("missing", "Cannot find the data"),
        ("nothing", "holds nothing"),
        ("texts", r"2 \.txt(?s:.*)teacher that reads text"),
        ("a text", r"1 \.txt"),
        ("broken", r"bad\.png: it is broken(?s:.*)So are 1 more: \S*worse\.jpg"),
        ("no bytes", r"none\.png: it is empty"),
        ("deep", r"deep\.png: it has the mode I;16(?s:.*)8 bits"),
        ("no column", "--images.column photo"),
        ("texts in columns", "columns of images are none"),
    ],
)
def test_what_holds_no_images_is_refused(kind: str, pattern: str, pictures: Path, tmp_path: Path) -> None:
    """Headers of all files are read at once, so that a run does not find out after hours."""
    with pytest.raises(UserError, match=pattern) as caught:
        open_images(str(_bad(kind, tmp_path / "data", pictures)), "image")
    assert len(str(caught.value).splitlines()) == 3


def test_a_column_that_is_not_there_is_named_as_the_command_names_it(tmp_path: Path, pictures: Path) -> None:
    """Two commands have two names for it."""
    made = datasets.Dataset.from_dict({"photo": [str(next(pictures.rglob("*.png")))]})
    made.cast_column("photo", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    for option in ("--images.column", "--image-column"):
        with pytest.raises(UserError, match=f"for example {option} photo"):
            open_images(str(tmp_path / "saved"), "image", option=option)


def test_an_image_that_is_torn_behind_its_header_is_none(tmp_path: Path) -> None:
    """Only decoding finds it, which is done as late as the image is needed."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(255, size=(40, 40, 3), dtype=np.uint8)).save(content, "png")
    (tmp_path / "a.png").write_bytes(content.getvalue()[:2000])
    assert open_images(str(tmp_path), "image").read(0) is None


def test_a_row_without_an_image_is_none_and_has_a_name(pictures: Path, tmp_path: Path) -> None:
    """A dataset may hold such rows: they are left out as torn ones are, and are called by their place."""
    rows = [str(next(pictures.rglob("*.png"))), None]
    datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "d"))
    images = open_images(str(tmp_path / "d"), "image")
    assert images.read(0) is not None
    assert images.read(1) is None
    assert images.name(1) == f"row 1 of {tmp_path / 'd'}"
