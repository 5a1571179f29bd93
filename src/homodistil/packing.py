"""How texts are joined into blocks, and how long these are: of a run and of an evaluation alike. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

LENGTHS = (128, 512)
"""Tokens of a block at least and at most, where nobody says how many."""
USUAL = 0.99
"""The share of the texts that is no longer than a block then: what is learnt from should be like what will be read, and
above all no shorter."""


def usual_length(counts: Sequence[int], most: int) -> int:
    """Tokens of a block, a multiple of 8 if it can be: as many as nearly all texts have.

    Args:
        counts: the tokens of texts, with those that stand around them.
        most: what models read.
    """
    least, longest = LENGTHS
    usual = -(-int(np.quantile(counts, USUAL, method="inverted_cdf")) // 8) * 8 if len(counts) else least
    return min(max(usual, least), longest, most)


class Joiner:
    """Joins texts, some at a time; what is not a block yet waits for the next texts.

    Args:
        room: tokens of a block, without the special ones around it.
        ends: what stands between two texts.
        whole: whether no text is cut that fits into a block, so that blocks may have fewer tokens, and long texts are
            the only ones that are cut; otherwise all blocks are full, and what ends a text ends the last one, too.
    """

    def __init__(self, room: int, ends: Sequence[int], *, whole: bool) -> None:
        self.room, self.ends, self.whole = room, list(ends), whole
        self.rest: list[int] = []
        """What waits."""

    def __call__(self, texts: Iterable[Sequence[int]]) -> Iterator[list[int]]:
        """The blocks that are done by now."""
        for text in texts:
            if not self.whole:
                self.rest += [*text, *self.ends]
            elif not self.rest:
                self.rest = list(text)
            elif len(self.rest) + len(self.ends) + len(text) <= self.room:
                self.rest += [*self.ends, *text]
            else:
                yield self.rest
                self.rest = list(text)
            while len(self.rest) > self.room - (not self.whole):
                yield self.rest[: self.room]
                self.rest = self.rest[self.room :]
