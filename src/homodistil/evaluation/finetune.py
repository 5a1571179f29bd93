"""Fine-tuning on a labelled task through the transformers Trainer, and the task's metrics afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from homodistil.errors import UserError, first_line
from homodistil.evaluation import squad
from homodistil.evaluation.labels import classes
from homodistil.evaluation.metrics import score, summary
from homodistil.evaluation.models import right_padding_tokenizer, transformer_folder
from homodistil.evaluation.rows import Label, encoded, length_of, multiple, warn_of_cut_rows, without_types
from homodistil.evaluation.similarity import is_sentence_encoder
from homodistil.evaluation.tasks import Splits, Task
from homodistil.evaluation.towers import Towers, TowersCollator
from homodistil.evaluation.training import Settings, train_and_predict
from homodistil.loading import longest

GRID = (0.5, 1.0, 2.0)
"""Learning rates tried on request, as multiples of the default, which goes with the width."""
GRID_HELDOUT = 0.1
"""The share of the training rows on which the best learning rate is chosen; nothing is chosen on scored rows."""
EXAMPLES = 30_000
"""Training examples seen at least, within `EPOCHS`: small tasks need more epochs."""
EPOCHS = (3, 10)


def defaults(task: Task, rows: int, hidden: int) -> Settings:
    """Settings by size: more epochs for small tasks, higher learning rates for narrow models.

    The learning rate is 3e-5 at BERT-base's width of 768 and goes with one over the width, as the rate does that Adam
    needs for matrices (Yang et al. 2022, *Tensor Programs V*, table 3).
    """
    epochs = int(np.clip(round(EXAMPLES / rows), *EPOCHS))
    return Settings(learning_rate=3e-5 * 768 / hidden, epochs=epochs, length=length_of(task))


def best_of_grid(learn: Callable[..., dict[str, float]], splits: Splits, settings: Settings) -> Settings:
    """The settings with the multiple of the learning rate that scores best on training rows held out for this.

    Args:
        learn: what a model scores once it has learnt: `finetune` or `finetune_images`, of one model.
        splits: the task's data.
        settings: those whose learning rate is multiplied.

    Raises:
        UserError: there are too few rows to hold two out that are of classes which the others have.
    """
    task = splits.task
    parts = splits.train.train_test_split(test_size=GRID_HELDOUT, seed=0)
    held, known = parts["test"], set(parts["train"][task.label][:]) if task.labels == "classes" else set()
    if known:
        held = held.select([k for k, label in enumerate(held[task.label]) if label in known])
    if len(held) < 2:
        raise UserError(
            f"Cannot choose a learning rate for {task.name} by {len(held)} of its {len(splits.train)} training rows.",
            "A tenth of them is held out, of which two must be of classes that the others have.",
            "Leave --grid out, or give more rows.",
        )
    inner = Splits(task, parts["train"], {"held": held})
    scored = {}
    for times in GRID:
        tried = replace(settings, learning_rate=times * settings.learning_rate)
        scored[tried] = learn(inner, tried, seed=0)["score"]
    return max(scored, key=lambda s: scored[s])


def finetune(
    model: Path, splits: Splits, settings: Settings, *, seed: int, trust_remote_code: bool = False
) -> dict[str, float]:
    """Fine-tune a model and score it.

    Args:
        model: a folder or hub name that `from_pretrained` opens.
        splits: the task's data.
        settings: how to learn.
        seed: of the new head, the order and dropout.
        trust_remote_code: run code that comes with the model.

    Returns:
        Each metric of each scored split (`accuracy`, or `validation_matched/accuracy` where there are several),
        and `score`, their mean as GLUE defines it, 0 to 100.

    Warns:
        UserWarning: there are rows that are not read to their end.

    Raises:
        UserError: the labels of scored rows are unknown, or the model has no such head.
    """
    task = splits.task
    folder = Path(transformer_folder(str(model)))
    tokenizer = right_padding_tokenizer(folder, trust_remote_code)
    torch.manual_seed(seed)
    if task.labels == "span":
        squad.refuse_slow(str(model), tokenizer, task)
        net = open_with_head(AutoModelForQuestionAnswering, folder, {}, trust_remote_code)
        without_types(net, tokenizer)
        length = min(settings.length, longest(net, tokenizer))
        collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple(length))
        per_split = squad.learn_and_answer(
            lambda train, evaluated: train_and_predict(net, collator, train, evaluated, settings, seed),
            tokenizer,
            splits,
            length,
        )
    else:
        known = classes(splits) if task.labels == "classes" else []
        middle, spread = (0.0, 1.0) if known or is_sentence_encoder(model) else _scale(splits)
        label: Label = {c: i for i, c in enumerate(known)}.__getitem__ if known else lambda v: (v - middle) / spread
        net, collate, read, length = _reader(model, splits, known, tokenizer, settings.length, trust_remote_code)
        train = read(splits.train, task, tokenizer, length, label)
        evaluated = {s: read(rows, task, tokenizer, length, label) for s, rows in splits.evaluated.items()}
        warn_of_cut_rows(task, length, (train, *evaluated.values()))
        answers = train_and_predict(net, collate, train, evaluated, settings, seed)
        per_split = {}
        for split, logits in answers.items():
            right = splits.evaluated[split][task.label][:]
            if known:
                per_split[split] = score(task, logits.argmax(-1), np.asarray([label(v) for v in right]))
            else:
                per_split[split] = score(task, middle + spread * logits[:, 0], np.asarray(right, dtype=float))
    return summary(task, per_split)


def _reader(
    model: Path, splits: Splits, known: Sequence[Any], tokenizer: PreTrainedTokenizerBase, most: int, trust: bool
) -> tuple[nn.Module, DataCollatorWithPadding | TowersCollator, Callable[..., Dataset], int]:
    """A model with a head for classes or numbers, what makes its batches and rows, and their tokens, `most` at most."""
    if is_sentence_encoder(model):
        net = Towers(model, splits, known, trust_remote_code=trust)
        length = min(most, net.longest)
        return net, TowersCollator(tokenizer, multiple(length)), net.encoded, length
    options = {"num_labels": max(1, len(known)), "problem_type": _PROBLEM[splits.task.labels]}
    folder = Path(transformer_folder(str(model)))
    opened = open_with_head(AutoModelForSequenceClassification, folder, options, trust)
    opened.config.pad_token_id = tokenizer.pad_token_id
    without_types(opened, tokenizer)
    length = min(most, longest(opened, tokenizer))
    return opened, DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple(length)), encoded, length


def _scale(splits: Splits) -> tuple[float, float]:
    """Mean and standard deviation of the numbers to learn: a new head starts near 0, and would never get to 60.

    That of a sentence encoder starts as a probe, which has learnt them.
    """
    numbers = np.asarray(splits.train[splits.task.label][:], dtype=float)
    return float(numbers.mean()), float(numbers.std()) or 1.0


_PROBLEM = {"classes": "single_label_classification", "number": "regression"}


def open_with_head(auto: Any, model: Path, options: dict[str, Any], trust: bool) -> PreTrainedModel:
    """A model with a head, which is new unless the model has one of its size, in float32.

    Args:
        auto: the class that opens it.
        model: its folder or hub name.
        options: of `from_pretrained`.
        trust: run code that comes with the model.

    Raises:
        UserError: it cannot be opened so.
    """
    try:
        opened: PreTrainedModel = auto.from_pretrained(
            model, trust_remote_code=trust, dtype=torch.float32, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot fine-tune {model}: {first_line(error)}",
            f"The model must open with {auto.__name__}.from_pretrained.",
            "Check the path, or leave the task out of --tasks.",
        ) from error
    # what a configuration asks for beside the answers would be taken for answers
    opened.config.output_hidden_states = opened.config.output_attentions = False
    return opened
