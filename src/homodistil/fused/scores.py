"""The distance of two layers' scores in one kernel (`maps.score_distance`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 64
"""Dimensions of a head at most: six squares of them are held in registers."""
ROWS = 64
"""Tokens that are read at once."""
FLAT = 4096
"""Numbers that are multiplied at once."""


# a kernel is compiled for whether sizes are multiples of 16, and would be for each length: nothing gains from it
@triton.jit(do_not_specialize=["length"])
def _scores(
    q_s, k_s, q_t, k_t, mask, of_q, of_k, sums,
    length, heads, S, T, scale, ratio,
    q_s_b, q_s_h, q_s_n, k_s_b, k_s_h, k_s_n, q_t_b, q_t_h, q_t_n, k_t_b, k_t_h, k_t_n, of_b, of_h, of_n,
    LEARNS: tl.constexpr, S_PAD: tl.constexpr, T_PAD: tl.constexpr,
    ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One head of one text: the squares XᵀX and YᵀY over all its tokens, and the gradients from them.

    Dimensions of heads (S, T) are no constants: it would be compiled for each width that a student passes through.
    """
    text, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    s, t, row = tl.arange(0, S_PAD), tl.arange(0, T_PAD), tl.arange(0, ROWS)
    of_a = tl.zeros((S_PAD, S_PAD), tl.float32)
    of_b_ = tl.zeros((S_PAD, S_PAD), tl.float32)
    across_a = tl.zeros((T_PAD, S_PAD), tl.float32)
    across_b = tl.zeros((T_PAD, S_PAD), tl.float32)
    of_c = tl.zeros((T_PAD, T_PAD), tl.float32)
    of_d = tl.zeros((T_PAD, T_PAD), tl.float32)
    for at in range(0, length, ROWS):
        n = at + row
        keep = tl.load(mask + text * length + n, mask=n < length, other=0) != 0
        inside_s, inside_t = keep[:, None] & (s < S)[None, :], keep[:, None] & (t < T)[None, :]
        a = tl.load(q_s + text * q_s_b + head * q_s_h + n[:, None] * q_s_n + s[None, :], mask=inside_s, other=0)
        b = tl.load(k_s + text * k_s_b + head * k_s_h + n[:, None] * k_s_n + s[None, :], mask=inside_s, other=0)
        c = tl.load(q_t + text * q_t_b + head * q_t_h + n[:, None] * q_t_n + t[None, :], mask=inside_t, other=0)
        d = tl.load(k_t + text * k_t_b + head * k_t_h + n[:, None] * k_t_n + t[None, :], mask=inside_t, other=0)
        of_a = tl.dot(tl.trans(a), a, of_a, input_precision=PRECISION)
        of_b_ = tl.dot(tl.trans(b), b, of_b_, input_precision=PRECISION)
        across_a = tl.dot(tl.trans(c), a, across_a, input_precision=PRECISION)
        across_b = tl.dot(tl.trans(d), b, across_b, input_precision=PRECISION)
        of_c = tl.dot(tl.trans(c), c, of_c, input_precision=PRECISION)
        of_d = tl.dot(tl.trans(d), d, of_d, input_precision=PRECISION)
    of_both, of_theirs = tl.sum(across_a * across_b), tl.sum(of_c * of_d)
    # the teacher's scale in the student's, which is exactly 1 where they are equal: of a difference of two products one
    # would not be rounded, and equal ones would differ
    total = tl.sum(of_a * of_b_) - 2 * ratio * of_both + ratio * ratio * of_theirs
    tl.store(sums + tl.program_id(0), scale * scale * total)
    if LEARNS:
        for at in range(0, length, ROWS):
            n = at + row
            keep = tl.load(mask + text * length + n, mask=n < length, other=0) != 0
            inside_s, inside_t = keep[:, None] & (s < S)[None, :], keep[:, None] & (t < T)[None, :]
            a = tl.load(q_s + text * q_s_b + head * q_s_h + n[:, None] * q_s_n + s[None, :], mask=inside_s, other=0)
            b = tl.load(k_s + text * k_s_b + head * k_s_h + n[:, None] * k_s_n + s[None, :], mask=inside_s, other=0)
            c = tl.load(q_t + text * q_t_b + head * q_t_h + n[:, None] * q_t_n + t[None, :], mask=inside_t, other=0)
            d = tl.load(k_t + text * k_t_b + head * k_t_h + n[:, None] * k_t_n + t[None, :], mask=inside_t, other=0)
            # products first, and then their difference, which is exactly zero where student and teacher agree
            own = tl.dot(a.to(tl.float32), of_b_, input_precision=PRECISION)
            theirs = tl.dot(c.to(tl.float32), across_b, input_precision=PRECISION)
            of_queries = 2 * scale * scale * (own - ratio * theirs)
            own = tl.dot(b.to(tl.float32), of_a, input_precision=PRECISION)
            theirs = tl.dot(d.to(tl.float32), across_a, input_precision=PRECISION)
            of_keys = 2 * scale * scale * (own - ratio * theirs)
            place = text * of_b + head * of_h + n[:, None] * of_n + s[None, :]
            inside = (n < length)[:, None] & (s < S)[None, :]
            tl.store(of_q + place, of_queries.to(of_q.dtype.element_ty), mask=inside)
            tl.store(of_k + place, of_keys.to(of_k.dtype.element_ty), mask=inside)


