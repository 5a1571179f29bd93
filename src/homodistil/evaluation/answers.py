"""What a model says of labelled rows, or images, by its own head, as it is: nothing is learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorWithPadding

from homodistil.errors import UserError
from homodistil.evaluation import squad
from homodistil.evaluation.labelled_images import classes_said
from homodistil.evaluation.metrics import score, summary
from homodistil.evaluation.models import Opened
from homodistil.evaluation.rows import encoded, multiple, warn_of_cut_rows, without_types
from homodistil.evaluation.similarity import is_sentence_encoder
from homodistil.evaluation.tasks import Splits
from homodistil.evaluation.training import BATCH, lengths


def tells_a_number(opened: Opened) -> bool:
    """Whether a model says a number of a text, and no class."""
    return opened.head == "classes" and opened.model.config.num_labels == 1


def refuse_other_head(opened: Opened, splits: Splits) -> None:
    """Refuse a task that asks for something else than the model's head tells.

    Raises:
        UserError: it has no such head, or does not tell one of the classes.
    """
    task, tells = splits.task, _tells(opened)
    if tells != _ASKED[task.labels]:
        raise UserError(
            f"Cannot ask {opened.source} for the answers of {task.name}, which are {_ASKED[task.labels]}.",
            f"Answers come from the model's own head, which must tell what the task asks for; this one tells {tells}.",
            "Leave it out, or learn it: --tasks fine-tunes a new head, --probes fits one to embeddings.",
        )
    if task.labels == "span":
        squad.refuse_slow(opened.source, opened.tokenizer, task)
    if task.labels == "classes":
        for rows in splits.evaluated.values():
            _numbers(opened, splits, rows)


_ASKED = {"classes": "classes", "number": "numbers", "span": "parts of a text"}


def _tells(opened: Opened) -> str:
    """What the head of a model tells, in the words of `_ASKED` where a task may ask for it."""
    if is_sentence_encoder(opened.source):
        return "embeddings"
    if opened.head == "classes":
        if opened.model.config.problem_type == "multi_label_classification":
            return "many labels at once"
        return "numbers" if tells_a_number(opened) else "classes"
    return "parts of a text" if opened.head == "span" else "nothing of the kind"


def answers(opened: Opened, splits: Splits, most: int) -> dict[str, float]:
    """Score what the model says of each scored split.

    Args:
        opened: a classifier, a model that tells a number, or one that answers questions.
        splits: the task's data, of which nothing is learnt.
        most: tokens of an example that are read at most; images have none.

    Returns:
        The task's metrics and its score, as `finetune` gives them.

    Warns:
        UserWarning: there are rows that are not read to their end, or images that cannot be decoded.
    """
    task = splits.task
    if opened.reads_images:
        return summary(task, {split: _of_images(opened, splits, rows) for split, rows in splits.evaluated.items()})
    tokenizer, length = opened.tokenizer, min(most, opened.longest)
    without_types(opened.model, tokenizer)
    if task.labels == "span":
        return summary(task, squad.learn_and_answer(lambda _, asked: _spans(opened, asked), tokenizer, splits, length))
    per_split = {}
    for split, rows in splits.evaluated.items():
        read = encoded(rows, task, tokenizer, length, lambda _: 0.0).remove_columns("labels")
        warn_of_cut_rows(task, length, [read])
        logits = torch.stack([said for (said,) in _said(opened, read, ["logits"])]).numpy()
        if task.labels == "classes":
            per_split[split] = score(task, logits.argmax(-1), _numbers(opened, splits, rows))
        else:
            per_split[split] = score(task, logits[:, 0], np.asarray(rows[task.label][:], dtype=float))
    return summary(task, per_split)


def _of_images(opened: Opened, splits: Splits, rows: Dataset) -> dict[str, float]:
    logits, read = classes_said(opened, rows, splits.task.name)
    return score(splits.task, logits.argmax(-1).numpy(), _numbers(opened, splits, rows)[read])


def _numbers(opened: Opened, splits: Splits, rows: Dataset) -> NDArray[np.int64]:
    """The number that the model's head gives to the class of each row.

    A class is known by its name, in whatever case unless case alone tells two apart: as a word, or as what the data set
    calls its number. Otherwise a number is the class of that number.
    """
    task, config = splits.task, opened.model.config
    names = {int(number): str(name) for number, name in config.id2label.items()}
    spelt = str.casefold if len({*map(str.casefold, names.values())}) == len(names) else str
    known = {spelt(name): number for number, name in names.items()}
    called = getattr(rows.features[task.label], "names", None)
    if called is not None and not {spelt(str(name)) for name in called} <= known.keys():
        called = None

    def number(label: Any) -> int | None:
        if isinstance(label, str):
            return known.get(spelt(label))
        if label != int(label) or not 0 <= label < len(names if called is None else called):
            return None
        return int(label) if called is None else known[spelt(str(called[int(label)]))]

    labels = rows[task.label][:]
    numbers = [number(label) for label in labels]
    if None in numbers:
        raise UserError(
            f"Cannot score {opened.source} on {task.name}: its head does not tell {labels[numbers.index(None)]!r}.",
            f"A label must be one of its classes, {', '.join(map(str, config.id2label.values()))}, or the number of "
            f"one, 0 to {config.num_labels - 1}.",
            "Rename the labels, or name the classes in id2label of the model's config.json.",
        )
    return np.asarray(numbers)


def _spans(opened: Opened, asked: Mapping[str, Dataset]) -> dict[str, Any]:
    """Start and end logits of each split's windows, (windows, tokens), padded on the right."""
    said = {split: _said(opened, windows, ["start_logits", "end_logits"]) for split, windows in asked.items()}
    return {
        split: tuple(pad_sequence(list(side), batch_first=True).numpy() for side in zip(*of_rows, strict=True))
        for split, of_rows in said.items()
    }


@torch.no_grad()
def _said(opened: Opened, rows: Dataset, names: Sequence[str]) -> list[list[Tensor]]:
    """Of each row, in their order, some of what the model returns."""
    counts = lengths(rows)
    # like lengths together, for less padding
    order = sorted(range(len(rows)), key=counts.__getitem__)
    collate = DataCollatorWithPadding(opened.tokenizer, pad_to_multiple_of=multiple(max(counts)))
    said: dict[int, list[Tensor]] = {}
    for at in range(0, len(order), BATCH):
        part = order[at : at + BATCH]
        batch = collate([rows[k] for k in part]).to(opened.model.device)
        made = opened.model(**batch)
        for place, row in enumerate(part):
            said[row] = [getattr(made, name)[place].float().cpu() for name in names]
    return [said[row] for row in range(len(rows))]
