"""Losses whose gradients are written out, because autograd would carry large matrices through memory many times.

All equal their plain formulas to rounding, and are exactly zero, gradients included, where student and teacher agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from homodistil import fused

CACHED = 1 << 18
"""Numbers that a CPU handles at once: a megabyte, which its cache holds while several operations pass over it."""


def over_vocabulary(
    student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the labels, and T² · KL from the teacher (0 without one), both means over rows.

    Args:
        student: logits, (rows, vocab).
        teacher: logits, the same shape, without gradients; or None.
        labels: the right tokens, (rows,).
        temperature: T.
    """
    both: tuple[Tensor, Tensor] = _OverVocabulary.apply(student, teacher, labels, temperature)  # type: ignore[no-untyped-call]
    return both


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)), mean over rows.

    Args:
        student: logits, (rows, classes).
        teacher: logits, the same shape, without gradients.
        temperature: T.
    """
    nothing = torch.zeros(len(student), dtype=torch.long, device=student.device)
    return over_vocabulary(student, teacher, nothing, temperature)[1]


def squared_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of squared differences over the tokens of a mask and over the last dimension.

    Args:
        student: (batch, seq, width).
        teacher: the same shape; it gets no gradient, and is rounded to the student's type.
        mask: 1 for tokens that count, (batch, seq).
    """
    distance: Tensor = _SquaredDistance.apply(student, teacher, mask)  # type: ignore[no-untyped-call]
    return distance


class _OverVocabulary(Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor | None, labels: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, kept = temperature, None
        triton = fused.kernels("vocabulary", student, student if teacher is None else teacher)
        if triton is not None and len(student):
            student, teacher = _in_rows(student), None if teacher is None else _in_rows(teacher)
            labels = labels.contiguous()
            (lm, divergence), kept = triton.forward(student, teacher, labels, temperature)
            ctx.save_for_backward(student, teacher, labels, kept)
            return lm / len(student), divergence * (temperature**2 / len(student))
        ctx.save_for_backward(student, teacher, labels, kept)
        lm = student.new_zeros((), dtype=torch.float32)
        divergence = lm.clone()
        for part in _parts(student):
            log_s = student[part].float().log_softmax(-1)
            lm -= log_s.gather(1, labels[part][:, None]).sum()
            if teacher is not None:
                if temperature != 1:
                    log_s = _tempered(student[part], temperature).log_softmax(-1)
                log_t = _tempered(teacher[part], temperature).log_softmax(-1)
                difference = log_t - log_s
                # in place: the memory of what is used up is in the cache
                divergence += log_t.exp_().mul_(difference).sum()
        rows = max(1, len(student))
        return lm / rows, divergence * (temperature**2 / rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_lm: Tensor, of_divergence: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, labels, kept = ctx.saved_tensors
        rows, temperature = max(1, len(student)), ctx.temperature
        of_lm, of_divergence = of_lm / rows, of_divergence * (temperature / rows)
        if kept is not None:
            weights = torch.stack((of_lm, of_divergence)).float()
            triton = fused.kernels("vocabulary", student)
            made: Tensor = triton.backward(student, teacher, labels, temperature, kept, weights)
            return made, None, None, None
        gradient = torch.empty_like(student)
        for part in _parts(student):
            p_s = student[part].float().softmax(-1)
            right = labels[part][:, None]
            total = p_s * of_lm
            total.scatter_add_(1, right, -of_lm.expand(right.shape))
            if teacher is not None:
                p_t = _tempered(teacher[part], temperature).softmax(-1)
                if temperature != 1:
                    p_s = _tempered(student[part], temperature).softmax(-1)
                total += p_s.sub_(p_t).mul_(of_divergence)
            gradient[part] = total
        return gradient, None, None, None


class _SquaredDistance(Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum() * student.shape[-1]
        if (triton := fused.kernels("distance", student, teacher)) is not None:
            # inputs are kept, which are there already, in place of their difference
            inputs = [x.contiguous() for x in (student, teacher, mask)]
            ctx.save_for_backward(*inputs, count)
            total: Tensor = triton.summed(*inputs)
            return total / count
        difference = student - teacher.to(student.dtype)
        squares = difference.float().square().sum(-1)
        ctx.save_for_backward(difference, mask, count)
        return (squares * mask).sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_distance: Tensor) -> tuple[Tensor, None, None]:
        *states, mask, count = ctx.saved_tensors
        if len(states) > 1:
            gradient = fused.kernels("distance", *states).scaled_difference(*states, mask, 2 * of_distance / count)
            return gradient, None, None
        (difference,) = states
        scale = 2 * of_distance / count * mask[..., None]
        return difference * scale.to(difference.dtype), None, None


def _in_rows(matrix: Tensor) -> Tensor:
    """The matrix, or a copy of it, with each row in one piece; rows may lie apart."""
    return matrix if matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1] else matrix.contiguous()


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


def _parts(matrix: Tensor) -> list[slice]:
    """Rows that are handled at once; on an accelerator, which has no use for small parts, all of them."""
    rows = max(1, CACHED // matrix.shape[-1]) if matrix.device.type == "cpu" else max(1, len(matrix))
    return [slice(at, at + rows) for at in range(0, len(matrix), rows)]
