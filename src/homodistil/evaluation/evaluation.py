"""A model folder in, numbers out: labelled tasks, plain text, similarities, size and speed, beside a teacher's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from os import PathLike
from os.path import expanduser
from pathlib import Path

from homodistil.errors import UserError
from homodistil.evaluation import finetune, speed
from homodistil.evaluation.agreement import agreement, image_agreement
from homodistil.evaluation.inputs import (
    read_pictures,
    read_texts,
    refuse_counts,
    refuse_no_mask,
    refuse_other_data,
    refuse_too_long,
    refuse_unpaired,
)
from homodistil.evaluation.language import blocks, language, predicted, refuse_unknown
from homodistil.evaluation.models import Opened, local, open_model
from homodistil.evaluation.probe import probe, refuse_spans
from homodistil.evaluation.records import Record, Records, digest, identity, machine
from homodistil.evaluation.similarity import judged_pairs
from homodistil.evaluation.tasks import Splits, Task, open_task
from homodistil.kinds import Names, model_named, several

BLOCKS = 128
"""Blocks of plain text that are measured at most."""
BLOCK = 128
"""Tokens in one."""
TEXTS = 400
"""Texts whose similarities are compared at most."""


def evaluate(
    model: str | PathLike[str],
    *,
    tasks: Names = (),
    pairs: Names = (),
    probes: Names = (),
    text: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
    data_dir: str | PathLike[str] | None = None,
    against: str | PathLike[str] | None = None,
    seeds: int = 3,
    grid: bool = False,
    limit: int | None = None,
    columns: Names = (),
    label: str = "label",
    text_column: str = "text",
    image_column: str = "image",
    lengths: Sequence[int] = (32, 128),
    threads: int | None = None,
    time: bool = True,
    trust_remote_code: bool = False,
    json: str | PathLike[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """Measure a model, and its teacher beside it.

    Args:
        model: a folder or hub name that `from_pretrained` opens.
        tasks: to fine-tune on, one or several: names of `tasks.TASKS`, or files or folders of one's own.
        pairs: tasks whose pairs are compared by cosine similarity, without fine-tuning, such as `stsb`; of a file all.
        probes: tasks that a linear model learns on frozen embeddings.
        text: plain text that the model was not distilled on: language modelling, and agreement with the teacher.
        images: a folder or dataset of images that it was not distilled on, for models of images: agreement.
        data_dir: where the tasks lie; the hub by default.
        against: the teacher, which is measured alike.
        seeds: how often each task is learnt.
        grid: choose the learning rate of each task and model on training rows that are held out.
        limit: learn each task and probe from that many rows at most.
        columns: the text columns of one's own tasks.
        label: the label's column of one's own tasks.
        text_column: the text's column.
        image_column: the images' column.
        lengths: tokens at which the models are timed; models of images are timed at their size of images.
        threads: of torch while timing.
        time: whether models are timed.
        trust_remote_code: run code that comes with a model.
        json: a file that keeps the records; what it holds is not measured again.
        say: told what is being measured.

    Returns:
        The records of all measurements, of the model first; each as soon as it is there also in `json`.

    Raises:
        UserError: a model, task, column or file that cannot be used; before anything is measured where that can
            be known.
    """
    refuse_counts({"--seeds": seeds, "--limit": limit, "--threads": threads})
    for length in lengths:
        refuse_counts({"--lengths": length})
    tasks, pairs, probes, columns = (several(given) for given in (tasks, pairs, probes, columns))
    names = [local(model_named(name)) for name in (model, *([against] if against else []))]
    records = Records(Path(expanduser(json)) if json else None, names[1] if against else None, say)
    folder = Path(expanduser(data_dir)) if data_dir else None
    opened = [open_model(name, trust_remote_code=trust_remote_code) for name in names]
    of_text = {"--tasks": tasks, "--pairs": pairs, "--probes": probes, "--text": text}
    refuse_other_data(opened, of_text, {"--images": images})
    own = {"columns": columns, "label": label}
    labelled = {name: open_task(name, folder, limit=limit, **own) for name in tasks}  # type: ignore[arg-type]
    paired = {name: open_task(name, folder, scores=True, **own) for name in pairs}  # type: ignore[arg-type]
    probed = {name: open_task(name, folder, limit=limit, **own) for name in probes}  # type: ignore[arg-type]
    for splits in probed.values():
        refuse_spans(splits.task)
    for name, splits in paired.items():
        refuse_unpaired(name, splits)
    if text:
        refuse_no_mask(opened)
    texts = read_texts(str(text), text_column, 20 * BLOCKS) if text else []
    pictures = read_pictures(str(images), image_column, opened) if images else []
    if time:
        refuse_too_long(opened, lengths)

    for one in opened:
        records.measure(one.source, "size", {}, lambda one=one: speed.size(one))  # type: ignore[misc]
    if texts:
        _measure_text(records, opened, texts)
    if pictures:
        student, teacher = opened
        records.measure(
            student.source,
            "agreement with the teacher",
            {"digest": digest(picture.tobytes() for picture in pictures), "teacher": identity(teacher.source)},
            lambda: image_agreement(student, teacher, pictures),
        )
    for name, splits in paired.items():
        for source in names:
            for split, rows in splits.evaluated.items():
                records.measure(
                    source,
                    f"{splits.task.name} pairs",
                    {"split": split, **_read_as(name, splits.task), "digest": digest(rows)},
                    lambda source=source, rows=rows, task=splits.task: {  # type: ignore[misc]
                        "spearman": judged_pairs(source, task, rows, trust_remote_code=trust_remote_code)
                    },
                )
    for name, splits in probed.items():
        for source in names:
            records.measure(
                source,
                f"{splits.task.name} probe",
                _data_of(name, splits),
                lambda source=source, splits=splits: probe(  # type: ignore[misc]
                    source, splits, trust_remote_code=trust_remote_code
                ),
            )
    for name, splits in labelled.items():
        data = _data_of(name, splits)
        for source, one in zip(names, opened, strict=True):
            path = Path(source)
            settings = finetune.defaults(splits.task, len(splits.train), one.model.config.hidden_size)
            if grid:
                best = records.measure(
                    source,
                    f"{splits.task.name}, best of the grid",
                    {**asdict(settings), **data},
                    lambda path=path, splits=splits, settings=settings: {  # type: ignore[misc]
                        "learning_rate": finetune.best_of_grid(
                            path, splits, settings, trust_remote_code=trust_remote_code
                        ).learning_rate
                    },
                )
                settings = replace(settings, learning_rate=best["learning_rate"])
            for seed in range(seeds):
                records.measure(
                    source,
                    splits.task.name,
                    {**asdict(settings), **data},
                    lambda path=path, splits=splits, settings=settings, seed=seed: finetune.finetune(  # type: ignore[misc]
                        path, splits, settings, seed=seed, trust_remote_code=trust_remote_code
                    ),
                    seed=seed,
                )
    if time:
        _measure_speed(records, opened, lengths, threads)
    return records.used


def _data_of(name: str, splits: Splits) -> dict[str, object]:
    whole = itertools.chain(splits.train, *splits.evaluated.values())
    return {**_read_as(name, splits.task), "rows": len(splits.train), "digest": digest(whole)}


def _read_as(name: str, task: Task) -> dict[str, object]:
    """One file holds several tasks, by the columns that are read."""
    return {"data": name, "columns": task.columns, "label": task.label, "labels": task.labels}


def _measure_text(records: Records, opened: Sequence[Opened], texts: list[str]) -> None:
    block = min(BLOCK, *(one.longest for one in opened))
    ids = [blocks(one, texts, block, BLOCKS) for one in opened]
    for one, tokens in zip(opened, ids, strict=True):
        if not len(tokens):
            raise UserError(
                f"Cannot measure on this text: it does not fill a block of {block} tokens of {one.source}.",
                "There must be text for at least one block.",
                "Give more text.",
            )
        refuse_unknown(one, tokens)
    settings = {"digest": digest(texts), "blocks": BLOCKS, "block": block}
    for one, tokens in zip(opened, ids, strict=True):
        if one.head in ("masked", "causal"):
            # figures of a token say nothing beside those of other tokens, as of a trimmed vocabulary
            read = {**settings, "tokens": digest(predicted(one, tokens).tolist())}
            records.measure(one.source, "language", read, lambda one=one, t=tokens: language(one, t))  # type: ignore[misc]
    if len(opened) == 2:
        student, teacher = opened
        records.measure(
            student.source,
            "agreement with the teacher",
            {**settings, "teacher": identity(teacher.source)},
            lambda: agreement(student, teacher, ids[0], texts[:TEXTS]),
        )


def _measure_speed(records: Records, opened: Sequence[Opened], lengths: Sequence[int], threads: int | None) -> None:
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
