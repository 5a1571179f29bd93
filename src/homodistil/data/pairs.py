"""Batches of what an encoder-decoder reads and says to it: made of one text by noise, or given as a pair."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homodistil.data.collate import UNLIMITED, of_batch, padded
from homodistil.data.sources import Tokens
from homodistil.noise import Divide

PAIR = -1
"""Stands between the source and the target of a pair that is given; no token has this number."""


@dataclass(frozen=True)
class PairCollator:
    """Makes batches of sources and targets, both padded to a multiple of 8.

    Attributes:
        tokenizer: names padding and special tokens.
        divide: makes a source and a target of what the corpus gives.
        start: the token that a decoder reads before the first of its target.
        seed: of the noise.
        longest: tokens that each side has positions for.
    """

    tokenizer: PreTrainedTokenizerBase
    divide: Divide
    start: int
    seed: int
    longest: int = UNLIMITED

    def __call__(self, sequences: Sequence[Tokens], index: int) -> dict[str, Tensor]:
        """The `index`-th batch: see `outputs.Batch` for its tensors. The same index gives the same noise."""
        generator = of_batch(self.seed, index)
        sources, targets = zip(*(self.divide(sequence, generator) for sequence in sequences), strict=True)
        said = padded([[self.start, *target[:-1]] for target in targets], self.tokenizer, self.longest)
        return {
            **padded(sources, self.tokenizer, self.longest),
            "decoder_input_ids": said["input_ids"],
            "decoder_attention_mask": said["attention_mask"],
            "decoder_ordinary": said["ordinary"],
            "positions": said["attention_mask"].flatten().nonzero()[:, 0],
            "labels": torch.tensor(list(itertools.chain.from_iterable(targets))),
        }


def given(sequence: Tokens, _: torch.Generator) -> tuple[list[int], list[int]]:
    """The two sides of a pair."""
    at = list(sequence).index(PAIR)
    return list(sequence[:at]), list(sequence[at + 1 :])
