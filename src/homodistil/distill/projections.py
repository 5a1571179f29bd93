"""The projections W of the hidden losses: from the student's hidden width to the teacher's. Never exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homodistil.axes.layout import Layout
from homodistil.axes.stack import LAYERS
from homodistil.compress.depth import ends, forget
from homodistil.compress.shrink import Keep, cut


class Projections(nn.Module):
    """A matrix (narrow, wide) for each hidden state, the embeddings' first; the pooled vector's is the last.

    Each starts as the identity, so that an uncut student has no loss, and loses the rows of cut units. For a student
    that does not start as a copy, it is as much of the identity as fits.

    Args:
        layers: of the student.
        pooled: whether there is a pooled vector.
        narrow: the student's hidden width.
        wide: the teacher's.
    """

    def __init__(self, layers: int, *, pooled: bool, narrow: int, wide: int) -> None:
        super().__init__()
        self.layers = layers
        states = 1 + layers + pooled
        self.weights = nn.ParameterList(nn.Parameter(torch.eye(narrow, wide)) for _ in range(states))
        self.layout = Layout.of_rows({f"weights.{k}": (("hidden",), ("wide",)) for k in range(states)})

    def __getitem__(self, state: int) -> Tensor:
        weight: Tensor = self.weights[state]
        return weight

    def shrink(self, keep: Keep, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Lose the rows of hidden units that were cut, and the matrices of states that are not compared any more."""
        cut(self, self.layout, {a: k for a, k in keep.items() if a == "hidden"}, optimizer=optimizer)
        if LAYERS in keep:
            kept = self.compared(keep[LAYERS].tolist())
            gone = [w for w in self.weights if not any(w is k for k in kept)]
            if optimizer is not None:
                forget(optimizer, gone)
            self.weights, self.layers = nn.ParameterList(kept), len(keep[LAYERS])

    def compared(self, layers: Sequence[int]) -> list[nn.Parameter]:
        """The matrices of a student of these layers: those of the states that its layers now end in."""
        states = [0, *(k + 1 for k in ends(layers, self.layers)), *range(self.layers + 1, len(self.weights))]
        return [self.weights[k] for k in states]
