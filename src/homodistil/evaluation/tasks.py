"""The tasks: which columns they have, what their labels are, how they are scored. And a user's own, out of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import exists, expanduser, isdir
from pathlib import Path
from typing import Literal

import datasets
from datasets import Dataset, Value

from homodistil.errors import UserError, first_line, nearest, reason
from homodistil.evaluation.labels import check, refuse_few
from homodistil.files import load_files

Labels = Literal["classes", "number", "span"]
Metric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "r2", "mae", "exact", "span_f1"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A labelled task.

    Attributes:
        name: what `--tasks` calls it.
        columns: its text columns; for questions the question and the context.
        labels: classes, a number, or the span of an answer.
        metrics: how it is scored; its score is their mean, as GLUE defines it, times 100.
        hub: name and configuration of the dataset on the hub; None for a user's own.
        evaluated: the splits that are scored; they are never trained on.
        unanswerable: whether questions may have no answer.
        label: the label's column.
    """

    name: str
    columns: tuple[str, ...]
    labels: Labels
    metrics: tuple[Metric, ...]
    hub: tuple[str, str | None] | None = None
    evaluated: tuple[str, ...] = ("validation",)
    unanswerable: bool = False
    label: str = "label"


def _glue(name: str, columns: str, *metrics: Metric, labels: Labels = "classes", **options: tuple[str, ...]) -> Task:
    hub = ("nyu-mll/glue", name)
    return Task(name=name, columns=tuple(columns.split()), labels=labels, metrics=metrics, hub=hub, **options)  # type: ignore[arg-type]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "sentence", "matthews"),
        _glue("sst2", "sentence", "accuracy"),
        _glue("mrpc", "sentence1 sentence2", "accuracy", "f1"),
        _glue("stsb", "sentence1 sentence2", "pearson", "spearman", labels="number"),
        _glue("qqp", "question1 question2", "accuracy", "f1"),
        _glue("mnli", "premise hypothesis", "accuracy", evaluated=("validation_matched", "validation_mismatched")),
        _glue("qnli", "question sentence", "accuracy"),
        _glue("rte", "sentence1 sentence2", "accuracy"),
        _glue("wnli", "sentence1 sentence2", "accuracy"),
        Task(
            name="squad",
            columns=("question", "context"),
            labels="span",
            metrics=("exact", "span_f1"),
            hub=("rajpurkar/squad", None),
            label="answers",
        ),
        Task(
            name="squad_v2",
            columns=("question", "context"),
            labels="span",
            metrics=("exact", "span_f1"),
            hub=("rajpurkar/squad_v2", None),
            label="answers",
            unanswerable=True,
        ),
    )
}
"""GLUE (Wang et al. 2019, table 1) and SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018), with the hub's columns."""

_ID = re.compile(r"(.*[_-])?(id|ids|idx|index|guid|uuid|key)")
"""What columns are called that tell rows apart, and say nothing."""
OWN_HELDOUT = 0.2
"""The share of a user's own file that is scored where something is learnt; no validation file lies beside it."""


@dataclass(frozen=True)
class Splits:
    """A task's data.

    Attributes:
        task: the task.
        train: what is learnt from; of pairs that are compared as they are, no rows.
        evaluated: what is scored, by split.
    """

    task: Task
    train: Dataset
    evaluated: Mapping[str, Dataset]


def open_task(
    name: str,
    data_dir: Path | None,
    *,
    columns: Sequence[str] = (),
    label: str = "label",
    limit: int | None = None,
    learnt: bool = True,
    numbers: bool = False,
) -> Splits:
    """A task by its name, or a user's own by its file or folder.

    Args:
        name: a name of `TASKS`; or a file of .jsonl, .csv, .tsv or .parquet; or a folder with `train` and
            `validation` files of one of those kinds.
        data_dir: where the tasks' folders lie, directly or in `glue/`; None takes them from the hub.
        columns: the text columns of a user's own task; by default its only text columns besides the label, and those
            that are called an id.
        label: the label's column of a user's own task.
        limit: train on that many rows at most, drawn with a fixed seed.
        learnt: whether something is learnt from it; otherwise all rows of a file are scored, and no `train` file is
            needed.
        numbers: whether whole numbers of a user's own task are numbers, too, and not classes.

    Raises:
        UserError: no such task, file or column, or rows that cannot be learnt or scored, as `labels.check` says.
    """
    if name in TASKS:
        task = TASKS[name]
        files = _local(task, data_dir, learnt)
        opened = {s: _read(files[s]) for s in files} if files else _from_hub(task)
        evaluated = {s: opened[s] for s in task.evaluated}
        splits = Splits(task, opened["train"] if learnt else Dataset.from_dict({}), evaluated)
    else:
        splits = _own(Path(expanduser(name)), tuple(columns), label, learnt, numbers)
    if limit is not None and limit < len(splits.train):
        splits = Splits(splits.task, splits.train.shuffle(seed=0).select(range(limit)), splits.evaluated)
    check(splits, learnt=learnt)
    return splits


