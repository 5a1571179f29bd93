"""A run computes the same whatever its process has set, and leaves that as it was."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

import homodistil
from conftest import make
from homodistil.models.attention import IMPLEMENTATION, captured, without_padding
from homodistil.models.teacher import attend

OPTIONS: dict[str, Any] = {"steps": 6, "batch": 4, "text": {"length": 24}, "precision": "fp32"}
SURROUNDINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def expected(masked_lm: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of a student of a run in a plain process."""
    return _weights(masked_lm, corpus, tmp_path_factory.mktemp("plain") / "run")


def _weights(teacher: Path, corpus: Path, out: Path) -> dict[str, torch.Tensor]:
    return load_file(homodistil.distil(teacher, corpus, "0.5", out, **OPTIONS).students["0.5"] / "model.safetensors")


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_run_in_bf16_learns_within_autocast_as_without(
    enabled: bool, masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """No step computes with the weights of the step before it."""
    options = OPTIONS | {"precision": "bf16"}
    plain = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "plain", **options)
    with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
        within = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "within", **options)
    ours, theirs = (load_file(r.students["0.5"] / "model.safetensors") for r in (within, plain))
    assert _equal(ours, theirs)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_run_is_the_same_within_any_block_of_torchs(
    name: str, expected: dict[str, torch.Tensor], masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """Bit for bit; and the block's setting holds after it."""
    with SURROUNDINGS[name]():
        before = (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_device())
        made = _weights(masked_lm, corpus, tmp_path / "run")
        assert before == (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_device())
    assert _equal(made, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_is_the_same_whatever_new_tensors_are_made_of(
    dtype: torch.dtype, expected: dict[str, torch.Tensor], masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """Also after one that was refused."""
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(homodistil.UserError):
            homodistil.distil(masked_lm, corpus, "2.0", tmp_path / "refused", **OPTIONS)
        assert torch.get_default_dtype() == dtype
        assert _equal(_weights(masked_lm, corpus, tmp_path / "run"), expected)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_one_thread_captures_is_no_others() -> None:
    """Queries and keys of another thread's forward pass do not come in between, nor its padding."""
    model = make(BertModel)
    attend(model, IMPLEMENTATION)
    ids, mask = torch.arange(5, 13)[None], torch.tensor([[1] * 6 + [0] * 2])
    with torch.no_grad():
        alone = model(input_ids=ids, attention_mask=mask).last_hidden_state
    seen: list[torch.Tensor] = []

    def other() -> None:
        with torch.no_grad(), captured() as layers:
            seen.append(model(input_ids=ids, attention_mask=mask).last_hidden_state)
        assert len(layers) == 2

    with captured() as layers, without_padding():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert layers == []
    assert torch.equal(seen[0], alone)
