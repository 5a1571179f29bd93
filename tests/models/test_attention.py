"""Queries and keys are captured as the model computes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BertModel,
    masking_utils,
)

from homodistil.distill.prepare import Run
from homodistil.models import attention
from homodistil.models.attention import IMPLEMENTATION, captured
from runs import batch_of
from zoo import tiny


def test_captured_attention_computes_what_sdpa_computes(
    ready: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padding, for short sequences and long ones; and nothing is kept outside the block."""
    run = ready(BertModel)
    model, batch = run.teacher.model, batch_of(run)
    assert (batch["attention_mask"] == 0).any()
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    model.set_attn_implementation("sdpa")
    expected = model(**inputs).last_hidden_state
    model.set_attn_implementation(IMPLEMENTATION)
    for short in (256, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        with captured() as layers:
            made = model(**inputs).last_hidden_state
        torch.testing.assert_close(made[real], expected[real], rtol=1e-5, atol=1e-5)
        assert [tuple(layer.queries.shape[:2]) for layer in layers] == [(4, 4), (4, 4)]
        model(**inputs)
        assert len(layers) == 2


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "ModernBERT"])
def test_a_mask_that_masks_nothing_is_not_made_also_while_a_gpu_is_recorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention without a mask is several times as fast there. Windows, which look at a part, need theirs."""
    model = tiny(name)
    model.set_attn_implementation(IMPLEMENTATION)
    inputs = {"input_ids": torch.randint(5, 20, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    made: list[int | None] = []

    def spied(**kwargs: Any) -> Any:
        made.append(kwargs.get("local_size"))
        return masking_utils.sdpa_mask(**kwargs)

    with torch.no_grad():
        plain = model(**inputs).logits
        monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
        monkeypatch.setattr(attention, "sdpa_mask", spied)
        with attention.without_padding():
            torch.testing.assert_close(model(**inputs).logits, plain)
        assert made == ([3] if name == "ModernBERT" else [])
        torch.testing.assert_close(model(**inputs).logits, plain)
    assert made == ([3, None, 3] if name == "ModernBERT" else [None])
