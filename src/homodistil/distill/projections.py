"""The projections W of the hidden losses: from the student's hidden width to the teacher's. Never exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from homodistil.axes.layout import Layout
from homodistil.compress.shrink import Keep, cut


class Projections(nn.Module):
    """A matrix (narrow, wide) for each hidden state, the embeddings' first; the pooled vector's is the last.

    Each starts as the identity, so that an uncut student has no loss, and loses the rows of cut units. For a student
    that does not start as a copy, it is as much of the identity as fits.
    """

    def __init__(self, states: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.eye(narrow, wide)) for _ in range(states))
        self.layout = Layout.of_rows({f"weights.{k}": (("hidden",), ("wide",)) for k in range(states)})

    def __getitem__(self, state: int) -> Tensor:
        weight: Tensor = self.weights[state]
        return weight

    def shrink(self, keep: Keep, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Lose the rows of the hidden units that were cut."""
        cut(self, self.layout, {a: k for a, k in keep.items() if a == "hidden"}, optimizer=optimizer)
