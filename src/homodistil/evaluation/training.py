"""Training and prediction by the transformers Trainer, in the precision and the way that suit the machine."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from homodistil.errors import UserError
from homodistil.loading import computes_bf16

BATCH = 32
PLAIN = 128
"""Sequences up to it attend by plain matrix products on a CPU: torch's kernel was measured to be slower there, by
more the narrower heads are. Longer ones would store too large a map where nothing is dropped."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is fine-tuned.

    Attributes:
        learning_rate: at its highest; linear warm-up over a tenth of the steps, then linear decay.
        epochs: passes over the training rows.
        batch: examples in a step.
        length: tokens of an example at most; 0 of images.
    """

    learning_rate: float
    epochs: int
    batch: int = BATCH
    length: int = 128


def train_and_predict(
    net: nn.Module,
    collate: Callable[[Any], Any],
    train: Dataset,
    evaluated: Mapping[str, Dataset],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Train in place, and what the model then says of each split: of texts, or of rows of images.

    Raises:
        UserError: the norm of the gradients was no finite number at the end of an epoch. Clipping would have made
            nothing of them, and the model would be scored as it came.
    """
    texts = bool({"input_ids", "length"} & set(train.column_names))
    if texts:
        _attend(net, max(max(lengths(rows)) for rows in (train, *evaluated.values())))
    steps = -(-len(train) // settings.batch) * settings.epochs
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch,
            per_device_eval_batch_size=settings.batch,
            warmup_steps=steps // 10,
            weight_decay=0.01,
            train_sampling_strategy="group_by_length" if texts else "random",
            # what is not read has been left out of the rows, but for the length that they are grouped by
            remove_unused_columns=False,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            bf16=computes_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            save_strategy="no",
            logging_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        # on several GPUs a step would have as many times the examples
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = Trainer(model=net, args=arguments, train_dataset=train, data_collator=collate)
        # it would print its timings into our table
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        _refuse_nonfinite(trainer.state.log_history)
        # the strategy would sort scored rows as well, and answers must come in the rows' order
        trainer.args.train_sampling_strategy = "random"
        return {split: trainer.predict(rows).predictions for split, rows in evaluated.items()}


def _refuse_nonfinite(records: Sequence[Mapping[str, float]]) -> None:
    if wrong := [r for r in records if not math.isfinite(r.get("grad_norm", 0.0))]:
        raise UserError(
            f"Cannot fine-tune this model: the norm of its gradients was {wrong[0]['grad_norm']} after epoch "
            f"{wrong[0]['epoch']:.0f}.",
            "Gradients must stay finite; one that is not makes the model learn nothing, or destroys it.",
            "Check its weights for numbers that are none or extreme, or measure it without --tasks.",
        )


def lengths(rows: Dataset) -> list[int]:
    """Tokens of each row; of a pair of texts that are read one by one, of the longer."""
    return list(rows["length"]) if "length" in rows.column_names else [len(ids) for ids in rows["input_ids"]]


def _attend(net: nn.Module, longest: int) -> None:
    """Let what transformers built attend plainly where that is faster."""
    if torch.cuda.is_available() or longest > PLAIN:
        return
    for part in net.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation("eager")
