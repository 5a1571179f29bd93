"""What is compared: predictions at positions that count, in chunks, and batches that know whether they are padded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertModel,
)

from homodistil.data.collate import draws
from homodistil.distill.prepare import Run
from homodistil.losses import losses, outputs
from runs import batch_of


def test_logits_at_predicted_positions_are_the_models_own(ready: Callable[..., Run]) -> None:
    """Making few logits changes none of them."""
    run = ready(BertForMaskedLM)
    batch = batch_of(run)
    whole = run.teacher.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    tokens = run.runner(run.teacher.model, batch).tokens
    assert tokens is not None
    made = tokens.head(tokens.states)
    torch.testing.assert_close(made, whole.flatten(0, 1)[batch["positions"]])


def test_a_batch_is_known_to_be_unpadded_where_its_tokens_are_as_many_as_its_rows(
    ready: Callable[..., Run], tmp_path: Path
) -> None:
    """The number lies on the CPU; a batch without it is not known to be."""
    text = {"length": 32, "packing": "blocks"}
    packed_run = ready(BertForMaskedLM, out=str(tmp_path / "packed"), text=text)
    runs = [packed_run, ready(BertModel, out=str(tmp_path / "padded"))]
    packed, padded = (run.batch(next(draws(run.corpus.train, 4, start=0))) for run in runs)
    assert [int(b["tokens"]) for b in (packed, padded)] == [int(b["attention_mask"].sum()) for b in (packed, padded)]
    assert [outputs.unpadded(b) for b in (packed, padded)] == [True, False]
    assert not outputs.unpadded({"attention_mask": packed["attention_mask"]})


def test_predictions_of_tokens_in_chunks_equal_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a language model are the same however few positions are predicted at a time."""
    torch.manual_seed(0)
    states, weight = torch.randn(13, 6), torch.randn(9, 6)
    labels, theirs = torch.randint(9, (13,)), torch.randn(13, 9)
    gradients, values = [], []
    for size in (1 << 20, 4 * 9, 1):
        monkeypatch.setattr(outputs, "CHUNK", size)
        mine, head = states.clone().requires_grad_(), weight.clone().requires_grad_()
        student = outputs.TokenPredictions(mine, lambda x, head=head: x @ head.T, 9)  # type: ignore[misc]
        teacher = outputs.TokenPredictions(theirs, lambda x: x, 9)
        both = losses.tokens(student, teacher, labels, 2.0)
        (both[0] + 3 * both[1]).backward()  # type: ignore[no-untyped-call]
        values.append(torch.stack(both).detach())
        gradients.append((mine.grad, head.grad))
    logits = states @ weight.T
    expected = torch.stack((torch.nn.functional.cross_entropy(logits, labels), losses.prediction(logits, theirs, 2.0)))
    for value, gradient in zip(values, gradients, strict=True):
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, gradients[0])
