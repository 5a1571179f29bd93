"""The student on what it does not learn from: each loss term, and how often it agrees with its teacher."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import PreTrainedModel

from homodistil.data.collate import COMPARED, heldout_draws
from homodistil.distill.defaults import BATCH
from homodistil.losses import losses
from homodistil.losses.descent import Descent
from homodistil.losses.objective import Objective
from homodistil.losses.outputs import Batch, Runner, TokenPredictions
from homodistil.models.kind import LANGUAGE_MODELS, Kind

GROUP = BATCH
"""Texts whose similarities are compared with each other, in a run's own batches or not."""


@torch.no_grad()
def measure(
    run: Runner,
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    objective: Objective,
    batches: Iterable[Batch],
    descent: Descent,
    precision: AbstractContextManager[Any],
) -> dict[str, float]:
    """Loss terms, and `agreement` with the teacher (see `agreement`); of language models accuracies, of embeddings
    `similarity_error`, by how much their similarities differ, which agree in order alone.

    Each term is the mean over what it is a mean of in a batch: what is predicted, texts, tokens, or pairs of them.
    Similarities are those within `GROUP` texts. So they say the same in batches of any size, but for which tokens are
    masked, and for the share that a pooler's states have in L_hid.
    `agreement`, the error and the accuracies are left out where no prediction is made, and similarities where there are
    too few rows to compare.
    """
    sums: dict[str, float] = defaultdict(float)
    weights: dict[str, float] = defaultdict(float)
    said: list[tuple[Tensor, Tensor]] = []
    labels: list[Tensor] = []
    for batch in batches:
        with precision:
            mine, theirs = run(student, batch), run(teacher, batch)
            terms = objective.terms(mine, theirs, batch, descent)
            if mine.tokens is not None and theirs.tokens is not None:
                said.append((_said(mine.tokens), _said(theirs.tokens)))
                labels.append(batch["labels"].cpu())
        for name, term in terms.items():
            weight = _weight(name, run.kind, batch)
            sums[name] += weight * term.item()
            weights[name] += weight
        if answers := objective.answers(mine, theirs):
            said.append((_answer(run.kind, answers[0]), _answer(run.kind, answers[1])))
            labels.append(batch["labels"].cpu() if "labels" in batch else torch.empty(0))
    result = {name: total / weights[name] for name, total in sums.items()}
    if said:
        ours, others = (torch.cat(side) for side in zip(*said, strict=True))
        if run.kind == "similarity" and len(ours) < COMPARED:
            return {name: mean for name, mean in result.items() if name != "prediction"}
        if run.kind == "similarity" and "prediction" in result:
            result["prediction"] = _similarity(ours, others, objective.weights.similarity_temperature)
        result["agreement"] = agreement(run.kind, ours, others)
        if run.kind == "similarity":
            result["similarity_error"] = similarity_error(ours, others)
        if run.kind in LANGUAGE_MODELS:
            right = torch.cat(labels)
            result["accuracy"] = (ours == right).float().mean().item()
            result["teacher_accuracy"] = (others == right).float().mean().item()
    return result


def _weight(name: str, kind: Kind, batch: Batch) -> int:
    """How many things a term of a batch is the mean of."""
    if name == "attention":
        return int(batch["attention_mask"].sum(-1).square().sum())
    # where a token has a label, its predictions are a mean over tokens, too
    if name in ("hidden", "embedding") or kind == "token-labels":
        return int(batch["tokens"])
    return len(batch["labels"] if "labels" in batch else next(iter(batch.values())))


def _similarity(ours: Tensor, others: Tensor, temperature: float) -> float:
    """L_pred of embeddings, (texts, narrow) and (texts, wide), within groups of texts: mean over texts."""
    groups = [draw.sequences for draw in heldout_draws(range(len(ours)), GROUP)]
    terms = (len(g) * losses.similarity(ours[g], others[g], temperature).item() for g in groups)
    return sum(terms) / len(ours)


def agreement(kind: Kind, ours: Tensor, others: Tensor) -> float:
    """Embeddings: Spearman's correlation of all pairs' similarities. Numbers: of the numbers. Classes, and each of many
    labels: the share that is equal.
    """
    if kind == "similarity":
        ours, others = (_of_pairs(embeddings) for embeddings in (ours, others))
    if ours.is_floating_point():
        if any(bool((x == x[:1]).all()) for x in (ours, others)):
            # texts that are all alike, or too few: there is no order to agree about
            return float(torch.allclose(ours, others))
        return float(spearmanr(ours.numpy(), others.numpy()).statistic)
    return (ours == others).float().mean().item()


def similarity_error(ours: Tensor, others: Tensor) -> float:
    """Root mean square of the difference between all pairs' similarities, of embeddings (texts, units)."""
    return (_of_pairs(ours) - _of_pairs(others)).square().mean().sqrt().item()


def _of_pairs(embeddings: Tensor) -> Tensor:
    first, second = torch.triu_indices(len(embeddings), len(embeddings), 1)
    return (embeddings @ embeddings.T)[first, second]


def _said(predictions: TokenPredictions) -> Tensor:
    return torch.cat([predictions.head(predictions.states[part]).argmax(-1).cpu() for part in predictions.chunks()])


def _answer(kind: Kind, prediction: Tensor) -> Tensor:
    prediction = prediction.float().cpu()
    if kind == "similarity":
        return prediction
    if kind == "multi-label":
        return prediction > 0
    return prediction[:, 0] if prediction.shape[-1] == 1 else prediction.argmax(-1)
