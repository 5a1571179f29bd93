"""How rows of a task are read by a model with a head, to learn from or to be scored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil.evaluation.tasks import Task
from homodistil.evaluation.training import lengths

Label = Callable[[Any], float]
"""What the Trainer learns of a label: the number of its class, or its number, in standard deviations from the mean."""
LENGTH = {"classes": 128, "number": 128, "span": 384}
"""Tokens of an example of GLUE and SQuAD at most, as BERT was fine-tuned."""
OWN_LENGTH = 512
"""The same of a user's own task, whose texts may tell at their end what they tell; short ones cost no more by it."""


def length_of(task: Task) -> int:
    """Tokens of an example that are read at most, where nobody says how many."""
    return OWN_LENGTH if task.hub is None else LENGTH[task.labels]


def encoded(rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, length: int, label: Label) -> Dataset:
    """Rows as they are read: the tokens of a text, or of a pair, `length` at most, and what is learnt of the label."""

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        made = tokenizer(*(batch[c] for c in task.columns), truncation=True, max_length=length)
        return {**made, "labels": [label(v) for v in batch[task.label]]}

    return rows.map(encode, batched=True, remove_columns=rows.column_names, load_from_cache_file=False)


def warn_of_cut_rows(task: Task, length: int, read: Sequence[Dataset]) -> None:
    """Say how many rows are not read to their end.

    Warns:
        UserWarning: there are some.
    """
    counted = [tokens for rows in read for tokens in lengths(rows)]
    if full := sum(tokens >= length for tokens in counted):
        warnings.warn(
            f"{full:,} of {len(counted):,} rows of {task.name} fill all {length} tokens that are read; "
            "what comes after is not (--max-length).",
            stacklevel=2,
        )


def without_types(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer leave out types of text for a model with one, which has no row for the second text of a pair."""
    if getattr(net.config, "type_vocab_size", 2) < 2:
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n != "token_type_ids"]


def multiple(length: int) -> int | None:
    """What a batch's length is a multiple of: 8, where none then exceeds what is read at most."""
    return None if length % 8 else 8
