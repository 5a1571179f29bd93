"""How a sentence encoder's similarities compare with another one's, on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer


def embed(model: Path, texts: Sequence[str], *, batch: int = 32) -> NDArray[np.float32]:
    """Embeddings of texts by a sentence-transformers folder, (texts, hidden), normalised."""
    encoder = SentenceTransformer(str(model))
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
