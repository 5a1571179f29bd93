"""Losses over a vocabulary, with one pass over the logits in each direction and nothing of their size in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Tokens of the vocabulary that are read at once."""


@triton.jit
def _forward(
    student, teacher, labels, of_rows, kept, vocab, student_n, teacher_n, cooler, KL: tl.constexpr, TILE: tl.constexpr
):
    """Of a row the cross-entropy and the divergence, and what the backward pass needs: three log-sums of exponentials.

    Sums are kept relative to the largest logit so far. `cooler` is one over the temperature.
    """
    row = tl.program_id(0).to(tl.int64)
    # finite, because a logit may be minus infinity, and the difference of two of them is no number
    top_s, top_t = -3.0e38, -3.0e38
    sum_1, sum_s, sum_t, apart = 0.0, 0.0, 0.0, 0.0
    for at in range(0, vocab, TILE):
        token = at + tl.arange(0, TILE)
        s = tl.load(student + row * student_n + token, mask=token < vocab, other=-float("inf")).to(tl.float32)
        top = tl.maximum(top_s, tl.max(s, 0))
        sum_1 = sum_1 * tl.exp(top_s - top) + tl.sum(tl.exp(s - top), 0)
        if KL:
            sum_s = sum_s * tl.exp((top_s - top) * cooler) + tl.sum(tl.exp((s - top) * cooler), 0)
            t = tl.load(teacher + row * teacher_n + token, mask=token < vocab, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(top_t, tl.max(t, 0))
            fading = tl.exp((top_t - higher) * cooler)
            e = tl.exp((t - higher) * cooler)
            sum_t = sum_t * fading + tl.sum(e, 0)
            apart = apart * fading + tl.sum(tl.where(token < vocab, e * (t - s), 0.0), 0)
            top_t = higher
        top_s = top
    right = tl.load(labels + row)
    known = (right >= 0) & (right < vocab)
    said = tl.load(student + row * student_n + right, mask=known, other=float("nan")).to(tl.float32)
    log_1 = top_s + tl.log(sum_1)
    tl.store(of_rows + 2 * row, log_1 - said)
    tl.store(kept + 3 * row, log_1)
    if KL:
        log_s, log_t = top_s * cooler + tl.log(sum_s), top_t * cooler + tl.log(sum_t)
        # equal rows have equal sums, so that their divergence is exactly zero
        tl.store(of_rows + 2 * row + 1, apart / sum_t * cooler + (log_s - log_t))
        tl.store(kept + 3 * row + 1, log_s)
        tl.store(kept + 3 * row + 2, log_t)


@triton.jit
def _backward(
    student, teacher, labels, kept, weights, gradient, vocab, student_n, teacher_n, cooler,
    KL: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, token = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = token < vocab
    s = tl.load(student + row * student_n + token, mask=inside, other=0).to(tl.float32)
    right = tl.load(labels + row)
    of_lm = tl.load(weights)
    made = (tl.exp(s - tl.load(kept + 3 * row)) - tl.where(token == right, 1.0, 0.0)) * of_lm
    if KL:
        t = tl.load(teacher + row * teacher_n + token, mask=inside, other=0).to(tl.float32)
        mine = tl.exp(s * cooler - tl.load(kept + 3 * row + 1))
        theirs = tl.exp(t * cooler - tl.load(kept + 3 * row + 2))
        made += (mine - theirs) * tl.load(weights + 1)
    tl.store(gradient + row * vocab + token, made.to(gradient.dtype.element_ty), mask=inside)


def forward(student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy and KL(softmax(teacher/T) ‖ softmax(student/T)), summed over rows, and what `backward` needs.

    Args:
        student: logits (rows, vocab), whose rows lie in one piece each.
        teacher: logits of the same shape, or None.
        labels: the right tokens (rows,); one that there is not makes the cross-entropy no number.
        temperature: T.

    Returns:
        Both sums (2,), and three numbers a row (rows, 3).
    """
    rows, vocab = student.shape
    made = torch.zeros(rows, 2, device=student.device, dtype=torch.float32)
    kept = torch.empty(rows, 3, device=student.device, dtype=torch.float32)
    other = student if teacher is None else teacher
    _forward[(rows,)](
        student, other, labels, made, kept, vocab, student.stride(0), other.stride(0), 1 / temperature,
        KL=teacher is not None, TILE=TILE, num_warps=8,
    )  # fmt: skip
    return made.sum(0), kept


def backward(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float, kept: Tensor, weights: Tensor
) -> Tensor:
    """The gradient (rows, vocab) of the weighted sum of both.

    Args:
        student: as `forward` was given it, as are the next three.
        teacher: likewise.
        labels: likewise.
        temperature: likewise.
        kept: what it returned for this.
        weights: of the cross-entropy's sum, and T times that of the divergence's over T² (2,).
    """
    rows, vocab = student.shape
    other = student if teacher is None else teacher
    gradient = student.new_empty(rows, vocab)
    _backward[(rows, triton.cdiv(vocab, TILE))](
        student, other, labels, kept, weights, gradient, vocab, student.stride(0), other.stride(0), 1 / temperature,
        KL=teacher is not None, TILE=TILE, num_warps=8,
    )  # fmt: skip
    return gradient
