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


def embed(
    model: Path | str | SentenceTransformer, texts: Sequence[str], *, batch: int = 32, trust_remote_code: bool = False
) -> NDArray[np.float32]:
    """Embeddings of texts, (texts, hidden), normalised.

    Args:
        model: a sentence-transformers folder, or any other encoder, whose token states are averaged; or one that is
            open already.
        texts: what is embedded.
        batch: texts in a forward pass.
        trust_remote_code: run code that comes with the model.
    """
    encoder = model
    if not isinstance(encoder, SentenceTransformer):
        encoder = SentenceTransformer(str(model), trust_remote_code=trust_remote_code)
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


def judged_pairs(model: Path | str, task: Task, rows: Dataset, *, trust_remote_code: bool = False) -> float:
    """Spearman's correlation between cosine similarities of pairs and people's judgements, without fine-tuning.

    Args:
        model: as in `embed`.
        task: one with two text columns and a number as label, such as `stsb`.
        rows: the pairs.
        trust_remote_code: as in `embed`.
    """
    first, second = (embed(model, rows[column], trust_remote_code=trust_remote_code) for column in task.columns)
    return METRICS["spearman"]((first * second).sum(-1), np.asarray(rows[task.label]))