def scores(
    q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, scale_s: float, scale_t: float, mask: Tensor, *, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.score_distance`, and its gradients of the student's queries and keys, if it learns.

    Args:
        q_s: queries of the student, (batch, heads, seq, dimensions); at most `WIDEST` dimensions.
        k_s: its keys.
        q_t: queries of the teacher.
        k_t: its keys.
        scale_s: of the student's products.
        scale_t: of the teacher's.
        mask: 1 for tokens that count, (batch, seq).
        learns: whether gradients are made; empty otherwise.
    """
    batch, heads, length, narrow = q_s.shape
    wide = q_t.shape[-1]
    q_s, k_s, q_t, k_t = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_s, k_s, q_t, k_t))
    # heads beside each other, as the layers that made queries and keys read their gradients
    of_q, of_k = (q_s.new_empty((batch, length, heads, narrow) if learns else (1, 1, 1, 1)) for _ in range(2))
    of_q, of_k = of_q.transpose(1, 2), of_k.transpose(1, 2)
    sums = torch.empty(batch * heads, device=q_s.device, dtype=torch.float32)
    _scores[(batch * heads,)](
        q_s, k_s, q_t, k_t, mask.contiguous(), of_q, of_k, sums,
        length, heads, narrow, wide, scale_s, scale_t / scale_s,
        *(x.stride(i) for x in (q_s, k_s, q_t, k_t, of_q) for i in range(3)),
        LEARNS=learns, S_PAD=_padded(narrow), T_PAD=_padded(wide), ROWS=ROWS,
        # products of 16-bit numbers lose nothing to it
        PRECISION="ieee" if q_s.dtype == torch.float32 else "tf32", num_warps=8,
    )  # fmt: skip
    return sums.sum(), of_q, of_k


@triton.jit
def _scaled(x, by, y, count, FLAT: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * FLAT + tl.arange(0, FLAT)
    made = tl.load(x + at, mask=at < count, other=0).to(tl.float32) * tl.load(by)
    tl.store(y + at, made.to(y.dtype.element_ty), mask=at < count)


def scaled(x: Tensor, by: Tensor) -> Tensor:
    """A tensor times a number (), rounded to the tensor's type once.

    Args:
        x: of any shape, whose numbers lie in one piece, in whatever order.
        by: on the same GPU.
    """
    y = torch.empty_like(x)
    _scaled[(triton.cdiv(x.numel(), FLAT),)](x, by, y, x.numel(), FLAT=FLAT, num_warps=8)
    return y


def _padded(dimensions: int) -> int:
    return max(16, int(triton.next_power_of_2(dimensions)))
