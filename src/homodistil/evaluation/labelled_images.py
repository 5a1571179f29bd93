"""Images with labels: where they lie, what the head of a model says of them, and what its embeddings tell."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from os.path import expanduser, isdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Value
from torch import Tensor

from homodistil.errors import UserError
from homodistil.evaluation.labels import classes, refuse_few, refuse_unfit
from homodistil.evaluation.metrics import score, summary
from homodistil.evaluation.models import Opened
from homodistil.evaluation.probe import linear
from homodistil.evaluation.tasks import OWN_HELDOUT, TASKS, Splits, Task
from homodistil.evaluation.training import BATCH
from homodistil.images import ImageRows, open_images


def open_labelled_images(
    name: str,
    opened: Opened,
    *,
    column: str = "image",
    label: str = "label",
    limit: int | None = None,
    learnt: bool = False,
) -> Splits:
    """The images of a folder or dataset, with the class of each.

    Args:
        name: a folder with a folder of images for each class, called like it or by its number, or with two such folders
            called `train` and `validation`; or a dataset that is saved or on the hub.
        opened: a model that reads them.
        column: the image column of a dataset.
        label: its label column.
        limit: learn from that many images at most, drawn with a fixed seed.
        learnt: whether something is learnt from them; otherwise all are scored, but for those of `train`.

    Raises:
        UserError: they cannot be found or read, are fewer than two, or have no label, or one that is no class; or it is
            a task of text.
    """
    path = Path(expanduser(name))
    if name in TASKS and not isdir(path):
        raise UserError(
            f"Cannot measure {opened.source} on {name}.",
            "This model reads images, and that task is of text.",
            "Give a folder with a folder of images for each class, or a dataset.",
        )
    task = Task(name=path.resolve().name, columns=("image",), labels="classes", metrics=("accuracy", "macro_f1"))

    def labelled(place: str) -> Dataset:
        channels = opened.model.config.num_channels
        rows = open_images(place, column, label=label, channels=channels, option="--image-column").rows
        refuse_few(task.name, "labelled", len(rows))
        refuse_unfit(task, "labelled", rows["label"][:])
        numbers = all(isinstance(given, str) and given.isdecimal() for given in rows["label"][:])
        return rows.cast_column("label", Value("int64")) if numbers else rows

    train = Dataset.from_dict({})
    if all(isdir(path / split) for split in ("train", "validation")):
        scored = labelled(str(path / "validation"))
        train = labelled(str(path / "train")) if learnt else train
    else:
        scored = labelled(name)
        if learnt:
            parts = scored.train_test_split(test_size=OWN_HELDOUT, seed=0)
            train, scored = parts["train"], parts["test"]
    if limit is not None and limit < len(train):
        train = train.shuffle(seed=0).select(range(limit))
    splits = Splits(task, train, {"validation": scored})
    if learnt:
        classes(splits)
    return splits


def contents(rows: Dataset) -> Iterator[tuple[object, str]]:
    """Of each image its label, and what tells its bytes from others."""
    for row in rows:
        image = row["image"] or {}
        held = image.get("bytes")
        content = held if held is not None else Path(image["path"]).read_bytes() if image.get("path") else b""
        yield row["label"], hashlib.sha256(content).hexdigest()


def classes_said(opened: Opened, rows: Dataset, name: str) -> tuple[Tensor, list[int]]:
    """Logits of images (images, classes), and which rows they are of.

    Raises:
        UserError: none of the images can be decoded.

    Warns:
        UserWarning: some cannot, and are left out.
    """
    return _seen(opened, rows, name, lambda pixels: opened.model(pixel_values=pixels).logits)


def probe_images(opened: Opened, splits: Splits) -> dict[str, float]:
    """Fit a linear model on frozen states of the class token and score it, as `probe.probe` does on texts.

    Raises:
        UserError: none of the images can be decoded, or of those to learn from too few.

    Warns:
        UserWarning: some cannot, and are left out.
    """
    task, encoder = splits.task, opened.model.base_model

    def class_token(pixels: Tensor) -> Tensor:
        state: Tensor = encoder(pixel_values=pixels).last_hidden_state[:, 0]
        return state

    def embedded(rows: Dataset) -> tuple[Any, Dataset]:
        states, read = _seen(opened, rows, task.name, class_token)
        return states.numpy(), rows.select(read)

    features, learnt = embedded(splits.train)
    classes(Splits(task, learnt, splits.evaluated))
    labels = learnt["label"][:]
    fitted = linear(task, labels).fit(features, labels)
    per_split = {}
    for split, rows in splits.evaluated.items():
        features, seen = embedded(rows)
        per_split[split] = score(task, fitted.predict(features), np.asarray(seen["label"][:]))
    return summary(task, per_split)


@torch.no_grad()
def _seen(opened: Opened, rows: Dataset, name: str, what: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[int]]:
    """What a model makes of the pixels of images, and which rows could be read."""
    images = ImageRows(name, rows, opened.model.config.num_channels, "")
    made, read = [], []
    for at in range(0, len(rows), BATCH):
        found = [(row, image) for row in range(at, min(at + BATCH, len(rows))) if (image := images.read(row))]
        if found:
            pixels = opened.processor([image for _, image in found], return_tensors="pt")["pixel_values"]
            made.append(what(pixels.to(opened.model.device)).float().cpu())
            read += [row for row, _ in found]
    tell_of_unread(name, len(rows), len(read))
    return torch.cat(made), read


def tell_of_unread(name: str, count: int, read: int) -> None:
    """Tell of images that cannot be decoded.

    Args:
        name: what they are called.
        count: how many there are.
        read: how many can be decoded.

    Raises:
        UserError: none can.

    Warns:
        UserWarning: some cannot.
    """
    if not read:
        raise UserError(
            f"Cannot measure on {name}: none of its {count:,} images can be decoded.",
            "Every image must be whole, with 8 bits a channel.",
            "Convert them.",
        )
    if missing := count - read:
        warnings.warn(f"{missing:,} of {count:,} images of {name} cannot be decoded, and do not count", stacklevel=3)
