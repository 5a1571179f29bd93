"""Metrics say what GLUE says."""

from __future__ import annotations

import numpy as np
import pytest

from homodistil.evaluation.metrics import METRICS, glue_score, score
from homodistil.evaluation.tasks import TASKS, Task

LABELS = np.array([1, 0, 1, 1, 0, 1, 0, 1])
SAID = np.array([1, 0, 0, 1, 1, 1, 0, 1])


def test_metrics_of_classes_are_counted_by_hand() -> None:
    """6 of 8 right; 4 true positives, 1 false positive, 1 false negative, 2 true negatives."""
    assert METRICS["accuracy"](SAID, LABELS) == 6 / 8
    assert METRICS["f1"](SAID, LABELS) == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))
    assert METRICS["matthews"](SAID, LABELS) == pytest.approx((4 * 2 - 1 * 1) / np.sqrt(5 * 5 * 3 * 3))


def test_saying_one_thing_always_is_worth_nothing() -> None:
    """A constant has no correlation with anything, and is no error."""
    constant = np.ones(8)
    for name in ("matthews", "pearson", "spearman"):
        assert METRICS[name](constant, LABELS.astype(float) if name != "matthews" else LABELS) == 0


def test_correlations_are_of_values_and_of_ranks() -> None:
    """A monotonous curve has rank correlation 1, and less of the values."""
    x = np.linspace(0, 3, 20)
    assert METRICS["spearman"](np.exp(x), x) == pytest.approx(1)
    assert METRICS["pearson"](np.exp(x), x) < 0.95
    assert METRICS["pearson"](2 * x + 1, x) == pytest.approx(1)


def test_the_score_is_the_mean_of_a_tasks_metrics() -> None:
    """MRPC averages accuracy and F1, MNLI both validation sets; a regression of one's own counts by R² alone."""
    mrpc = score(TASKS["mrpc"], SAID, LABELS)
    assert glue_score(TASKS["mrpc"], {"validation": mrpc}) == pytest.approx(50 * (mrpc["accuracy"] + mrpc["f1"]))
    splits = {"validation_matched": {"accuracy": 0.5}, "validation_mismatched": {"accuracy": 0.7}}
    assert glue_score(TASKS["mnli"], splits) == pytest.approx(60)
    own = Task(name="own", columns=("text",), labels="number", metrics=("r2", "spearman", "mae"))
    assert glue_score(own, {"validation": {"r2": 0.4, "spearman": 0.9, "mae": 12.0}}) == pytest.approx(40)


def test_macro_f1_and_metrics_of_numbers_are_counted_by_hand() -> None:
    """The mean of both classes' F1; a mean distance; a share of the variance."""
    assert METRICS["macro_f1"](SAID, LABELS) == pytest.approx((0.8 + 2 * 2 / (2 * 2 + 1 + 1)) / 2)
    assert METRICS["mae"](np.array([1.0, 5.0]), np.array([2.0, 2.0])) == 2
    assert METRICS["r2"](np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0])) == pytest.approx(1 - 1 / (14 / 3))
