"""What was recorded is played back for batches of the same shape, and only while the same tensors are worked on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from homodistil.distill.recorder import MOST, SETTLED, Recorder

CPU = torch.device("cpu")


class Tape:
    """Records as a GPU does: nothing is computed at once, and playing computes into the same tensors."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, function: Callable[[], Tensor], pool: Any) -> tuple[Tensor, Callable[[], Any]]:
        self.recorded += 1
        made = torch.full((), torch.nan)
        return made, lambda: made.copy_(function())


def _sum(batch: Any) -> Tensor:
    total: Tensor = batch["input_ids"].sum().float()
    return total


def _batch(value: int, *shape: int) -> dict[str, Tensor]:
    return {"input_ids": torch.full(shape, value), "attention_mask": torch.ones(shape)}


def test_a_shape_is_recorded_when_it_comes_again_and_all_has_settled() -> None:
    """Until then, and for shapes that came once, the function is called; what is made is the same in any case."""
    tape = Tape()
    recorder: Recorder[Tensor] = Recorder(CPU, tape)
    works_on = [torch.zeros(1)]
    for value in range(SETTLED + 5):
        assert recorder(_sum, _batch(value, 2, 8), works_on) == 16 * value
        assert tape.recorded == int(value >= SETTLED)
    for value in range(3):
        assert recorder(_sum, _batch(value, 2, 16), works_on) == 32 * value
        assert tape.recorded == 1 + int(value >= 1)


def test_other_tensors_make_recordings_void() -> None:
    """A cut makes new parameters; what was recorded would go on with the old ones."""
    tape = Tape()
    recorder: Recorder[Tensor] = Recorder(CPU, tape)
    weight = torch.ones(1)
    for _ in range(SETTLED + 2):
        recorder(lambda batch: _sum(batch) * weight[0], _batch(1, 2, 8), [weight])
    assert tape.recorded == 1
    heavier = torch.full((1,), 3.0)
    for _ in range(SETTLED + 2):
        assert recorder(lambda batch: _sum(batch) * heavier[0], _batch(1, 2, 8), [heavier]) == 48
    assert tape.recorded == 2


def test_batches_with_and_without_padding_are_told_apart() -> None:
    """Models leave out a mask that masks nothing, so that what they do to the two is not the same."""
    tape = Tape()
    recorder: Recorder[Tensor] = Recorder(CPU, tape)
    for tokens in (16, 15):
        for _ in range(SETTLED + 2):
            recorder(_sum, _batch(1, 2, 8) | {"tokens": torch.tensor(tokens)}, [])
    assert tape.recorded == 2


def test_there_are_no_more_recordings_than_the_most() -> None:
    """Each holds memory; further shapes are computed as they come."""
    tape = Tape()
    recorder: Recorder[Tensor] = Recorder(CPU, tape)
    for width in range(1, MOST + 10):
        for value in (*range(SETTLED + 1), 7):
            assert recorder(_sum, _batch(value, 1, width), []) == width * value
    assert tape.recorded == MOST


def test_what_cannot_be_recorded_is_called_with_a_warning() -> None:
    """Once: a model that waits for the GPU does so every time."""
    tries = 0

    def refuse(function: Callable[[], Tensor], pool: Any) -> Any:
        nonlocal tries
        tries += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    recorder: Recorder[Tensor] = Recorder(CPU, refuse)
    assert recorder.keeps_gradients
    for value in range(SETTLED):
        recorder(_sum, _batch(value, 2, 8), [])
    with pytest.warns(UserWarning, match="Steps are not recorded.*not permitted when stream is capturing$"):
        assert recorder(_sum, _batch(2, 2, 8), []) == 32
    assert recorder(_sum, _batch(3, 2, 8), []) == 48
    assert tries == 1
    assert not recorder.keeps_gradients


def test_on_a_cpu_nothing_is_recorded() -> None:
    """It has nothing to wait for."""
    recorder: Recorder[Tensor] = Recorder(CPU)
    assert not recorder.keeps_gradients
    for value in range(SETTLED + 3):
        assert recorder(_sum, _batch(value, 2, 8), []) == 16 * value
