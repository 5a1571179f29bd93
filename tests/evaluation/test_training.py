"""How fine-tuning uses the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from conftest import tiny_config
from homodistil.evaluation import training
from homodistil.evaluation.training import Settings, train_and_predict


def _tuned(tokenizer: PreTrainedTokenizerBase) -> tuple[BertForSequenceClassification, torch.Tensor]:
    """A model without dropout after two epochs of texts of up to twelve tokens, and its answers."""
    torch.manual_seed(0)
    net = BertForSequenceClassification(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    texts = ["the cat", "the dog ran to the cat and the cat ran", "a dog"] * 8
    rows = Dataset.from_dict({**tokenizer(texts), "labels": [0, 1, 0] * 8})
    settings = Settings(learning_rate=1e-3, epochs=2, batch=8)
    answers = train_and_predict(net, DataCollatorWithPadding(tokenizer), rows, {"same": rows}, settings, seed=0)
    return net, torch.from_numpy(answers["same"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's own kernel is the faster one")
def test_short_sequences_attend_plainly_on_a_cpu_and_learn_the_same(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no row is longer, plain products replace the kernel; but for rounding, what is learnt stays."""
    monkeypatch.setattr(training, "PLAIN", 12)
    plain, answers = _tuned(tokenizer)
    monkeypatch.setattr(training, "PLAIN", 11)
    kernel, other = _tuned(tokenizer)
    assert plain.config._attn_implementation == "eager"
    assert kernel.config._attn_implementation == "sdpa"
    torch.testing.assert_close(answers, other, atol=0.02, rtol=0.02)
    assert answers.std(0).min() > 0.02


def test_a_step_has_the_stated_examples_however_many_gpus_there_are(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four one is used: what is learnt is the same on any machine."""

    def on_four(**options: Any) -> Any:
        arguments = TrainingArguments(**options)
        arguments._n_gpu = 4
        return arguments

    monkeypatch.setattr(training, "TrainingArguments", on_four)
    seen: list[int] = []
    pad = DataCollatorWithPadding(tokenizer)

    def counted(rows: list[Any]) -> Any:
        seen.append(len(rows))
        return pad(rows)

    rows = Dataset.from_dict({**tokenizer(["the cat", "a dog"] * 12), "labels": [0, 1] * 12})
    settings = Settings(learning_rate=1e-3, epochs=1, batch=8)
    net = BertForSequenceClassification(tiny_config())
    train_and_predict(net, counted, rows, {"same": rows}, settings, seed=0)
    assert seen == [8] * 6


def test_the_learning_rate_rises_over_a_tenth_of_the_steps(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all epochs together, the last batches of which are smaller."""
    given: dict[str, Any] = {}

    def kept(**options: Any) -> Any:
        given.update(options)
        return TrainingArguments(**options)

    monkeypatch.setattr(training, "TrainingArguments", kept)
    rows = Dataset.from_dict({**tokenizer(["the cat", "a dog"] * 5), "labels": [0, 1] * 5})
    settings = Settings(learning_rate=1e-3, epochs=9, batch=4)
    net = BertForSequenceClassification(tiny_config(num_hidden_layers=1))
    train_and_predict(net, DataCollatorWithPadding(tokenizer), rows, {}, settings, seed=0)
    assert given["warmup_steps"] == 2