def _local(task: Task, data_dir: Path | None, learnt: bool) -> dict[str, Path]:
    if data_dir is None:
        return {}
    folders = [data_dir / task.name, data_dir / "glue" / task.name]
    folder = next((f for f in folders if f.is_dir()), None)
    wanted = ("train", *task.evaluated) if learnt else task.evaluated
    files = {split: found for split in wanted if folder and (found := _split_file(folder, split))}
    if missing := [split for split in wanted if split not in files]:
        raise UserError(
            f"Cannot find the task {task.name} in {data_dir}: "
            + (f"{folder} has no {missing[0]} file." if folder else f"there is no folder {task.name}."),
            f"A task is a folder with the files {', '.join(f'{w}.jsonl' for w in wanted)}, in the data folder or "
            "in its folder glue.",
            "Add them, leave the task out, or leave --data-dir out to take it from the hub.",
        )
    return files


_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def _split_file(folder: Path, split: str) -> Path | None:
    return next((f for ending in _READERS if (f := folder / f"{split}{ending}").exists()), None)


def _read(file: Path) -> Dataset:
    reader = _READERS.get(file.suffix.lower())
    if not exists(file) and (reader or len(file.parts) > 1):
        raise UserError(
            f"Cannot find the task {file}: there is no such file or folder.",
            f"A task of one's own is a file ending in {', '.join(_READERS)}, or a folder of such files.",
            "Check the path.",
        )
    if reader is None or not exists(file):
        raise UserError(
            f"There is no task {file}.",
            f"A task is one of {', '.join(TASKS)}, or a file ending in {', '.join(_READERS)}.",
            nearest(str(file), list(TASKS)),
        )
    try:
        return load_files(reader, [file])
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        raise UserError(
            f"Cannot read {file}: {reason(error)}",
            f"A file ending in {file.suffix} must be whole, valid {reader}, one row an example.",
            "Correct the file.",
        ) from error


def _from_hub(task: Task) -> Mapping[str, Dataset]:
    assert task.hub is not None
    try:
        opened: Mapping[str, Dataset] = datasets.load_dataset(*task.hub)
    except Exception as error:  # offline, gated, gone: all have their own type
        raise UserError(
            f"Cannot load the task {task.name} from the hub: {first_line(error)}",
            "Without --data-dir, tasks come from the hub, which must be reached.",
            "Download them, and name their folder with --data-dir.",
        ) from error
    return opened


def _own(path: Path, columns: tuple[str, ...], label: str, learnt: bool, numbers: bool) -> Splits:
    """A user's own task: two files in a folder, or one file, of which a fixed part is scored if the rest is learnt."""
    train = Dataset.from_dict({})
    if isdir(path):
        wanted = ("train", "validation") if learnt else ("validation",)
        files = {split: file for split in wanted if (file := _split_file(path, split))}
        if len(files) < len(wanted):
            raise UserError(
                f"Cannot use {path} as a task.",
                f"A task's folder holds {' and '.join(wanted)}, each ending in {', '.join(_READERS)}.",
                f"Add them, or give one file, of which {'a fifth' if learnt else 'all'} will be scored.",
            )
        scored = _read(files["validation"])
        if learnt:
            train = _read(files["train"])
    else:
        scored = _read(path)
        refuse_few(path.stem, "labelled", len(scored))
        if learnt:
            parts = scored.train_test_split(test_size=OWN_HELDOUT, seed=0)
            train, scored = parts["train"], parts["test"]
    known = train if learnt else scored
    if label not in known.column_names:
        raise UserError(
            f"Cannot find the label column {label!r} in {path}.",
            f"A task has a label column; the columns are {', '.join(known.column_names)}.",
            f"Name it, for example --label {known.column_names[-1]}.",
        )
    text = [c for c, kind in known.features.items() if kind in (Value("string"), Value("large_string"))]
    columns = columns or tuple(c for c in text if c != label and not _ID.fullmatch(c.lower()))
    kind = str(getattr(known.features[label], "dtype", ""))
    number = kind.startswith(("float", "double", "int", "uint") if numbers else ("float", "double"))
    task = Task(
        name=path.stem,
        columns=columns,
        labels="number" if number else "classes",
        metrics=("r2", "spearman", "mae") if number else ("accuracy", "macro_f1"),
        label=label,
    )
    return Splits(task, train, {"validation": scored})
