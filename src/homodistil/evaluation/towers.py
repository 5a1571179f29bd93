"""A sentence encoder is fine-tuned as it is used: through its embedding, each text of a pair by itself.

It has never read two texts in one sequence, and a narrow student does not learn to from a few thousand rows. Features
are those of a probe, and the head starts as the probe that fits the encoder as it is: a head that starts at random
pulls the encoder about before it knows anything (Kumar et al. 2022, *Fine-Tuning can Distort Pretrained Features*).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from homodistil.evaluation.probe import layer, of_pair
from homodistil.evaluation.similarity import open_encoder
from homodistil.evaluation.tasks import Splits, Task


class Towers(nn.Module):
    """A sentence encoder with a linear head on the features of one embedding, or of two.

    Args:
        model: a sentence-transformers folder, or the name of one.
        splits: the task's data; the head starts as the probe of its training rows.
        classes: its classes in order; none for numbers.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the training rows have a single class.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, model: Path | str, splits: Splits, classes: Sequence[Any], *, trust_remote_code: bool = False
    ) -> None:
        super().__init__()
        self.encoder = open_encoder(model, trust_remote_code)
        self.classes, self.columns = len(classes), len(splits.task.columns)
        self.prompt: str = self.encoder.prompts.get(self.encoder.default_prompt_name) or ""
        """What the encoder puts before each text."""
        self._prompt_length = _tokens_before(self.prompt, self.tokenizer)
        weight, bias, mean, scale = map(torch.from_numpy, layer(self.encoder, splits))
        self.head = nn.Linear(weight.shape[1], len(weight))
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        # features of an embedding of length 1 are so small that a head on them as they are would hardly move
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's."""
        return self.encoder.tokenizer

    @property
    def longest(self) -> int:
        """Tokens that the encoder reads at most."""
        return int(self.encoder.max_seq_length or self.tokenizer.model_max_length)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (batch, classes), or (batch, 1) for a number, and the loss where labels are given.

        Args:
            input_ids: (batch, columns, seq).
            attention_mask: the same shape.
            labels: (batch,).
        """
        texts = [self._embedded(input_ids[:, c], attention_mask[:, c]) for c in range(self.columns)]
        features = torch.cat(of_pair(*texts), dim=-1) if self.columns > 1 else texts[0]
        # bf16 would round numbers that lie far from zero to more than they differ by
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head((features - self.mean) / self.scale)
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits, labels) if self.classes else F.mse_loss(logits[:, 0], labels.float())
        return {"loss": loss, "logits": logits}

    def _embedded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (batch, hidden) of one column, read as far as its own longest text reaches."""
        inside = mask.any(0)
        inputs: dict[str, Any] = {"input_ids": ids[:, inside], "attention_mask": mask[:, inside]}
        if self._prompt_length:
            # some encoders leave the prompt's tokens out of the mean
            inputs["prompt_length"] = self._prompt_length
        return F.normalize(self.encoder(inputs)["sentence_embedding"].float(), dim=-1)

    def encoded(
        self,
        rows: Dataset,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        label: Callable[[Any], float],
    ) -> Dataset:
        """Rows as they are read: the tokens of each text, the longest text's `length`, by which rows are grouped."""

        def encode(row: Mapping[str, Any]) -> dict[str, Any]:
            texts = [self.prompt + row[c] for c in task.columns]
            ids = tokenizer(texts, truncation=True, max_length=length)["input_ids"]
            return {"input_ids": ids, "length": max(map(len, ids)), "labels": label(row[task.label])}

        return rows.map(encode, remove_columns=rows.column_names, load_from_cache_file=False)


def _tokens_before(prompt: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a prompt takes with those that open a sequence; 0 without a prompt."""
    if not prompt:
        return 0
    ids = tokenizer(prompt)["input_ids"]
    return len(ids) - (ids[-1] in (tokenizer.sep_token_id, tokenizer.eos_token_id))


class TowersCollator:
    """Makes a batch of rows, padded to their longest text.

    Args:
        tokenizer: pads.
        multiple: what the padded length is a multiple of.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, multiple: int | None = None) -> None:
        self.tokenizer, self.multiple = tokenizer, multiple

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (batch, columns, seq), and `labels` (batch,)."""
        texts = [{"input_ids": ids} for row in rows for ids in row["input_ids"]]
        padded = self.tokenizer.pad(texts, pad_to_multiple_of=self.multiple, return_tensors="pt")
        shape = (len(rows), len(rows[0]["input_ids"]), -1)
        made = {name: padded[name].view(shape) for name in ("input_ids", "attention_mask")}
        return {**made, "labels": torch.tensor([row["labels"] for row in rows])}
