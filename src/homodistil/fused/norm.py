"""Layer normalisation that reads and writes 16 bits, with one pass over its inputs in each direction."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

WIDEST = 8192
"""Units at most: a row is held in registers."""
TILE = 4096
"""Numbers that are read at once."""
PROGRAMS = 528
"""Programs that share the rows in the backward pass, four for each multiprocessor of a large GPU; each sums up what
weights and biases get from its rows."""


@triton.jit
def _forward(x, weight, bias, y, means, scales, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row, unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = (row < rows)[:, None] & (unit < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + unit[None, :]
    a = tl.load(x + place, mask=inside, other=0).to(tl.float32)
    mean = tl.sum(a, 1) / width
    centred = tl.where(inside, a - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)
    w = tl.load(weight + unit, mask=unit < width, other=0).to(tl.float32)
    b = tl.load(bias + unit, mask=unit < width, other=0).to(tl.float32)
    made = centred * scale[:, None] * w[None, :] + b[None, :]
    tl.store(y + place, made.to(y.dtype.element_ty), mask=inside)
    tl.store(means + row, mean, mask=row < rows)
    tl.store(scales + row, scale, mask=row < rows)


@triton.jit
def _backward(
    x, weight, of_y, means, scales, of_x, partial, rows, width, each, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    unit = tl.arange(0, WIDTH)
    w = tl.load(weight + unit, mask=unit < width, other=0).to(tl.float32)
    of_w = tl.zeros((WIDTH,), tl.float32)
    of_b = tl.zeros((WIDTH,), tl.float32)
    first = tl.program_id(0) * each
    for at in range(first, min(first + each, rows), ROWS):
        row = at + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (unit < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + unit[None, :]
        a = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        g = tl.load(of_y + place, mask=inside, other=0).to(tl.float32)
        mean = tl.load(means + row, mask=row < rows, other=0)
        scale = tl.load(scales + row, mask=row < rows, other=0)
        normed = tl.where(inside, (a - mean[:, None]) * scale[:, None], 0.0)
        of_w += tl.sum(g * normed, 0)
        of_b += tl.sum(g, 0)
        through = g * w[None, :]
        along = tl.sum(through * normed, 1) / width
        level = tl.sum(through, 1) / width
        made = (through - level[:, None] - normed * along[:, None]) * scale[:, None]
        tl.store(of_x + place, made.to(of_x.dtype.element_ty), mask=inside)
    out = partial + tl.program_id(0) * 2 * width + unit
    tl.store(out, of_w, mask=unit < width)
    tl.store(out + width, of_b, mask=unit < width)


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """(x - mean) / sqrt(variance + eps) · weight + bias over the last dimension, computed in float32.

    Args:
        x: (..., width), at most `WIDEST`.
        weight: (width,).
        bias: (width,).
        eps: added to variances.
        dtype: of what is returned, of x's shape.
    """
    made: Tensor = _Norm.apply(x, weight, bias, eps, dtype)  # type: ignore[no-untyped-call]
    return made


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty_like(x, dtype=dtype)
        means, scales = torch.empty(2, rows, device=x.device, dtype=torch.float32)
        tile = _tile(width)
        _forward[(triton.cdiv(rows, tile["ROWS"]),)](
            x, weight, bias, y, means, scales, rows, width, eps, **tile, num_warps=4
        )
        ctx.save_for_backward(x, weight, means, scales)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, means, scales = ctx.saved_tensors
        width = x.shape[-1]
        rows = x.numel() // width
        tile = _tile(width)
        each = triton.cdiv(triton.cdiv(rows, PROGRAMS), tile["ROWS"]) * tile["ROWS"]
        programs = triton.cdiv(rows, each)
        of_x = torch.empty_like(x)
        partial = torch.empty(programs, 2, width, device=x.device, dtype=torch.float32)
        _backward[(programs,)](
            x, weight, of_y.contiguous(), means, scales, of_x, partial, rows, width, each, **tile, num_warps=4
        )
        of_weight, of_bias = partial.sum(0).to(weight.dtype)
        return of_x, of_weight, of_bias, None, None


def _tile(width: int) -> dict[str, int]:
    wide = int(triton.next_power_of_2(width))
    return {"ROWS": max(1, TILE // wide), "WIDTH": wide}
