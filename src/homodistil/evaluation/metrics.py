"""The metrics of the tasks, each a plain function of predictions and labels, in scikit-learn's and scipy's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_absolute_error, r2_score

from homodistil.evaluation.tasks import Task

Numbers = NDArray[np.generic]


def _correlation(measure: Callable[[Numbers, Numbers], object]) -> Callable[[Numbers, Numbers], float]:
    def correlate(predicted: Numbers, labels: Numbers) -> float:
        if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
            # a constant says nothing about the order
            return 0.0
        return float(measure(predicted, labels).statistic)  # type: ignore[attr-defined]

    return correlate


METRICS: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": lambda predicted, labels: float(accuracy_score(labels, predicted)),
    "f1": lambda predicted, labels: float(f1_score(labels, predicted, zero_division=0.0)),
    "macro_f1": lambda predicted, labels: float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    "matthews": lambda predicted, labels: float(matthews_corrcoef(labels, predicted)),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
    "r2": lambda predicted, labels: float(r2_score(labels, predicted)),
    "mae": lambda predicted, labels: float(mean_absolute_error(labels, predicted)),
}
"""Metrics of classes and numbers: (predicted, labels), both (examples,). Those of spans are in `squad`."""


def score(task: Task, predicted: Numbers, labels: Numbers) -> dict[str, float]:
    """A task's metrics of one split, in 0 to 1 or in their own units."""
    return {name: METRICS[name](predicted, labels) for name in task.metrics}


def glue_score(task: Task, splits: Mapping[str, Mapping[str, float]]) -> float:
    """One number for a task: the mean of its metrics and splits, times 100; of `r2` and `mae` the first alone."""
    counted = task.metrics[:1] if "mae" in task.metrics else task.metrics
    return 100 * float(np.mean([values[name] for values in splits.values() for name in counted]))


def summary(task: Task, splits: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All metrics in one mapping, named by their split where there are several, and the task's `score`."""
    flat = {
        (name if len(splits) == 1 else f"{split}/{name}"): value
        for split, values in splits.items()
        for name, value in values.items()
    }
    return {**flat, "score": glue_score(task, splits)}
