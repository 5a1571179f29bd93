"""A labelled task learnt on frozen embeddings: what they tell by themselves, in seconds and without a seed.

Those who use a sentence encoder seldom fine-tune it: they put a linear model on its embeddings. Features of one text
are its embedding, of a pair (u, v) the values of |u - v| and u * v, as SentEval has them (Conneau and Kiela 2018,
section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from homodistil.errors import UserError
from homodistil.evaluate.metrics import score, summary
from homodistil.evaluate.similarity import embed
from homodistil.evaluate.tasks import Splits, Task

STRENGTHS = 10.0 ** np.arange(-4, 3)
"""Inverse strengths of regularisation, of which the best is chosen by cross-validation on training rows."""
FOLDS = 5


def probe(model: Path | str, splits: Splits) -> dict[str, float]:
    """Fit a linear model on frozen embeddings and score it.

    Args:
        model: a sentence-transformers folder, or any other encoder, whose token states are averaged.
        splits: the task's data.

    Returns:
        Each metric of each scored split, and `score`, as `finetune.finetune` does.

    Raises:
        UserError: the task asks for spans, which no embedding of a whole text can tell.
    """
    task = splits.task
    refuse_spans(task)
    labels = splits.train[task.label]
    fitted = _linear(task, labels).fit(_features(model, task, splits.train), labels)
    per_split = {
        split: score(task, fitted.predict(_features(model, task, rows)), np.asarray(rows[task.label]))
        for split, rows in splits.evaluated.items()
    }
    return summary(task, per_split)


def refuse_spans(task: Task) -> None:
    """Raise the error of a task that cannot be probed."""
    if task.labels == "span":
        raise UserError(
            f"Cannot probe {task.name}.",
            "A probe reads an embedding of the whole text, which cannot point at an answer inside it.",
            "Fine-tune on it with --tasks.",
        )


def _linear(task: Task, labels: Sequence[Any]) -> Pipeline:
    if task.labels == "number":
        return make_pipeline(StandardScaler(), RidgeCV(1 / STRENGTHS))
    # each fold needs a row of each class; where one has a single row, nothing can be chosen
    folds = min(FOLDS, *Counter(labels).values())
    options = {"max_iter": 1000}
    best = LogisticRegressionCV(Cs=STRENGTHS, cv=folds, **options) if folds > 1 else LogisticRegression(**options)
    return make_pipeline(StandardScaler(), best)


def _features(model: Path | str, task: Task, rows: Dataset) -> NDArray[np.float32]:
    first, *others = (embed(model, rows[column]) for column in task.columns)
    if not others:
        return first
    return np.concatenate((np.abs(first - others[0]), first * others[0]), axis=1)
