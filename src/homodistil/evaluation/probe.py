"""A labelled task learnt on frozen embeddings: what they tell by themselves, in seconds and without a seed.

Those who use a sentence encoder seldom fine-tune it: they put a linear model on its embeddings. Features of one text
are its embedding, of a pair (u, v) the values of |u - v| and u * v, as SentEval has them (Conneau and Kiela 2018,
section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from homodistil.errors import UserError
from homodistil.evaluation.labels import classes
from homodistil.evaluation.metrics import glue_score, score, summary
from homodistil.evaluation.similarity import embed, open_encoder
from homodistil.evaluation.tasks import Splits, Task

STRENGTHS = 10.0 ** np.arange(-4, 3)
"""Inverse strengths of regularisation, of which the best is chosen by cross-validation on training rows: of classes by
the task's score, and by likelihood where several score alike."""
FOLDS = 5
FLOOR = 0.1
"""The least that a feature is divided by, as a share of what the median feature is. all-MiniLM-L6-v2 has units whose
last norm multiplies by 1e-33: what little they say is noise, and a gradient through its division is infinite."""


def probe(model: Path | str, splits: Splits, *, trust_remote_code: bool = False) -> dict[str, float]:
    """Fit a linear model on frozen embeddings and score it.

    Args:
        model: a sentence-transformers folder, or any other encoder, whose token states are averaged.
        splits: the task's data.
        trust_remote_code: run code that comes with the model.

    Returns:
        Each metric of each scored split, and `score`, as `finetune.finetune` does.

    Raises:
        UserError: the task asks for spans, which no embedding of a whole text can tell, or its training rows have a
            single class or lack one.
    """
    task = splits.task
    # opened once for all of its texts
    encoder = open_encoder(model, trust_remote_code)
    fitted = _fitted(encoder, splits)
    per_split = {
        split: score(task, fitted.predict(_features(encoder, task, rows)), np.asarray(rows[task.label]))
        for split, rows in splits.evaluated.items()
    }
    return summary(task, per_split)


class Scaler(StandardScaler):  # type: ignore[misc]
    """Centres features and divides each by its standard deviation, but by `FLOOR` of their median one at least."""

    scale_: NDArray[np.float64]

    def fit(self, rows: NDArray[np.float32], labels: Any = None, sample_weight: Any = None) -> Scaler:
        """Measure features (rows, features)."""
        super().fit(rows, labels, sample_weight)
        self.scale_ = np.maximum(self.scale_, FLOOR * np.median(self.scale_))
        return self


class Layer(NamedTuple):
    """A fitted probe: a linear layer on features that have been centred and scaled.

    Attributes:
        weight: (classes, features); of a number (1, features). A probe of two classes has one weight a feature, of
            which the second class gets half and the first the opposite.
        bias: (classes,), or (1,).
        mean: of each feature, (features,).
        scale: what each is divided by after that, (features,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    scale: NDArray[np.float32]


def layer(encoder: SentenceTransformer, splits: Splits) -> Layer:
    """A fitted probe as the layer that it is.

    Args:
        encoder: a sentence encoder.
        splits: the task's data.

    Raises:
        UserError: the task asks for spans, or its training rows have a single class.
    """
    fitted = _fitted(encoder, splits)
    scaler, linear = fitted[0], getattr(fitted[-1], "best_estimator_", fitted[-1])
    weight, bias = np.atleast_2d(linear.coef_), np.atleast_1d(linear.intercept_)
    if splits.task.labels == "classes" and len(weight) == 1:
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return Layer(*(part.astype(np.float32) for part in (weight, bias, scaler.mean_, scaler.scale_)))


def of_pair(first: Any, second: Any) -> tuple[Any, Any]:
    """The features of a pair, side by side: of arrays or tensors (rows, hidden) two of the same shape."""
    return abs(first - second), first * second


def refuse_spans(task: Task) -> None:
    """Raise the error of a task that cannot be probed."""
    if task.labels == "span":
        raise UserError(
            f"Cannot probe {task.name}.",
            "A probe reads an embedding of the whole text, which cannot point at an answer inside it.",
            "Fine-tune on it with --tasks.",
        )


def linear(task: Task, labels: Sequence[Any]) -> Pipeline:
    """What is fitted to features (rows, features) and labels: of a number a ridge, of classes a logistic regression."""
    if task.labels == "number":
        return make_pipeline(Scaler(), RidgeCV(1 / STRENGTHS))
    # each fold needs a row of each class; where one has a single row, nothing can be chosen
    folds = min(FOLDS, *Counter(labels).values())
    logistic = LogisticRegression(max_iter=1000)
    # by accuracy a rare class would often be given up
    by = make_scorer(lambda right, said: glue_score(task, {"": score(task, said, np.asarray(right))}))
    both = {"score": by, "likelihood": "neg_log_loss"}
    chosen = GridSearchCV(logistic, {"C": STRENGTHS}, scoring=both, refit=_best, cv=folds) if folds > 1 else logistic
    return make_pipeline(Scaler(), chosen)


def _best(results: Mapping[str, NDArray[np.float64]]) -> int:
    """The strength that scores best, and of those that score alike the likeliest."""
    return int(np.lexsort((results["mean_test_likelihood"], results["mean_test_score"]))[-1])


def _fitted(encoder: SentenceTransformer, splits: Splits) -> Pipeline:
    refuse_spans(splits.task)
    if splits.task.labels == "classes":
        classes(splits)
    # a column of a data set would be read again at each access
    labels = list(splits.train[splits.task.label])
    return linear(splits.task, labels).fit(_features(encoder, splits.task, splits.train), labels)


def _features(encoder: SentenceTransformer, task: Task, rows: Dataset) -> NDArray[np.float32]:
    first, *others = (embed(encoder, rows[column]) for column in task.columns)
    features: NDArray[np.float32] = np.concatenate(of_pair(first, others[0]), axis=1) if others else first
    return features
