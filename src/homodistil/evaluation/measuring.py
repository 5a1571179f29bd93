"""What is measured of a model and of its teacher beside it, each once: a record a measurement."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from datasets import Dataset
from PIL import Image
from torch import Tensor

from homodistil.errors import UserError
from homodistil.evaluation import speed
from homodistil.evaluation.agreement import agreement, image_agreement
from homodistil.evaluation.answers import answers
from homodistil.evaluation.finetune import best_of_grid, defaults, finetune
from homodistil.evaluation.finetune_images import finetune_images
from homodistil.evaluation.labelled_images import contents, probe_images
from homodistil.evaluation.language import blocks, language, predicted, refuse_unknown, usual
from homodistil.evaluation.models import LANGUAGE, Opened
from homodistil.evaluation.probe import probe
from homodistil.evaluation.records import Records, digest, identity, machine
from homodistil.evaluation.rows import length_of
from homodistil.evaluation.sides import Sides, noised, paired
from homodistil.evaluation.similarity import judged_pairs
from homodistil.evaluation.tasks import Splits, Task
from homodistil.evaluation.training import Settings

BLOCKS = 128
"""Blocks of plain text that are measured at most."""
TEXTS = 400
"""Texts whose similarities are compared at most."""


def measure_text(records: Records, opened: Sequence[Opened], texts: Sequence[str], targets: Sequence[str] = ()) -> None:
    """Language modelling of each, and agreement with the teacher if there is one.

    Args:
        records: what is kept.
        opened: a model, and its teacher.
        texts: plain text.
        targets: what encoder-decoders should say to each; without it what noise takes out of the texts.

    Raises:
        UserError: it is too little text for a block, or tokens that a model does not know.
    """
    ids: list[Tensor | Sides]
    if targets:
        texts, targets = texts[:TEXTS], targets[:TEXTS]
        block = max(min(usual(one, side) for one in opened) for side in (texts, targets))
        ids = [paired(one, texts, targets, block) for one in opened]
    else:
        block = min(usual(one, texts) for one in opened)
        ids = [_asked(one, texts, block) for one in opened]
    settings = {"digest": digest(texts), "blocks": BLOCKS, "block": block}
    if targets:
        settings["targets"] = digest(targets)
    for one, asked in zip(opened, ids, strict=True):
        if one.head in LANGUAGE:
            # figures of a token say nothing beside those of other tokens, as of a trimmed vocabulary
            read = {**settings, "tokens": digest(predicted(one, asked))}
            records.measure(one.source, "language", read, functools.partial(language, one, asked))
    if len(opened) == 2:
        student, teacher = opened
        records.measure(
            student.source,
            "agreement with the teacher",
            {**settings, "teacher": identity(teacher.source)},
            lambda: agreement(student, teacher, ids[0], texts[:TEXTS]),
        )


def _asked(one: Opened, texts: Sequence[str], block: int) -> Tensor | Sides:
    """Blocks of text, (blocks, length), of encoder-decoders with what they should say to them."""
    tokens = blocks(one, texts, block, BLOCKS)
    if not len(tokens):
        raise UserError(
            f"Cannot measure on this text: it does not fill a block of {block} tokens of {one.source}.",
            "There must be text for at least one block.",
            "Give more text.",
        )
    refuse_unknown(one, tokens)
    return noised(one, tokens) if one.head == "seq2seq" else tokens


def measure_images(records: Records, opened: Sequence[Opened], pictures: Sequence[Image.Image]) -> None:
    """Agreement with the teacher."""
    student, teacher = opened
    records.measure(
        student.source,
        "agreement with the teacher",
        {"digest": digest(picture.tobytes() for picture in pictures), "teacher": identity(teacher.source)},
        lambda: image_agreement(student, teacher, pictures),
    )


def measure_pairs(records: Records, opened: Sequence[Opened], name: str, splits: Splits) -> None:
    """How closely similarities follow those that people judged, of each split that is scored."""

    def judged(one: Opened, split: str) -> Mapping[str, float]:
        rows = splits.evaluated[split]
        return {"spearman": judged_pairs(one.source, splits.task, rows, trust_remote_code=one.trust_remote_code)}

    digests = {split: digest(rows) for split, rows in splits.evaluated.items()}
    for one, split in itertools.product(opened, splits.evaluated):
        settings = {"split": split, **_read_as(name, splits.task), "digest": digests[split]}
        records.measure(one.source, f"{splits.task.name} pairs", settings, functools.partial(judged, one, split))


def measure_answers(
    records: Records, opened: Sequence[Opened], name: str, splits: Splits, *, max_length: int | None
) -> None:
    """What its own head says of each row."""
    task, length = splits.task, max_length or length_of(splits.task)
    images = opened[0].reads_images
    read = {} if images else {"length": length}
    settings = {**_read_as(name, task), **read, "digest": _digest(images, *splits.evaluated.values())}
    for one in opened:
        records.measure(one.source, f"{task.name} answers", settings, functools.partial(answers, one, splits, length))


def measure_probe(records: Records, opened: Sequence[Opened], name: str, splits: Splits) -> None:
    """What a linear model learns on frozen embeddings."""
    images = opened[0].reads_images
    data = _data_of(name, splits, images)
    for one in opened:
        learn = functools.partial(probe, one.source, splits, trust_remote_code=one.trust_remote_code)
        if images:
            learn = functools.partial(probe_images, one, splits)
        records.measure(one.source, f"{splits.task.name} probe", data, learn)


def measure_task(
    records: Records,
    opened: Sequence[Opened],
    name: str,
    splits: Splits,
    *,
    seeds: int,
    grid: bool,
    max_length: int | None,
) -> None:
    """What is learnt by fine-tuning, by each seed; of a grid by the best learning rate."""
    images = opened[0].reads_images
    data, task = _data_of(name, splits, images), splits.task
    for one in opened:
        learn: Callable[..., dict[str, float]] = functools.partial(
            finetune, Path(one.source), trust_remote_code=one.trust_remote_code
        )
        if images:
            learn = functools.partial(finetune_images, one)
        settings = defaults(task, len(splits.train), one.model.config.hidden_size)
        settings = replace(settings, length=0 if images else max_length or settings.length)
        if grid:
            choose = functools.partial(_best_rate, learn, splits, settings)
            best = records.measure(one.source, f"{task.name}, best of the grid", {**asdict(settings), **data}, choose)
            settings = replace(settings, learning_rate=best["learning_rate"])
        for seed in range(seeds):
            learnt = functools.partial(learn, splits, settings, seed=seed)
            records.measure(one.source, task.name, {**asdict(settings), **data}, learnt, seed=seed)


def _best_rate(learn: Callable[..., dict[str, float]], splits: Splits, settings: Settings) -> dict[str, float]:
    return {"learning_rate": best_of_grid(learn, splits, settings).learning_rate}


def _data_of(name: str, splits: Splits, images: bool = False) -> dict[str, object]:
    whole = _digest(images, splits.train, *splits.evaluated.values())
    return {**_read_as(name, splits.task), "rows": len(splits.train), "digest": whole}


def _digest(images: bool, *parts: Dataset) -> str:
    return digest(itertools.chain(*(map(contents, parts) if images else parts)))


def _read_as(name: str, task: Task) -> dict[str, object]:
    """One file holds several tasks, by the columns that are read."""
    return {"data": name, "columns": task.columns, "label": task.label, "labels": task.labels}


def measure_speed(records: Records, opened: Sequence[Opened], lengths: Sequence[int], threads: int | None) -> None:
    """Latency and throughput, of all models in one go: figures of two runs must not be compared."""
    images = opened[0].reads_images
    for length in (0,) if images else lengths:
        beside = [identity(one.source) for one in opened]
        settings = {"length": length, "threads": threads, "beside": beside, "machine": machine()}
        if (rows := speed.at_once(opened, speed.BATCH, length)) < speed.BATCH:
            settings["batch"] = rows

        @functools.cache
        def timed(length: int) -> dict[str, dict[str, float]]:
            one = speed.forward_seconds(opened, batch=1, length=length, threads=threads)
            many = speed.forward_seconds(opened, batch=speed.BATCH, length=length, threads=threads)
            return {
                model.source: {"latency_ms": 1e3 * latency, "sequences_per_second": speed.BATCH / batch}
                for model, latency, batch in zip(opened, one, many, strict=True)
            }

        for model in opened:
            compute = functools.partial(lambda source, length: timed(length)[source], model.source, length)
            records.measure(model.source, "speed" if images else f"speed at {length} tokens", settings, compute)
