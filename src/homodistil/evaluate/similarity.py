"""Embeddings' similarities: against people's judgements, and against another encoder's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from homodistil.evaluate.metrics import METRICS
from homodistil.evaluate.tasks import Task


def embed(model: Path | str | SentenceTransformer, texts: Sequence[str], *, batch: int = 32) -> NDArray[np.float32]:
    """Embeddings of texts, (texts, hidden), normalised.

    Args:
        model: a sentence-transformers folder, or any other encoder, whose token states are averaged; or one that is
            open already.
        texts: what is embedded.
        batch: texts in a forward pass.
    """
    encoder = model if isinstance(model, SentenceTransformer) else SentenceTransformer(str(model))
    if encoder.tokenizer.pad_token is None:
        encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
    made: NDArray[np.float32] = encoder.encode(
        list(texts), batch_size=batch, normalize_embeddings=True, show_progress_bar=False
    )
    return made


def follows(student: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
    """Spearman's correlation between the cosine similarities of all pairs of texts: 1 if the order is the same.

    Args:
        student: normalised embeddings, (texts, hidden).
        teacher: normalised embeddings of the same texts, of any width.
    """
    first, second = np.triu_indices(len(student), k=1)
    pairs = [(e @ e.T)[first, second] for e in (student, teacher)]
    return float(spearmanr(*pairs).statistic)


def judged_pairs(model: Path | str, task: Task, rows: Dataset) -> float:
    """Spearman's correlation between cosine similarities of pairs and people's judgements, without fine-tuning.

    Args:
        model: as in `embed`.
        task: one with two text columns and a number as label, such as `stsb`.
        rows: the pairs.
    """
    first, second = (embed(model, rows[column]) for column in task.columns)
    return METRICS["spearman"]((first * second).sum(-1), np.asarray(rows[task.label]))
