"""How much each unit matters: one vector an axis, folded from the weights and smoothed over steps.

The importance of a unit is the sum of |θ · g| over all weights that have it in one of their dimensions, tied
weights once, and those that have it in both of their dimensions twice (HomoDistil, section 3: the column L1 norm of the
sensitivity). What g is depends on the method:

    sensitivity   the gradient of the training loss
    platon        the same, times how much it varies (after PLATON, Zhang et al. 2022, on folded scores)
    output        the gradient of <v, H> for a random v and the last hidden states H, which is there
                  before any loss is; its square is a diagonal of the Gauss-Newton matrix
    magnitude     1, so that |θ| is summed

A weight's own score is never kept: it is folded at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from homodistil.axes.layout import Layout

Method = Literal["sensitivity", "platon", "output", "magnitude"]
Scores = dict[str, Tensor]
"""For each axis one score a unit: (units,), or (parent units, units) for a nested axis. float32."""
CACHED = 1 << 19
"""Weights whose scores a CPU folds at once: two megabytes, which its cache holds."""


def fold(layout: Layout, sizes: Mapping[str, int], weights: Iterable[tuple[str, Sequence[Tensor]]]) -> Scores:
    """Sum weights' scores over everything but an axis, for each axis that may be cut.

    Args:
        layout: the axes of each parameter.
        sizes: how many units each axis has (`Layout.sizes`).
        weights: a parameter's name, and tensors of its shape whose product's absolute values are its weights' scores;
            tied ones once.

    Returns:
        A score for each unit of every axis, zero where no weight was given.
    """
    scores: Scores = {}
    for name, factors in weights:
        dims = layout.dims[name]
        cuttable = {i: [p for p in dim if isinstance(p, str) and p not in layout.fixed] for i, dim in enumerate(dims)}
        for i, flat in _sums(factors, [i for i, axes in cuttable.items() if axes]).items():
            dim = dims[i]
            shaped = flat.reshape([p if isinstance(p, int) else sizes[p] for p in dim])
            for axis in cuttable[i]:
                kept = {dim.index(axis)} | ({dim.index(layout.parent[axis])} if axis in layout.parent else set())
                rest = tuple(k for k in range(len(dim)) if k not in kept)
                part = shaped.sum(rest) if rest else shaped
                scores[axis] = scores[axis] + part if axis in scores else part
    for axis in layout.axes:
        if axis not in scores:
            parent = layout.parent.get(axis)
            scores[axis] = torch.zeros([sizes[parent], sizes[axis]] if parent else [sizes[axis]])
    return scores


def _sums(factors: Sequence[Tensor], wanted: Sequence[int]) -> dict[int, Tensor]:
    """For each of these dimensions the sums over all others of the product's absolute values, in float32.

    A few rows at a time: a CPU would carry a matrix of products through memory several times.
    """
    first = factors[0]
    rows = max(1, CACHED * len(first) // first.numel()) if first.device.type == "cpu" else len(first)
    pieces: dict[int, list[Tensor]] = {i: [] for i in wanted}
    for at in range(0, len(first) if wanted else 0, rows):
        parts = [factor[at : at + rows] for factor in factors]
        values = parts[0].abs() if len(parts) == 1 else torch.mul(*parts).abs_()
        for i in wanted:
            others = tuple(j for j in range(first.dim()) if j != i)
            # torch sums over everything when it is given no dimension
            pieces[i].append(values.sum(others, dtype=torch.float32) if others else values.float())
    return {i: torch.cat(p) if i == 0 else functools.reduce(torch.add, p) for i, p in pieces.items()}


def sensitivity(layout: Layout, model: PreTrainedModel) -> Scores:
    """|θ · ∂L/∂θ| out of the gradients that a backward pass has left in `model`, folded."""
    weights = ((n, (p, p.grad)) for n, p in model.named_parameters() if p.grad is not None)
    with torch.no_grad():
        return fold(layout, layout.sizes(model), weights)


def magnitude(layout: Layout, model: PreTrainedModel) -> Scores:
    """|θ|, folded."""
    with torch.no_grad():
        return fold(layout, layout.sizes(model), ((n, (p,)) for n, p in model.named_parameters()))


def output(layout: Layout, model: PreTrainedModel, hidden: Tensor, mask: Tensor, seed: int) -> Scores:
    """|θ · g| with g the gradient of <v, H>, v standard normal: what moves the output, whatever the loss.

    Args:
        layout: the axes of each parameter.
        model: the model that computed `hidden`, whose graph must still be there; it stays there.
        hidden: the last hidden states, (batch, sequence, hidden).
        mask: 1 for tokens, 0 for padding, (batch, sequence).
        seed: v is a function of it and of `hidden`'s shape, on any device.
    """
    noise = torch.Generator().manual_seed(seed)
    v = torch.randn(hidden.shape, generator=noise).to(hidden.device) * mask[..., None]
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        hidden, [p for _, p in named], v.to(hidden.dtype), retain_graph=True, allow_unused=True
    )
    weights = ((n, (p, g)) for (n, p), g in zip(named, gradients, strict=True) if g is not None)
    with torch.no_grad():
        return fold(layout, layout.sizes(model), weights)


class Importance:
    """Scores smoothed over measurements: the mean of a window of them, then an exponential average of windows.

    Args:
        method: how the scores given to `update` were made; only `platon` is smoothed differently.
        window: measurements in a window.
        decay: what an exponential average keeps of itself when a window is complete.
    """

    def __init__(self, method: Method, *, window: int, decay: float) -> None:
        self.method, self.window, self.decay = method, window, decay
        self.count = 0
        self.sum: Scores = {}
        self.mean: Scores = {}
        self.uncertainty: Scores = {}

    def update(self, scores: Scores) -> None:
        """Take one measurement in."""
        self.sum = {a: self.sum[a] + s if a in self.sum else s for a, s in scores.items()}
        self.count += 1
        if self.count < self.window:
            return
        for axis, total in self.sum.items():
            now = total / self.count
            before = self.mean.get(axis, now)
            varies = self.uncertainty.get(axis, torch.zeros_like(now))
            self.mean[axis] = self.decay * before + (1 - self.decay) * now
            self.uncertainty[axis] = self.decay * varies + (1 - self.decay) * (now - before).abs()
        self.sum, self.count = {}, 0

    def ranking(self) -> Scores:
        """The scores to cut by: higher matters more. Empty before the first measurement."""
        if not self.mean:
            return {a: s / self.count for a, s in self.sum.items()}
        if self.method != "platon":
            return dict(self.mean)
        # before a second window nothing has varied, and a product with zero would rank nothing
        return {a: m * u if bool((u := self.uncertainty[a]).any()) else m for a, m in self.mean.items()}

    def apply(self, change: Callable[[Scores], Scores]) -> None:
        """Replace each kind of scores by `change(scores)`, as a cut does to keep the units that stay."""
        self.sum, self.mean, self.uncertainty = change(self.sum), change(self.mean), change(self.uncertainty)

    def state(self) -> dict[str, Tensor]:
        """Everything that smoothing remembers, as named tensors."""
        stores = {"sum": self.sum, "mean": self.mean, "uncertainty": self.uncertainty}
        vectors = {f"{name}/{axis}": v for name, store in stores.items() for axis, v in store.items()}
        return vectors | {"count": torch.tensor(self.count)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.count = int(state["count"])
        for name, store in (("sum", self.sum), ("mean", self.mean), ("uncertainty", self.uncertainty)):
            store.clear()
            store |= {key.partition("/")[2]: v for key, v in state.items() if key.startswith(f"{name}/")}
