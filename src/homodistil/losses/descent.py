"""Descent: which of the teacher's layers a student's are compared with.

After layers have left, the student's k-th layer does what it did and what those that left after it did: its states
are compared with the teacher's just before the next layer that stayed, and the last ones with the last. Its attention
is compared with that of the layer that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from homodistil.compress.depth import ends

T = TypeVar("T")


@dataclass(frozen=True)
class Descent:
    """Where the student's layers and heads come from.

    Attributes:
        start: how many hidden states the student started with, as `Teacher.states` counts them: one a layer, and of
            encoder-decoders the target's embeddings.
        layers: for each layer that it has, which of those it is; none named is all.
        heads: for each layer that lost heads, by the number that it has now, which of the teacher's it still has.
    """

    start: int
    layers: Sequence[int] = ()
    heads: Mapping[int, Tensor] = field(default_factory=dict)

    def states(self, teacher: Sequence[T]) -> list[T]:
        """For each layer the teacher's whose states are compared with its own."""
        even = opposite(self.start, teacher)
        return [even[k] for k in ends(self.layers or range(self.start), self.start)]

    def attention(self, teacher: Sequence[T]) -> list[T]:
        """For each layer the teacher's whose attention is compared with its own."""
        even = opposite(self.start, teacher)
        return [even[k] for k in self.layers or range(self.start)]


def opposite(student: int, teacher: Sequence[T]) -> list[T]:
    """For each layer a student starts with the teacher's that it stands for: evenly spaced, the last for the last."""
    return [teacher[round((k + 1) * len(teacher) / student) - 1] for k in range(student)]
