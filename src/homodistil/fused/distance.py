"""Squared distances of states, with one pass over them in each direction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers that are read at once."""


@triton.jit
def _forward(student, teacher, mask, sums, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    counts = (tl.load(mask + row, mask=row < rows, other=0) != 0)[:, None]
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for at in range(0, width, WIDTH):
        unit = at + tl.arange(0, WIDTH)
        inside = counts & (unit < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + unit[None, :]
        s = tl.load(student + place, mask=inside, other=0)
        t = tl.load(teacher + place, mask=inside, other=0).to(student.dtype.element_ty)
        difference = s.to(tl.float32) - t.to(tl.float32)
        total += difference * difference
    tl.store(sums + tl.program_id(0), tl.sum(total))


@triton.jit
def _backward(student, teacher, mask, scale, gradient, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    counts = (tl.load(mask + row, mask=row < rows, other=0) != 0)[:, None]
    inside = (row < rows)[:, None] & (unit < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + unit[None, :]
    s = tl.load(student + place, mask=inside & counts, other=0)
    t = tl.load(teacher + place, mask=inside & counts, other=0).to(student.dtype.element_ty)
    made = (s.to(tl.float32) - t.to(tl.float32)) * tl.load(scale)
    tl.store(gradient + place, made.to(gradient.dtype.element_ty), mask=inside)


def summed(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The squared differences (rows, width) of the rows that count, summed in float32.

    Args:
        student: (batch, seq, width), contiguous.
        teacher: the same shape, contiguous; it is rounded to the student's type.
        mask: (batch, seq), contiguous, 0 for rows that do not count.
    """
    width = student.shape[-1]
    rows = student.numel() // width
    tile = _tile(width)
    sums = torch.empty(triton.cdiv(rows, tile["ROWS"]), device=student.device, dtype=torch.float32)
    _forward[(len(sums),)](student, teacher, mask, sums, rows, width, **tile, num_warps=4)
    return sums.sum()


def scaled_difference(student: Tensor, teacher: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
    """The differences times a number (), 0 for rows that do not count; arguments as those of `summed`."""
    width = student.shape[-1]
    rows = student.numel() // width
    tile = _tile(width)
    gradient = torch.empty_like(student)
    grid = triton.cdiv(rows, tile["ROWS"]), triton.cdiv(width, tile["WIDTH"])
    _backward[grid](student, teacher, mask, scale, gradient, rows, width, **tile, num_warps=4)
    return gradient


def _tile(width: int) -> dict[str, int]:
    wide = min(1024, int(triton.next_power_of_2(width)))
    return {"ROWS": max(1, TILE // wide), "WIDTH": wide}
