"""How many sentences a second models embed, measured in turns, because machines change their speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer


def sentences_per_second(
    models: Sequence[Path], texts: Sequence[str], *, batch: int = 32, rounds: int = 5
) -> list[float]:
    """The median over rounds for each model; a round lets each model embed all texts once.

    Args:
        models: sentence-transformers folders.
        texts: what is embedded.
        batch: sentences in a batch.
        rounds: how often; one more comes first and is not counted.
    """
    encoders = [SentenceTransformer(str(model)) for model in models]
    seconds: list[list[float]] = [[] for _ in encoders]
    for _ in range(rounds + 1):
        for encoder, spent in zip(encoders, seconds, strict=True):
            started = time.perf_counter()
            encoder.encode(list(texts), batch_size=batch, show_progress_bar=False)
            spent.append(time.perf_counter() - started)
    return [len(texts) / statistics.median(spent[1:]) for spent in seconds]
