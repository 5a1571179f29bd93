"""Fine-tuning on images with labels: a new head for their classes, through the same Trainer as on texts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, BaseImageProcessor

from homodistil.evaluation.finetune import open_with_head
from homodistil.evaluation.labelled_images import tell_of_unread
from homodistil.evaluation.labels import classes
from homodistil.evaluation.metrics import score, summary
from homodistil.evaluation.models import Opened
from homodistil.evaluation.tasks import Splits
from homodistil.evaluation.training import Settings, train_and_predict
from homodistil.images import ImageRows


def finetune_images(one: Opened, splits: Splits, settings: Settings, *, seed: int) -> dict[str, float]:
    """Fine-tune a model of images and score it. Images are seen as its processor makes them, and not augmented.

    Args:
        one: the model; what is fine-tuned is opened anew, with a head for the task's classes.
        splits: the images (`labelled_images.open_labelled_images`, by `learnt`).
        settings: how to learn; their length is of texts.
        seed: of the new head, the order and dropout.

    Returns:
        Accuracy and macro F1, and `score`, their mean, 0 to 100.

    Warns:
        UserWarning: there are images that cannot be decoded.

    Raises:
        UserError: none of a split can be decoded, of a class none of those to learn from, or the model takes no head.
    """
    task, folder = splits.task, Path(one.source)
    parts = [_decodable(one, rows, task.name) for rows in (splits.train, *splits.evaluated.values())]
    splits = Splits(task, parts[0], dict(zip(splits.evaluated, parts[1:], strict=True)))
    known = classes(splits)
    label = {name: number for number, name in enumerate(known)}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=one.trust_remote_code)
    config.num_labels, config.problem_type = len(known), "single_label_classification"
    # it may name a class that only predicts, such as that of a DeiT with a teacher's token
    config.architectures = []
    torch.manual_seed(seed)
    net = open_with_head(AutoModelForImageClassification, folder, {"config": config}, one.trust_remote_code)
    images = ImageRows(
        task.name, concatenate_datasets([p.select_columns("image") for p in parts]), config.num_channels, ""
    )
    ends = np.cumsum([0, *map(len, parts)])
    train, *evaluated = (
        Dataset.from_dict({"row": range(start, end), "labels": [label[name] for name in part[task.label][:]]})
        for part, start, end in zip(parts, ends, ends[1:], strict=False)
    )
    collate = PixelsCollator(images, one.processor)
    answers = train_and_predict(
        net, collate, train, dict(zip(splits.evaluated, evaluated, strict=True)), settings, seed
    )
    per_split = {
        split: score(task, answers[split].argmax(-1), np.asarray(rows["labels"][:]))
        for split, rows in zip(splits.evaluated, evaluated, strict=True)
    }
    return summary(task, per_split)


class PixelsCollator:
    """Makes batches of images, which are decoded in threads when they are needed."""

    def __init__(self, images: ImageRows, processor: BaseImageProcessor) -> None:
        """Of images that can all be decoded."""
        self.images, self.processor = images, processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The pixels (images, channels, height, width) of rows, and their labels (images)."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            pictures = list(pool.map(self.images.read, [row["row"] for row in rows]))
        pixels = self.processor(pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def _decodable(one: Opened, rows: Dataset, name: str) -> Dataset:
    images = ImageRows(name, rows, one.model.config.num_channels, "")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = list(pool.map(lambda row: images.read(row) is not None, range(len(rows))))
    tell_of_unread(name, len(rows), sum(read))
    return rows.select(np.flatnonzero(read))
