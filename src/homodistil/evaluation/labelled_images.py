"""Images with labels: where they lie, and what the head of a model says of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from os.path import expanduser
from pathlib import Path

import torch
from datasets import Dataset, Value

from homodistil.errors import UserError
from homodistil.evaluation.labels import refuse_few, refuse_unfit
from homodistil.evaluation.models import Opened
from homodistil.evaluation.tasks import Splits, Task
from homodistil.evaluation.training import BATCH
from homodistil.images import ImageRows, open_images


def open_labelled_images(name: str, opened: Opened, *, column: str = "image", label: str = "label") -> Splits:
    """All images of a folder or dataset, with the class of each.

    Args:
        name: a folder with a folder of images for each class, called like it or by its number; or a dataset that is
            saved or on the hub.
        opened: a model that reads them.
        column: the image column of a dataset.
        label: its label column.

    Raises:
        UserError: they cannot be found or read, are fewer than two, or have no label, or one that is no class.
    """
    channels = opened.model.config.num_channels
    rows = open_images(name, column, label=label, channels=channels, option="--image-column").rows
    called = Path(expanduser(name)).resolve().name
    task = Task(name=called, columns=("image",), labels="classes", metrics=("accuracy", "macro_f1"))
    refuse_few(task.name, "labelled", len(rows))
    refuse_unfit(task, "labelled", rows["label"][:])
    if all(isinstance(folder, str) and folder.isdecimal() for folder in rows["label"][:]):
        rows = rows.cast_column("label", Value("int64"))
    return Splits(task, Dataset.from_dict({}), {"validation": rows})


def contents(rows: Dataset) -> Iterator[tuple[object, str]]:
    """Of each image its label, and what tells its bytes from others."""
    for row in rows:
        image = row["image"] or {}
        held = image.get("bytes")
        content = held if held is not None else Path(image["path"]).read_bytes() if image.get("path") else b""
        yield row["label"], hashlib.sha256(content).hexdigest()


@torch.no_grad()
def classes_said(opened: Opened, rows: Dataset, name: str) -> tuple[torch.Tensor, list[int]]:
    """Logits (images, classes), and which rows they are of.

    Raises:
        UserError: none of the images can be decoded.

    Warns:
        UserWarning: some cannot.
    """
    images = ImageRows(name, rows, opened.model.config.num_channels, "")
    said, read = [], []
    for at in range(0, len(rows), BATCH):
        found = [(row, image) for row in range(at, min(at + BATCH, len(rows))) if (image := images.read(row))]
        if found:
            pixels = opened.processor([image for _, image in found], return_tensors="pt")["pixel_values"]
            said.append(opened.model(pixel_values=pixels.to(opened.model.device)).logits.float().cpu())
            read += [row for row, _ in found]
    if not read:
        raise UserError(
            f"Cannot score on {name}: none of its {len(rows):,} images can be decoded.",
            "Every image must be whole, with 8 bits a channel.",
            "Convert them.",
        )
    if missing := len(rows) - len(read):
        warnings.warn(
            f"{missing:,} of {len(rows):,} images of {name} cannot be decoded, and do not count", stacklevel=2
        )
    return torch.cat(said), read
