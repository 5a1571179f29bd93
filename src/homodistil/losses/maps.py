"""Distances of two layers' attention, from queries and keys, with gradients that are summed up on the way.

No map of all pairs of tokens stands in memory. Both equal the plain formulas to rounding; gradients are exactly zero
where student and teacher agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from homodistil import fused
from homodistil.losses.kernels import CACHED
from homodistil.models.attention import QueriesKeys

AWAY = 1 << 24
"""Numbers that an accelerator handles at once; a CPU as many as `CACHED`."""


def score_distance(student: QueriesKeys, teacher: QueriesKeys, mask: Tensor) -> Tensor:
    """Sum over heads and pairs of tokens of the squared differences between two layers' scores, without the scores.

    ‖Q_s K_sᵀ - Q_t K_tᵀ‖² = ‖X Yᵀ‖² with X = [Q_s, -Q_t], Y = [K_s, K_t], which is the sum over (XᵀX) ∘ (YᵀY): two
    small squares of 2·head_dim in place of a map of sequence². Padded rows are zeroed and so add nothing.

    Args:
        student: with as many heads as the teacher has.
        teacher: it gets no gradient.
        mask: 1 for tokens that count, (batch, seq).
    """
    distance: Tensor = _ScoreDistance.apply(*student[:2], *teacher[:2], student.scaling, teacher.scaling, mask)  # type: ignore[no-untyped-call]
    return distance


def map_distance(student: QueriesKeys, teacher: QueriesKeys, mask: Tensor) -> Tensor:
    """Sum over heads and pairs of tokens of the squared differences between two layers' attention probabilities.

    No map stands in memory whole, and none is kept or made again for the backward pass: the gradients of queries and
    keys are summed up on the way, a block of maps after the other.

    Args:
        student: with as many heads as the teacher has.
        teacher: it gets no gradient.
        mask: 1 for tokens that count, (batch, seq); a sequence needs one.
    """
    distance: Tensor = _MapDistance.apply(*student[:2], *teacher[:2], student.scaling, teacher.scaling, mask)  # type: ignore[no-untyped-call]
    return distance


class _LayerDistance(Function):
    """Of two layers' queries and keys; `forward` has made the student's gradients already."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_distance: Tensor) -> tuple[Tensor | None, ...]:
        of_queries, of_keys = ctx.saved_tensors
        if (triton := fused.kernels("scores", of_queries)) is not None:
            return triton.scaled(of_queries, of_distance), triton.scaled(of_keys, of_distance), *[None] * 5
        return of_queries * of_distance, of_keys * of_distance, None, None, None, None, None


class _ScoreDistance(_LayerDistance):
    @staticmethod
    def forward(
        ctx: Any, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, scale_s: float, scale_t: float, mask: Tensor
    ) -> Tensor:
        learns = any(ctx.needs_input_grad)
        if (triton := _in_one(q_s, k_s, q_t, k_t)) is not None:
            of_pairs: tuple[Tensor, ...] = triton.scores(q_s, k_s, q_t, k_t, scale_s, scale_t, mask, learns=learns)
            ctx.save_for_backward(*of_pairs[1:])
            return of_pairs[0]
        of_queries, of_keys = (torch.empty_like(x) if learns else x.new_empty(0) for x in (q_s, k_s))
        total = q_s.new_zeros((), dtype=torch.float32)
        for texts in _texts(q_s, max(q_s[0].numel(), q_t[0].numel())):
            keep = mask[texts, None, :, None].float()
            # contiguous: products of a view across heads would copy it once for each of them
            (a, b), (c, d) = (
                [x[texts].contiguous() * (keep * by) for x, by in ((q, scale), (k, 1.0))]
                for q, k, scale in ((q_s, k_s, scale_s), (q_t, k_t, scale_t))
            )
            # all products in one way and precision: for equal inputs they are equal, and sum and gradients exactly zero
            with torch.autocast(mask.device.type, enabled=False):
                of_a, of_b, across_a, across_b = a.mT @ a, b.mT @ b, a.mT @ c, b.mT @ d
                total += (of_a * of_b).sum() - 2 * (across_a * across_b).sum() + ((c.mT @ c) * (d.mT @ d)).sum()
                if learns:
                    # lying down, because a narrow head's dimensions make slow last ones
                    of_queries[texts] = (of_b @ a.mT - across_b @ c.mT).mT.mul_(2 * scale_s * keep)
                    of_keys[texts] = (of_a @ b.mT - across_a @ d.mT).mT.mul_(2 * keep)
        ctx.save_for_backward(of_queries, of_keys)
        return total


class _MapDistance(_LayerDistance):
    @staticmethod
    def forward(
        ctx: Any, q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, scale_s: float, scale_t: float, mask: Tensor
    ) -> Tensor:
        learns = any(ctx.needs_input_grad)
        of_queries, of_keys = (
            torch.zeros(x.shape if learns else 0, dtype=torch.float32, device=x.device) for x in (q_s, k_s)
        )
        total = q_s.new_zeros((), dtype=torch.float32)
        for texts, rows in _blocks(q_s):
            hidden = mask[texts, None, None, :] == 0
            queries, keys = q_s[texts, :, rows], k_s[texts]
            p_s = _probabilities(queries, keys, scale_s, hidden)
            difference = p_s - _probabilities(q_t[texts, :, rows], k_t[texts], scale_t, hidden)
            difference *= mask[texts, None, rows, None]
            total += difference.square().sum()
            if learns:
                # through the softmax; its factor 2 and the scale wait until the sums are whole
                difference -= (difference * p_s).sum(-1, keepdim=True)
                of_scores = p_s.mul_(difference).to(keys.dtype)
                of_queries[texts, :, rows] = of_scores @ keys
                of_keys[texts] += of_scores.transpose(-1, -2) @ queries
        ctx.save_for_backward(*((2 * scale_s * g).to(x.dtype) for g, x in ((of_queries, q_s), (of_keys, k_s))))
        return total


def _in_one(*layers: Tensor) -> Any:
    """The kernels for queries and keys that they can handle; None for others."""
    triton = fused.kernels("scores", *layers) if len({x.dtype for x in layers}) == 1 else None
    return triton if triton is not None and max(x.shape[-1] for x in layers) <= triton.WIDEST else None


def _probabilities(queries: Tensor, keys: Tensor, scale: float, hidden: Tensor) -> Tensor:
    scores = (queries @ keys.transpose(-1, -2)).float()
    return scores.mul_(scale).masked_fill_(hidden, -math.inf).softmax(-1)


def _texts(of: Tensor, each: int) -> Iterator[slice]:
    """Texts that are handled at once, of which each has so many numbers."""
    some = max(1, (CACHED if of.device.type == "cpu" else AWAY) // each)
    return (slice(at, at + some) for at in range(0, len(of), some))


def _blocks(queries: Tensor) -> Iterator[tuple[slice, slice]]:
    """Texts and rows of their maps that are handled at once: several short texts, or some rows of a long one."""
    batch, heads, seq, _ = queries.shape
    most = CACHED if queries.device.type == "cpu" else AWAY
    texts, rows = max(1, most // (heads * seq * seq)), min(seq, max(1, most // (heads * seq)))
    for text in range(0, batch, texts):
        for row in range(0, seq, rows):
            yield slice(text, text + texts), slice(row, row + rows)
