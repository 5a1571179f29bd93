"""In which order sequences come: endless, enterable anywhere, whole or cropped; a function of seed and position."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from homodistil.errors import UserError

Tokens = Sequence[int]

WINDOW = 32
"""Batches among which texts are sorted by length, so that little is padded and the order stays random."""
SHORTEST = 8
"""Ordinary tokens of a cropped piece at least."""


class Source(Protocol):
    """An endless order of sequences, of tokens or of what a collator makes them of, that can be entered anywhere and
    is always the same.
    """

    def sequences(self, start: int) -> Iterator[Any]:
        """The sequences from the `start`-th on."""
        ...


def of_epoch(seed: int, epoch: int) -> torch.Generator:
    """What the order of an epoch is drawn with."""
    return torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)


@dataclass(frozen=True)
class Cropper:
    """Cuts texts down to random pieces, so that a sentence encoder learns what short texts mean as well as long ones.

    Attributes:
        share: of the texts that are cut down; the length of a piece is drawn evenly on a logarithmic scale.
        prefix: the special tokens before a text, which a piece has as well.
        suffix: those after it.
        seed: of the choice.
    """

    share: float
    prefix: Tokens
    suffix: Tokens
    seed: int

    def pieces(self, lengths: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For sequences of these lengths, with special tokens: the first token that stays, and the new lengths."""
        drawn = np.random.default_rng((self.seed, epoch))
        edges = len(self.prefix) + len(self.suffix)
        body = np.maximum(lengths - edges, 1)
        shortest = np.minimum(body, SHORTEST)
        part = np.rint(shortest * (body / shortest) ** drawn.random(len(lengths))).astype(int)
        part = np.where(drawn.random(len(lengths)) < self.share, part, body)
        return np.floor(drawn.random(len(lengths)) * (body - part + 1)).astype(int), part + edges

    def cut(self, sequence: Tokens, first: int, length: int) -> Tokens:
        """The piece of a sequence that begins at its `first` ordinary token, `length` tokens with the special ones."""
        if length == len(sequence):
            return sequence
        at = len(self.prefix) + first
        body = sequence[at : at + length - len(self.prefix) - len(self.suffix)]
        return [*self.prefix, *body, *self.suffix]


class Shuffled:
    """Sequences in an order that is drawn anew each epoch, from the seed alone.

    With `lengths`, texts are cropped, and those of similar length come together in windows of `WINDOW` batches.
    """

    def __init__(
        self,
        data: Dataset,
        batch: int,
        seed: int,
        lengths: np.ndarray | None = None,
        cropper: Cropper | None = None,
    ) -> None:
        self.data, self.batch, self.seed, self.lengths, self.cropper = data, batch, seed, lengths, cropper

    def sequences(self, start: int) -> Iterator[Tokens]:
        """The sequences from the `start`-th on, epoch after epoch."""
        skip, within = divmod(start, len(self.data))
        for epoch in itertools.count(skip):
            firsts, lengths = self._pieces(epoch)
            order = self.order(epoch)[within if epoch == skip else 0 :]
            for at in range(0, len(order), 256):
                indices = order[at : at + 256]
                for i, sequence in zip(indices, self.data[indices]["input_ids"], strict=True):
                    yield self.cropper.cut(sequence, firsts[i], lengths[i]) if self.cropper else sequence

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch; each sequence comes once."""
        generator = of_epoch(self.seed, epoch)
        shuffled = torch.randperm(len(self.data), generator=generator)
        if self.lengths is None:
            order: list[int] = shuffled.tolist()
            return order
        _, lengths = self._pieces(epoch)
        batches: list[Tensor] = []
        for window in torch.split(shuffled, WINDOW * self.batch):
            by_length = window[torch.from_numpy(lengths[window.numpy()]).sort(stable=True).indices]
            parts = torch.split(by_length, self.batch)
            batches += [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
        return [i for part in batches for i in part.tolist()]

    def _pieces(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self.lengths is None or self.cropper is None:
            return np.zeros(0, int), self.lengths if self.lengths is not None else np.zeros(0, int)
        return self.cropper.pieces(self.lengths, epoch)


class Stream:
    """Sequences in the order of a stream, over and over where it can be read again.

    Args:
        epoch: gives the sequences of the next pass, none if the stream cannot be read again.
        cropper: cuts some of them down; not at all by default.
    """

    def __init__(self, epoch: Callable[[], Iterator[Tokens]], cropper: Cropper | None = None) -> None:
        self.epoch, self.cropper = epoch, cropper

    def sequences(self, start: int) -> Iterator[Tokens]:
        """The sequences from the `start`-th on; those before it are read and dropped."""
        endless = itertools.chain.from_iterable(self._pass() for _ in itertools.count())
        for position, sequence in itertools.islice(enumerate(endless), start, None):
            if self.cropper is None:
                yield sequence
                continue
            firsts, lengths = self.cropper.pieces(np.array([len(sequence)]), position)
            yield self.cropper.cut(sequence, firsts[0], lengths[0])

    def _pass(self) -> Iterator[Tokens]:
        empty = True
        for sequence in self.epoch():
            empty = False
            yield sequence
        if empty:
            raise UserError(
                "Cannot go on: the stream of text has ended and cannot be read again.",
                "A stream must last for the whole run, or be readable from its start.",
                "Train on fewer --tokens, or write the text to a file.",
            )
