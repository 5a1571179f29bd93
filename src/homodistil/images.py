"""Finding the user's images: folders and datasets become rows that are decoded one by one, when they are needed."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os.path import exists, expanduser
from pathlib import Path

import datasets
from datasets import Dataset
from PIL import Image, ImageOps

from homodistil.errors import UserError
from homodistil.text import from_disk, from_hub

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Of the files that count as images; others in a folder are passed over."""
_DEEP = ("I", "F")
"""How the modes of images begin that have more than 8 bits a channel: to 8 bits they would be clipped, not scaled."""


@dataclass(frozen=True)
class ImageRows:
    """Images that lie on a disk.

    Attributes:
        source: where they come from.
        rows: a dataset with a column `image` of paths or bytes, and where labels were asked for a column `label`.
        channels: 3 for colours, 1 for grey.
        digest: tells other images apart, without reading them: files by their number and sizes.
    """

    source: str
    rows: Dataset
    channels: int
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """What a row is called in messages: its file, or its place in the dataset."""
        image = self.rows[row]["image"]
        # rows of a dataset may hold no image at all
        return (image and image["path"]) or f"row {row} of {self.source}"

    def read(self, row: int) -> Image.Image | None:
        """The image of a row, upright, in the channels that are asked for; None if it cannot be decoded."""
        try:
            with _opened(self.rows[row]["image"]) as image:
                if image.mode.startswith(_DEEP):
                    return None
                return ImageOps.exif_transpose(image).convert("RGB" if self.channels == 3 else "L")
        except _BROKEN:
            return None


# what Pillow raises of a file that is none of its formats, torn, or of an absurd size
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, TypeError, Image.DecompressionBombError)


def open_images(
    data: str, column: str, *, label: str | None = None, channels: int = 3, option: str = "--images.column"
) -> ImageRows:
    """The images of a folder or a dataset. Of files the headers are read, and nothing is decoded.

    Args:
        data: a folder of images, however deep, a saved dataset, or a hub dataset (`name` or `name:config`, its split
            `train`).
        column: the image column of a dataset; folders have none.
        label: the label column of a dataset, if labels are asked for; of a folder they are then the names of the
            folders in which its images lie.
        channels: that the images are to have, 3 or 1.
        option: what names the column on the command line.

    Raises:
        UserError: nothing is there, there are no images, there is no such split or column, a file is no whole image,
            or lies in no folder that could be its label.
    """
    path = Path(expanduser(data))
    found = from_disk(path) if exists(path) else from_hub(data, stream=False)
    if found is None:
        files = _files(path)
        _refuse_broken(files)
        columns = {"image": [str(file) for file in files]}
        if label is not None:
            columns["label"] = [_folder_of(file, path) for file in files]
        rows = Dataset.from_dict(columns)
        sizes = hashlib.sha256(repr([file.stat().st_size for file in files]).encode()).hexdigest()[:16]
        return ImageRows(data, rows.cast_column("image", datasets.Image(decode=False)), channels, sizes)
    pictures = [name for name, feature in found.features.items() if isinstance(feature, datasets.Image)]
    if column not in pictures:
        raise UserError(
            f"Cannot find the image column {column!r} in {data}.",
            f"This teacher reads images; the dataset's columns of images are {', '.join(pictures) or 'none'}.",
            f"Name it with {option}, for example {option} {pictures[0]}."
            if pictures
            else "Give a folder of images, or a dataset with a column of them.",
        )
    others = [name for name in found.column_names if name != column]
    if label is not None and label not in others:
        raise UserError(
            f"Cannot find the label column {label!r} in {data}.",
            f"Each image must have a label; the other columns are {', '.join(others) or 'none'}.",
            f"Name it, for example --label {others[0]}." if others else "Give a dataset with labels.",
        )
    names = {column: "image"} | ({} if label is None else {label: "label"})
    rows = found.select_columns(list(names)).cast_column(column, datasets.Image(decode=False))
    return ImageRows(data, rows.rename_columns(names), channels, rows._fingerprint)


def _folder_of(file: Path, path: Path) -> str:
    """The name of the folder in which an image lies, below the one that was given."""
    if file.parent in (path, path.parent):
        raise UserError(
            f"Cannot tell the label of the image {file}.",
            f"Labels are the names of the folders in which images lie, and it lies in none below {path}.",
            "Put the images of each class into a folder that is called like it.",
        )
    return file.parent.name


def _files(path: Path) -> list[Path]:
    inside = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    files = sorted(f for f in inside if f.suffix.lower() in ENDINGS and not f.name.startswith("."))
    if not files:
        others = Counter(f.suffix.lower() or f.name for f in inside).most_common(3)
        raise UserError(
            f"Cannot find images in {path}: it holds "
            + (", ".join(f"{count} {ending}" for ending, count in others) if others else "nothing")
            + ".",
            f"This teacher reads images, of which known endings are {', '.join(ENDINGS)}.",
            "Give a folder of images, or a teacher that reads text.",
        )
    return files


def _refuse_broken(files: list[Path]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = pool.map(_fault, files, chunksize=64)
        faults = [(file, fault) for file, fault in zip(files, said, strict=True) if fault]
    if not faults:
        return
    file, fault = faults[0]
    raise UserError(
        f"Cannot read the image {file}: {fault}"
        + (f" So are {len(faults) - 1} more: " if faults[1:] else "")
        + ", ".join(str(other) for other, _ in itertools.islice(faults[1:], 2)),
        "Every image file must be whole, with 8 bits a channel.",
        "Convert or delete it.",
    )


def _fault(file: Path) -> str | None:
    """What a file's header says against it."""
    try:
        with Image.open(file) as image:
            return f"it has the mode {image.mode}." if image.mode.startswith(_DEEP) else None
    except _BROKEN as error:
        return "it is empty." if not file.stat().st_size else f"it is broken ({type(error).__name__})."


def _opened(image: dict[str, str | bytes | None]) -> Image.Image:
    content = image["bytes"]
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else str(image["path"]))
