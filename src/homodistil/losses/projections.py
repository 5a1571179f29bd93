"""The projections W of the hidden losses: from the student's hidden width to the teacher's.

They are not part of a student, but for that of the last states where a sentence encoder has a tail (see `sentence`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from homodistil.axes.shape import LAYERS
from homodistil.compress.cut import Keep, migrate
from homodistil.compress.depth import ends, forget


class Projections(nn.Module):
    """A matrix (narrow, wide) for each hidden state, the embeddings' first; the pooled vector's is the last.

    Each starts as the identity, so that an uncut student has no loss, and loses the rows of cut units. For a student
    that does not start as a copy, it is as much of the identity as fits.

    Args:
        layers: hidden states of the student, as `Teacher.states` counts them.
        pooled: whether there is a pooled vector.
        narrow: the student's hidden width.
        wide: the teacher's.
    """

    def __init__(self, layers: int, *, pooled: bool, narrow: int, wide: int) -> None:
        super().__init__()
        self.layers = layers
        states = 1 + layers + pooled
        self.weights = nn.ParameterList(nn.Parameter(torch.eye(narrow, wide)) for _ in range(states))

    def __getitem__(self, state: int) -> Tensor:
        weight: Tensor = self.weights[state]
        return weight

    @property
    def last(self) -> Tensor:
        """That of the last hidden states."""
        return self[self.layers]

    @property
    def narrower(self) -> float:
        """The teacher's hidden width over the student's."""
        narrow, wide = self.weights[0].shape
        return float(wide / narrow)

    def shrink(self, keep: Keep, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Lose the rows of hidden units that were cut, and the matrices of states that are not compared any more."""
        for k, old in enumerate(self.weights if "hidden" in keep else ()):
            index = keep["hidden"].to(old.device)
            self.weights[k] = new = nn.Parameter(old.detach().index_select(0, index))
            if optimizer is not None:
                migrate(optimizer, old, new, [index, None], None)
        if LAYERS in keep:
            # those of the states that the layers now end in, of the embeddings, and of the pooled vector
            inner = [k + 1 for k in ends(keep[LAYERS].tolist(), self.layers)]
            stay = [0, *inner, *range(self.layers + 1, len(self.weights))]
            if optimizer is not None:
                forget(optimizer, [w for k, w in enumerate(self.weights) if k not in stay])
            self.weights, self.layers = nn.ParameterList([self.weights[k] for k in stay]), len(inner)
