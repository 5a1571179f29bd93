"""Speed is reported for the models that were asked for, in their order."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch

from conftest import WORDS
from homodistil.evaluation import speed
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.models import open_model
from homodistil.evaluation.speed import forward_seconds, in_turns, sentences_per_second
from homodistil.reports.tables import written


def test_seconds_become_figures_with_as_many_threads_as_are_asked_for(
    masked_lm: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Medians over rounds; afterwards torch has as many threads as before."""
    used: list[int] = []

    def in_turns(actions: list[object], rounds: int) -> list[list[float]]:
        used.append(torch.get_num_threads())
        return [[9.0, 2.0 * (k + 1), 0.0] for k in range(len(actions))]

    monkeypatch.setattr(speed, "in_turns", in_turns)
    before = torch.get_num_threads()
    assert sentences_per_second([encoder, masked_lm], ["a cat"] * 4, rounds=1) == [2.0, 1.0]
    made = evaluate(str(masked_lm), lengths=(8,), threads=before + 1)[-1]["values"]
    assert made == {"latency_ms": 2000.0, "sequences_per_second": 16.0}
    assert used[1:] == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_what_comes_first_is_not_counted_and_what_is_short_is_done_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """An action that takes a second to warm up and a hundredth after that takes a hundredth, each time."""
    clock, done = [0.0], itertools.count()

    def action() -> None:
        clock[0] += 0.01 if next(done) else 1.0

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert in_turns([action], 3) == [pytest.approx([0.01] * 3)]
    quick = itertools.count()

    def short() -> None:
        next(quick)
        clock[0] += 0.01

    assert in_turns([short], 3) == [pytest.approx([0.01] * 3)]
    assert next(quick) == 1 + 3 * round(speed.SECONDS / 0.01)


def test_a_large_vocabulary_is_timed_in_equal_passes_of_the_same_sequences(
    masked_lm: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more predictions stand in memory than are allowed; an encoder has none, and reads as its partner does."""
    monkeypatch.setattr(speed, "LOGITS", 3 * 8 * (5 + len(WORDS)))
    for folders, rows in (([masked_lm], 2), ([encoder], 8), ([encoder, masked_lm], 2)):
        opened, read = [open_model(str(folder)) for folder in folders], list[int]()
        for one in opened:
            one.model.register_forward_pre_hook(
                lambda _, args, given, read=read: read.append(len(given["input_ids"])), with_kwargs=True
            )
        forward_seconds(opened, batch=8, length=8, rounds=1)
        assert set(read) == {rows}
        assert sum(read) % 8 == 0


def test_a_smaller_batch_is_said(masked_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the record and in the table, where a vocabulary lets no whole batch be said at once."""
    for limit, batch in ((speed.LOGITS, 32), (12 * 8 * (5 + len(WORDS)), 8)):
        monkeypatch.setattr(speed, "LOGITS", limit)
        record = evaluate(str(masked_lm), lengths=(8,))[-1]
        assert record["settings"].get("batch", 32) == batch
        assert f"sequences/s, batch {batch}" in [line[1] for line in written([record])[1]]
