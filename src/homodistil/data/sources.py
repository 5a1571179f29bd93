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
    return torch.Generator().manual_seed(((seed + 1) * 1_000_003 + epoch) % 2**63)


@dataclass(frozen=True)
class Cropper:
    """Cuts texts down to random pieces, so that a sentence encoder learns what short texts mean as well as long ones.

    A piece has what its text opens with, which are special tokens and perhaps a prompt, and the special tokens at the
    end.

    Attributes:
        share: of the texts that are cut down; the length of a piece is drawn evenly on a logarithmic scale.
        suffix: the special tokens after a text.
        seed: of the choice.
    """

    share: float
    suffix: Tokens
    seed: int

    def pieces(self, openings: np.ndarray, lengths: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For whole sequences: the first token after the opening that stays, and the new lengths.

        Args:
            openings: how many tokens each opens with.
            lengths: how many it has in all.
            epoch: in another one other pieces are drawn.
        """
        drawn = np.random.default_rng((self.seed, epoch))
        edges = openings + len(self.suffix)
        body = np.maximum(lengths - edges, 1)
        shortest = np.minimum(body, SHORTEST)
        part = np.rint(shortest * (body / shortest) ** drawn.random(len(lengths))).astype(int)
        part = np.where(drawn.random(len(lengths)) < self.share, part, body)
        # a text that made no token has nothing to cut
        whole = np.minimum(part + edges, lengths)
        return np.floor(drawn.random(len(lengths)) * (body - part + 1)).astype(int), whole

    def cut(self, sequence: Tokens, opening: int, first: int, length: int) -> Tokens:
        """The piece of a sequence that begins at the `first` token after its opening, `length` tokens in all."""
        if length == len(sequence):
            return sequence
        at = opening + first
        return [*sequence[:opening], *sequence[at : at + length - opening - len(self.suffix)], *self.suffix]


@dataclass(frozen=True)
class Pieces:
    """What the texts of a corpus are cut down to, epoch after epoch.

    Attributes:
        cropper: cuts them.
        openings: how many tokens each text opens with, (texts,).
        lengths: how many tokens it has in all, (texts,).
    """

    cropper: Cropper
    openings: np.ndarray
    lengths: np.ndarray

    def of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For each text the first token after its opening that stays in an epoch, and its length then."""
        return self.cropper.pieces(self.openings, self.lengths, epoch)


class Shuffled:
    """Sequences in an order that is drawn anew each epoch, from the seed alone.

    Args:
        data: whole sequences, under `input_ids`.
        batch: sequences that are drawn together.
        seed: of the order.
        pieces: what they are cut down to; those of similar length come together then, in windows of `WINDOW` batches.
            An epoch is whole batches then: others are left out of each.
    """

    def __init__(self, data: Dataset, batch: int, seed: int, pieces: Pieces | None = None) -> None:
        self.data, self.batch, self.seed, self.pieces = data, batch, seed, pieces
        # a batch that went on in the next epoch would push all others out of step with their lengths
        self.each = len(data) if pieces is None else max(len(data) // batch * batch, min(batch, len(data)))

    def sequences(self, start: int) -> Iterator[Tokens]:
        """The sequences from the `start`-th on, epoch after epoch."""
        skip, within = divmod(start, self.each)
        for epoch in itertools.count(skip):
            cut = self._cut(epoch)
            order = self.order(epoch)[within if epoch == skip else 0 :]
            for at in range(0, len(order), 256):
                indices = order[at : at + 256]
                for i, sequence in zip(indices, self.data[indices]["input_ids"], strict=True):
                    yield cut(i, sequence)

    def order(self, epoch: int) -> list[int]:
        """The indices of an epoch; no sequence comes twice."""
        generator = of_epoch(self.seed, epoch)
        shuffled = torch.randperm(len(self.data), generator=generator)[: self.each]
        if self.pieces is None:
            order: list[int] = shuffled.tolist()
            return order
        _, lengths = self.pieces.of(epoch)
        batches: list[Tensor] = []
        for window in torch.split(shuffled, WINDOW * self.batch):
            by_length = window[torch.from_numpy(lengths[window.numpy()]).sort(stable=True).indices]
            parts = torch.split(by_length, self.batch)
            batches += [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
        return [i for part in batches for i in part.tolist()]

    def _cut(self, epoch: int) -> Callable[[int, Tokens], Tokens]:
        """What becomes of a sequence, given its index, in an epoch."""
        if (pieces := self.pieces) is None:
            return lambda _, sequence: sequence
        firsts, lengths = pieces.of(epoch)
        return lambda i, sequence: pieces.cropper.cut(sequence, pieces.openings[i], firsts[i], lengths[i])


class Stream:
    """Sequences in the order of a stream, over and over where it can be read again.

    Args:
        epoch: gives the sequences of the next pass, and how many tokens each opens with; none if the stream cannot be
            read again.
        cropper: cuts some of them down.
    """

    def __init__(self, epoch: Callable[[], Iterator[tuple[Tokens, int]]], cropper: Cropper) -> None:
        self.epoch, self.cropper = epoch, cropper

    def sequences(self, start: int) -> Iterator[Tokens]:
        """The sequences from the `start`-th on; those before it are read and dropped."""
        endless = itertools.chain.from_iterable(self._pass() for _ in itertools.count())
        for position, (sequence, opening) in itertools.islice(enumerate(endless), start, None):
            firsts, lengths = self.cropper.pieces(np.array([opening]), np.array([len(sequence)]), position)
            yield self.cropper.cut(sequence, opening, firsts[0], lengths[0])

    def _pass(self) -> Iterator[tuple[Tokens, int]]:
        empty = True
        for sequence in self.epoch():
            empty = False
            yield sequence
        if empty:
            raise UserError(
                "Cannot go on: the stream of text has ended and cannot be read again.",
                "A stream must last for the whole run, or be readable from its start.",
                "Write the text to a file, or train on fewer --tokens. Steps that were made are saved: "
                "homodistil.resume goes on with a longer stream that begins alike.",
            )
