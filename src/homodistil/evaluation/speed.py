"""Size and speed. Models are timed in turns, because machines change their speed; what counts is the ratio."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from homodistil.evaluation.models import Opened, module_folders, weight_files
from homodistil.evaluation.similarity import is_sentence_encoder, open_encoder

BATCH = 32
"""Sequences that throughput is measured with."""
SECONDS = 0.2
"""A measurement repeats a forward pass for about so long, because one alone is too short for the clock's noise."""
LOGITS = 1 << 29
"""Numbers that a language model says at once while it is timed, 2 GiB: 32 sequences of 128 tokens have as many in a
vocabulary of 130,000. Of a larger one they are read in several passes, one after the other (see `at_once`)."""


def size(opened: Opened, *, length: int = 128) -> dict[str, float]:
    """Parameters, bytes of the weight files (0 for a model from the hub), FLOPs a token of a forward pass.

    Of a sentence encoder all modules count: what stands behind the pooling is read once a sequence.
    """
    # the tokens of an image are counted, and not chosen
    length = _tokens(opened) if opened.reads_images else min(length, opened.longest)
    behind = (
        list(open_encoder(opened.source, opened.trust_remote_code))[1:] if is_sentence_encoder(opened.source) else []
    )
    counter = FlopCounterMode(display=False)
    # the counter passes over the fused kernel of a CPU, and not over plain products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        inputs = opened.random_inputs(1, length)
        made = opened.model(**inputs)
        if behind:
            whole = torch.ones_like(inputs["input_ids"])
            features = {**inputs, "attention_mask": whole, "token_embeddings": made.last_hidden_state}
            for module in behind:
                features = module.to(opened.model.device)(features)
    return {
        "parameters": sum(p.numel() for module in (opened.model, *behind) for p in module.parameters()),
        "file_bytes": sum(f.stat().st_size for place in module_folders(opened.source) for f in weight_files(place)),
        "flops_per_token": counter.get_total_flops() / length,
    }


def at_once(models: Sequence[Opened], batch: int, length: int) -> int:
    """Sequences in each pass over a batch: as many as all models can say at once, in equal parts of the batch."""
    most = min(opened.rows_at_once(LOGITS, length, batch) for opened in models)
    return next(rows for rows in range(most, 0, -1) if batch % rows == 0)


def forward_seconds(
    models: Sequence[Opened], *, batch: int, length: int, rounds: int = 7, threads: int | None = None
) -> list[float]:
    """Seconds of a forward pass, the median over rounds for each model, measured in turns.

    Args:
        models: all on one device.
        batch: sequences, of which all models read `at_once` in a pass.
        length: tokens in each; images have as many as they have.
        rounds: how often each model is measured; one more comes first and is not counted.
        threads: of torch; as it is by default.
    """
    rows = at_once(models, batch, length)

    def action(opened: Opened) -> Callable[[], None]:
        inputs = {name: torch.split(given, rows) for name, given in opened.random_inputs(batch, length).items()}
        passes = [dict(zip(inputs, parts, strict=True)) for parts in zip(*inputs.values(), strict=True)]

        def run() -> None:
            for part in passes:
                opened.model(**part)
            if opened.model.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    with torch.inference_mode(), _threads(threads):
        return [statistics.median(spent) for spent in in_turns([action(m) for m in models], rounds)]


def sentences_per_second(
    models: Sequence[Path], texts: Sequence[str], *, batch: int = 32, rounds: int = 5
) -> list[float]:
    """How many texts a second sentence-transformers folders embed, tokenising included; medians, in turns."""
    encoders = [SentenceTransformer(str(model)) for model in models]

    def action(encoder: SentenceTransformer) -> Callable[[], object]:
        return lambda: encoder.encode(list(texts), batch_size=batch, show_progress_bar=False)

    spent = in_turns([action(e) for e in encoders], rounds)
    return [len(texts) / statistics.median(s) for s in spent]


def in_turns(actions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each action in each round; a round does each action once, or as often as fills `SECONDS`."""
    repeats, seconds = [1] * len(actions), [[] for _ in actions]  # type: list[int], list[list[float]]
    for turn in range(rounds + 1):
        for k, action in enumerate(actions):
            started = time.perf_counter()
            for _ in range(repeats[k]):
                action()
            spent = (time.perf_counter() - started) / repeats[k]
            if turn:
                seconds[k].append(spent)
            else:
                repeats[k] = max(1, round(SECONDS / max(spent, 1e-6)))
    return seconds


@torch.no_grad()
def _tokens(opened: Opened) -> int:
    return int(opened.model.base_model(**opened.random_inputs(1, 0)).last_hidden_state.shape[1])


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
