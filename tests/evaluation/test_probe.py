"""A probe learns what embeddings tell, and no more."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from conftest import WORDS
from homodistil.errors import UserError
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.probe import _best, _features, _fitted, layer, linear, probe
from homodistil.evaluation.similarity import open_encoder
from homodistil.evaluation.tasks import Splits, Task


def _rows(count: int, seed: int, label: Any) -> Dataset:
    draw = random.Random(seed)
    texts = [(" ".join(draw.choices(WORDS, k=4)), " ".join(draw.choices(WORDS, k=4))) for _ in range(count)]
    columns = {"one": [a for a, _ in texts], "other": [b for _, b in texts]}
    return Dataset.from_dict({**columns, "label": [label(a, b) for a, b in texts]})


def _splits(label: Any, *columns: str, **task: Any) -> Splits:
    values = {"name": "own", "columns": columns, "labels": "classes", "metrics": ("accuracy",), **task}
    return Splits(Task(**values), _rows(1000, 0, label), {"validation": _rows(100, 1, label)})


def test_a_word_that_an_embedding_tells_is_found_and_the_same_each_time(encoder: Path) -> None:
    """Whether a text has a cat; labels may be words."""
    splits = _splits(lambda a, _: "cat" if "cat" in a.split() else "none", "one")
    first, second = (probe(encoder, splits) for _ in range(2))
    assert first["accuracy"] > 0.9
    assert first["score"] == pytest.approx(100 * first["accuracy"])
    assert first == second


def test_labels_that_no_text_tells_are_not_found(encoder: Path) -> None:
    """Coins thrown after the text was written are guessed half of the time."""
    coin = random.Random(2)
    assert probe(encoder, _splits(lambda a, b: coin.random() < 0.5, "one"))["accuracy"] < 0.65


def test_numbers_of_pairs_are_told_by_both_texts(encoder: Path) -> None:
    """How many words two texts have in common follows from their features, however they are ordered."""

    def shared(a: str, b: str) -> float:
        return float(len(set(a.split()) & set(b.split())))

    options: dict[str, Any] = {"labels": "number", "metrics": ("pearson", "spearman")}
    both = probe(encoder, _splits(shared, "one", "other", **options))
    assert both["pearson"] > 0.35
    assert probe(encoder, _splits(shared, "other", "one", **options)) == pytest.approx(both, abs=0.02)


def test_a_probe_is_chosen_by_what_it_is_scored_by(encoder: Path) -> None:
    """Most often right is who never says what is seldom so; of that Matthews' correlation thinks nothing."""
    by = {}
    for metric in ("accuracy", "matthews"):
        coin = random.Random(0)
        splits = _splits(lambda a, _, coin=coin: "cat" in a.split() and coin.random() < 0.4, "one", metrics=(metric,))
        by[metric] = probe(encoder, splits)[metric]
    assert by["accuracy"] == pytest.approx(1 - np.mean(splits.evaluated["validation"]["label"][:]))
    assert by["matthews"] > 0.1


def test_numbers_are_probed_at_the_strengths_that_classes_are() -> None:
    """Of a ridge the strength itself is asked for, of a logistic regression its inverse."""
    number, classes = (
        replace(_splits(lambda a, _: len(a), "one").task, labels=labels) for labels in ("number", "classes")
    )
    ridge, logistic = (linear(task, [0, 1] * 9)[-1] for task in (number, classes))
    np.testing.assert_allclose(np.sort(1 / ridge.alphas), np.sort(logistic.param_grid["C"]))


@pytest.mark.parametrize("words", [["cat"], ["cat", "dog"]])
def test_a_probe_is_a_layer_that_says_the_same(words: list[str], encoder: Path) -> None:
    """Each class alike likely, where there are two as well, of which one weight tells both."""
    splits = _splits(lambda a, _: next((word for word in words if word in a.split()), "none"), "one")
    opened = open_encoder(encoder)
    weight, bias, mean, scale = layer(opened, splits)
    rows = splits.evaluated["validation"]
    features = _features(opened, splits.task, rows)
    likely = np.exp((features - mean) / scale @ weight.T + bias)
    expected = _fitted(opened, splits).predict_proba(features)
    np.testing.assert_allclose(likely / likely.sum(1, keepdims=True), expected, atol=1e-4)


def test_of_probes_that_score_alike_the_likelier_is_chosen() -> None:
    """The score comes first."""
    alike = {"mean_test_score": np.array([0.0, 0.0, 0.0, -1.0]), "mean_test_likelihood": np.array([-3, -1, -2, 0.0])}
    assert _best(alike) == 1
    assert _best({**alike, "mean_test_score": np.array([0.0, 0.0, 0.1, -1.0])}) == 2


def test_a_class_with_a_single_row_is_no_obstacle(encoder: Path) -> None:
    """Nothing can be chosen by cross-validation then, and the probe is fitted all the same."""
    splits = _splits(lambda a, _: "cat" in a.split(), "one")
    rows = splits.train.to_list()
    alone = [next(r for r in rows if r["label"]), *[r for r in rows if not r["label"]]]
    made = probe(encoder, Splits(splits.task, Dataset.from_list(alone), splits.evaluated))
    assert 0 < made["accuracy"] < 1


def test_spans_are_refused_before_anything_is_measured(encoder: Path, tmp_path: Path) -> None:
    """The place of an answer is in no embedding of a whole text."""
    answer = {"text": ["cat"], "answer_start": [0]}
    rows = [{"question": "what", "context": "cat house", "answers": answer}] * 4
    for split in ("train", "validation"):
        (tmp_path / "squad").mkdir(exist_ok=True)
        Dataset.from_list(rows).to_json(tmp_path / "squad" / f"{split}.jsonl")
    said: list[str] = []
    with pytest.raises(UserError, match="Cannot probe squad"):
        evaluate(str(encoder), probes=["squad"], data_dir=str(tmp_path), say=said.append)
    assert said == []
