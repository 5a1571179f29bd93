"""From sequences to batches: padded, and masked as a pure function of the step."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homodistil.data.sources import Source, Tokens

MEASURED = 0.15
"""The share of held-out tokens that is predicted, whatever share is learnt from: that of BERT (section 3.1)."""
COMPARED = 3
"""Rows whose similarities to each other say something, at least: each has two others, of which one is the nearer."""
UNLIMITED = 1 << 30
"""Tokens that are read at most by a model without a table of positions."""


@dataclass(frozen=True)
class Collator:
    """Makes batches: padded to a multiple of 8, and masked if the model predicts masked tokens.

    Of the tokens that are predicted 80 % are masked, 10 % replaced and 10 % kept (BERT, section 3.1).

    Attributes:
        tokenizer: names padding, mask and special tokens.
        masked: the share of tokens that is predicted in batches to learn from, `MEASURED` in those held out (of
            negative indices); 0 if the model predicts no masked tokens.
        seed: of the masks.
        causal: whether every position but the last predicts the next.
        longest: tokens that the model has positions for.
    """

    tokenizer: PreTrainedTokenizerBase
    masked: float
    seed: int
    causal: bool = False
    longest: int = UNLIMITED

    def __call__(self, sequences: Sequence[Tokens], index: int) -> dict[str, Tensor]:
        """The `index`-th batch: see `outputs.Batch` for its tensors. The same index gives the same masks."""
        batch = padded(sequences, self.tokenizer, self.longest)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if self.causal:
            follows = torch.zeros_like(mask)
            follows[:, :-1] = mask[:, 1:]
            positions = follows.flatten().nonzero()[:, 0]
            return batch | {"positions": positions, "labels": ids.flatten()[positions + 1]}
        if not self.masked:
            return batch
        generator = of_batch(self.seed, index)
        free = batch["ordinary"].flatten() > 0
        # a fixed share of the batch and not a coin a token, so that full blocks all have the same shapes
        share = self.masked if index >= 0 else MEASURED
        most = int(free.sum())
        count = min(max(1, int(share * most)), most)
        if index >= 0 and len(set(map(len, sequences))) > 1:
            # and others few, or a GPU could play nothing back
            count = min(_evened(count), most)
        lot = torch.rand(ids.numel(), generator=generator).masked_fill(~free, -1)
        positions = lot.topk(count).indices.sort().values
        flat = ids.flatten()
        labels = flat[positions]
        fate = torch.rand(count, generator=generator)
        random = torch.randint(len(self.tokenizer), (count,), generator=generator)
        flat[positions] = torch.where(
            fate < 0.8, torch.tensor(self.tokenizer.mask_token_id), torch.where(fate < 0.9, random, labels)
        )
        return batch | {"input_ids": flat.view_as(ids), "positions": positions, "labels": labels}


def _evened(count: int) -> int:
    """The nearest of the numbers of which eight lie, evenly spaced, between a power of two and the next."""
    step = 1 << max(0, count.bit_length() - 4)
    return round(count / step) * step


def padded(
    sequences: Sequence[Tokens], tokenizer: PreTrainedTokenizerBase, longest: int = UNLIMITED
) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `ordinary` of sequences, padded to a multiple of 8, or to `longest`."""
    width = min(-(-max(map(len, sequences)) // 8) * 8, longest)
    # what stands where nobody looks, of a tokenizer without padding
    padding = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.full((len(sequences), width), padding)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids)) | (mask == 0)
    return {"input_ids": ids, "attention_mask": mask, "ordinary": (~special).long()}


def of_batch(seed: int, index: int) -> torch.Generator:
    """What the noise of a batch is drawn with."""
    return torch.Generator().manual_seed(((seed + 1) * 2_000_003 + index) % 2**63)


class Collate(Protocol):
    """Makes batches out of what a source gives."""

    def __call__(self, sequences: Sequence[Any], index: int, /) -> dict[str, Tensor]:
        """The `index`-th batch: see `outputs.Batch` for its tensors. Held-out batches have negative indices."""
        ...


class Draw(NamedTuple):
    """What a batch will be made of, by whom it is learnt from: its sequences, and its number."""

    sequences: Sequence[Any]
    number: int


def draws(source: Source, size: int, *, start: int) -> Iterator[Draw]:
    """What endless batches of `size` sequences are made of, from the `start`-th batch on."""
    sequences = source.sequences(start * size)
    for index in itertools.count(start):
        yield Draw(list(itertools.islice(sequences, size)), index)


def seen_after(seen: str, learnt: Iterable[Draw]) -> str:
    """A digest of what has been learnt from, in its order.

    Args:
        seen: that of all before; empty before the first.
        learnt: what came then.
    """
    for draw in learnt:
        seen = hashlib.sha256(f"{seen} {draw}".encode()).hexdigest()
    return seen


def batches(source: Source, collate: Collate, size: int, *, start: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches of `size` sequences, from the `start`-th batch on."""
    return (collate(*draw) for draw in draws(source, size, start=start))


def heldout_draws(sequences: Sequence[Any], size: int) -> Iterator[Draw]:
    """What the held-out batches are made of; with numbers of their own, so that they are masked alike each time.

    As few as `size` allows, all of nearly one size: no text stands without others that its similarities could be to,
    unless that is how texts are learnt from.
    """
    count = -(-len(sequences) // size)
    if size >= COMPARED:
        count = min(count, max(1, len(sequences) // COMPARED))
    edges = [len(sequences) * k // count for k in range(count + 1)]
    for index, (at, end) in enumerate(itertools.pairwise(edges)):
        yield Draw(sequences[at:end], -1 - index)
