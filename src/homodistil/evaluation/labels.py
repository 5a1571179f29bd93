"""Rows and labels that cannot be learnt or scored, refused before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from homodistil.errors import UserError

if TYPE_CHECKING:
    from homodistil.evaluation.tasks import Splits, Task


def check(splits: Splits, *, learnt: bool = True) -> None:
    """Refuse data that cannot be learnt or scored.

    Args:
        splits: the task's data.
        learnt: whether there are rows to learn from.

    Raises:
        UserError: too few or too many text columns, a column that is not there, fewer than two rows, a row without
            text or label, a class that is not learnt, or numbers that are all the same.
    """
    task = splits.task
    if not 1 <= len(task.columns) <= 2:
        raise UserError(
            f"Cannot tell the text columns of the task {task.name}: there are {len(task.columns)} "
            f"({', '.join(task.columns)}).",
            "A task has one text column, or two for pairs.",
            "Name them with --columns, for example --columns premise,hypothesis.",
        )
    for split, rows in {**({"train": splits.train} if learnt else {}), **splits.evaluated}.items():
        if missing := [c for c in (*task.columns, task.label) if c not in rows.column_names]:
            raise UserError(
                f"The task {task.name} has no column {missing[0]} in its {split} rows.",
                f"It needs {', '.join((*task.columns, task.label))}; the rows have {', '.join(rows.column_names)}.",
                "Rename the columns, or name other ones with --columns and --label.",
            )
        refuse_few(task.name, split, len(rows))
        for column in task.columns:
            _refuse_no_text(task, split, column, rows)
        if task.labels == "span":
            _refuse_no_span(task, split, rows)
        else:
            refuse_unfit(task, split, rows[task.label][:])
    if learnt and task.labels == "classes":
        classes(splits)


def refuse_few(name: str, split: str, count: int) -> None:
    """Raise the error of a split with fewer than two rows."""
    if count < 2:
        raise UserError(
            f"The task {name} has {count} {split} rows.",
            "There must be at least two.",
            "Give more rows, or a larger --limit.",
        )


def classes(splits: Splits) -> list[Any]:
    """The classes of the training rows, in order.

    Raises:
        UserError: rows to score have another one, or there is a single one.
    """
    task = splits.task
    known = sorted(set(splits.train[task.label][:]))
    for split, rows in splits.evaluated.items():
        if new := set(rows[task.label][:]) - set(known):
            raise UserError(
                f"The {split} rows of {task.name} have a class that no training row has: {sorted(new)[0]!r}.",
                "A class must be learnt to be scored.",
                "Add training rows of it, or leave these rows out.",
            )
    if len(known) < 2:
        raise UserError(
            f"Cannot learn {task.name}: its training rows have a single class, {known[0]!r}.",
            "There must be two classes to tell apart.",
            "Add rows of another class, or check that the label column is the right one.",
        )
    return known


def _refuse_no_text(task: Task, split: str, column: str, rows: Dataset) -> None:
    if (strange := next((text for text in rows[column][:] if not isinstance(text, str)), "")) != "":
        raise UserError(
            f"The task {task.name} has {split} rows "
            + (f"without a {column}." if strange is None else f"whose {column} is no text, such as {strange!r}."),
            "Each row must have its text.",
            "Leave these rows out, or name other columns with --columns.",
        )


def _refuse_no_span(task: Task, split: str, rows: Dataset) -> None:
    """Answers are texts and where they start; a task whose questions all have one needs one."""

    def fits(answer: Any) -> bool:
        if not isinstance(answer, dict) or not all(isinstance(answer.get(k), list) for k in ("text", "answer_start")):
            return False
        text, start = answer["text"], answer["answer_start"]
        whole = all(isinstance(t, str) for t in text) and all(isinstance(s, int) for s in start)
        return whole and len(text) == len(start) and (bool(text) or task.unanswerable)

    strange = [answer for answer in rows[task.label] if not fits(answer)]
    if strange:
        raise UserError(
            f"The task {task.name} has {split} rows whose {task.label} are {strange[0]!r}.",
            'They must be {"text": [...], "answer_start": [...]}, lists of one length, as in the data set of the hub.',
            "Correct them, or leave these rows out.",
        )


def refuse_unfit(task: Task, split: str, labels: Sequence[Any]) -> None:
    """Raise the error of labels that are none, or not of one kind."""
    counted = task.labels == "number"
    known = int | float | None if counted else str | int | float | None
    strange = next((label for label in labels if not isinstance(label, known)), None)
    # an empty list is strange, too
    if strange is not None:
        raise UserError(
            f"The task {task.name} has {split} rows whose label is {strange!r}.",
            "A label is a word or a number, and a number where those that are learnt from are.",
            "Correct them, or name another column with --label.",
        )
    # GLUE writes -1 for labels that are kept secret; a user's own may be a class, such as what is said against
    secret = not counted and (task.hub is not None or set(labels) == {-1})
    if any(label is None or (counted and not math.isfinite(label)) or (secret and label == -1) for label in labels):
        raise UserError(
            f"The task {task.name} has {split} rows without a label.",
            "Each row must have a label; "
            + ("it must be finite." if counted else "nothing stands for none, and so does -1 in all rows, or in GLUE."),
            "Leave these rows out; hidden test sets cannot be scored.",
        )
    if not counted and len({isinstance(label, str) for label in labels}) > 1:
        raise UserError(
            f"The task {task.name} has {split} rows whose labels are words and rows whose labels are numbers.",
            "The labels of a task are all words, or all numbers.",
            "Correct them, or name another column with --label.",
        )
    if "f1" in task.metrics and not set(labels) <= {0, 1}:
        raise UserError(
            f"The task {task.name} has {split} rows whose labels are {', '.join(map(repr, sorted(set(labels))[:3]))}.",
            "Its F1 is that of class 1, so that its labels must be 0 and 1.",
            "Write 1 for what is to be found, such as equivalent pairs, and 0 for all else.",
        )
    if counted and len(set(labels)) == 1:
        raise UserError(
            f"The task {task.name} has {split} rows that all have the number {labels[0]}.",
            "Numbers must differ, or there is nothing to tell.",
            "Give rows with other numbers, or name another column with --label.",
        )
