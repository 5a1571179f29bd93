"""Sums of the columns of a matrix, which are the gradients of biases."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 128
"""Of a tile that is read at once."""
PROGRAMS = 528
"""Programs that share the matrix, four for each multiprocessor of a large GPU."""


@triton.jit
def _summed(matrix, partial, rows, columns, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column, first = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1) * each
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(first, min(first + each, rows), ROWS):
        row = at + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        place = row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(matrix + place, mask=inside, other=0).to(tl.float32)
    tl.store(partial + tl.program_id(1) * columns + column, tl.sum(total, 0), mask=column < columns)


def summed(matrix: Tensor) -> Tensor:
    """The sums (columns,) of a matrix (rows, columns), in float32, always in the same order.

    Args:
        matrix: of 16 or 32 bits.
    """
    matrix = matrix.contiguous()
    rows, columns = matrix.shape
    across = triton.cdiv(columns, COLUMNS)
    down = max(1, PROGRAMS // across)
    each = max(1, triton.cdiv(triton.cdiv(rows, down), ROWS)) * ROWS
    down = max(1, triton.cdiv(rows, each))
    partial = torch.empty(down, columns, device=matrix.device, dtype=torch.float32)
    _summed[(across, down)](matrix, partial, rows, columns, each, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4)
    return partial[0] if down == 1 else partial.sum(0)
