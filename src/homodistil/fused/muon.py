"""Muon's step in one kernel (`distill/optimizer.py`): gradients, momenta and weights are read once or twice.

Of a block X the iteration X ← aX + b(XXᵀ)X + c(XXᵀ)²X is linear in X but for its square XXᵀ. All that is multiplied by
X commutes, so that the iteration can be done to the square alone, S ← S(aI + bS + cS²)², which stays on the chip.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64
"""Columns of a block that are read at once."""
GRAIN = 4
"""Numbers that are read at once where it is known that no line begins or ends within them."""
WARPS, STAGES = 8, 1
"""Of a program. With more stages, what is read ahead would need the registers and the memory that squares have."""
SMALL, SHARED = 64, 200_000
"""Blocks of more rows than that need so many bytes of shared memory, for two squares of float32 beside each other."""


@triton.jit
def _read(gradient, average, shortened, start, stride, unit, counts, width, WIDE: tl.constexpr):
    """Where a tile lies and what of it there is, its shortened gradients and its momenta."""
    inside = counts & (unit < width)[None, :]
    place = start + unit.to(tl.int64)[None, :] * stride if WIDE else start + unit[None, :]
    g = tl.load(gradient + place, mask=inside, other=0) * shortened
    return place, inside, g, tl.load(average + place, mask=inside, other=0)


# nothing is looked up in sizes: it would be compiled again and again while a student's widths change
@triton.jit(do_not_specialize=["length", "width", "size", "blocks", "stride", "iterations"])
def _moved(
    table, share, length, width, size, blocks, stride, iterations, momentum, keeps, far, least, A, B, C,
    GRAIN: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """One block of one matrix: `size` of the lines along its longer dimension, over all of its shorter one.

    Sizes are told in multiples of `GRAIN`, and addresses are multiples of as many numbers. `WIDE` matrices have more
    columns than rows.
    """
    entry = table + 3 * (tl.program_id(0) // blocks)
    weight = tl.multiple_of(tl.load(entry).to(tl.pointer_type(tl.float32)), 4 * GRAIN)
    gradient = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(tl.float32)), 4 * GRAIN)
    average = tl.multiple_of(tl.load(entry + 2).to(tl.pointer_type(tl.float32)), 4 * GRAIN)
    length, width, size, stride = length * GRAIN, width * GRAIN, size * GRAIN, stride * GRAIN
    shortened = tl.load(share)
    row, column = tl.arange(0, SIZE), tl.arange(0, TILE)
    line = (tl.program_id(0) % blocks) * size + row
    counts = ((row < size) & (line < length))[:, None]
    start = line.to(tl.int64)[:, None]
    if not WIDE:
        start *= stride
    square = tl.zeros((SIZE, SIZE), tl.float32)
    for at in range(0, width, TILE):
        place, inside, g, m = _read(gradient, average, shortened, start, stride, at + column, counts, width, WIDE)
        m += (g - m) * (1 - momentum)
        tl.store(average + place, m, mask=inside)
        x = (g + (m - g) * momentum).to(DTYPE)
        square = tl.dot(x, tl.trans(x), square, input_precision=PRECISION)
    one = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    total = tl.sum(square * one)
    scale = tl.rsqrt(tl.maximum(total, least * least))
    # one after the other: their product may be too large
    square = square * scale * scale
    through = one
    for _ in range(iterations):
        factor = A * one + B * square + C * tl.dot(square, square, input_precision=PRECISION)
        through = tl.dot(factor, through, input_precision=PRECISION)
        square = tl.dot(factor, tl.dot(square, factor, input_precision=PRECISION), input_precision=PRECISION)
    through = through * scale
    # what other threads of this program have stored is read
    tl.debug_barrier()
    for at in range(0, width, TILE):
        place, inside, g, m = _read(gradient, average, shortened, start, stride, at + column, counts, width, WIDE)
        w = tl.load(weight + place, mask=inside, other=0)
        x = (g + (m - g) * momentum).to(DTYPE).to(tl.float32)
        made = tl.dot(through, x, input_precision=PRECISION)
        tl.store(weight + place, w * keeps - far * made, mask=inside)


def move(
    matrices: Sequence[Tensor],
    gradients: Sequence[Tensor],
    averages: Sequence[Tensor],
    share: Tensor,
    *,
    size: int,
    momentum: float,
    keeps: float,
    far: float,
    coefficients: tuple[float, float, float],
    iterations: int,
    least: float,
    dtype: torch.dtype,
) -> None:
    """Move matrices of one shape, and their momenta, in place.

    Args:
        matrices: (rows, columns) each, contiguous, of float32.
        gradients: likewise.
        averages: the momenta, likewise.
        share: what gradients are multiplied by before all else, (), float32.
        size: lines of the longer dimension that are evened together (`optimizer.block_size`), see `fits`.
        momentum: what an average keeps of itself.
        keeps: what a matrix keeps of itself.
        far: how far it moves along its direction, whose singular values are near to 1.
        coefficients: a, b, c of the iteration.
        iterations: how many.
        least: the norm to which a block is divided at least, so that zeros stay zeros.
        dtype: to which directions are rounded before they are multiplied, float32 or bfloat16.
    """
    rows, columns = matrices[0].shape
    length, width = max(rows, columns), min(rows, columns)
    blocks = triton.cdiv(length, size)
    pointers = tuple(x.data_ptr() for three in zip(matrices, gradients, averages, strict=True) for x in three)
    even = all(n % GRAIN == 0 for n in (rows, columns, size)) and all(p % (4 * GRAIN) == 0 for p in pointers)
    grain = GRAIN if even else 1
    _moved[(len(matrices) * blocks,)](
        _table(pointers, matrices[0].device), share, *(n // grain for n in (length, width, size)), blocks,
        columns // grain, iterations, momentum, keeps, far, least, *coefficients,
        SIZE=max(16, int(triton.next_power_of_2(size))), TILE=TILE,
        DTYPE=tl.bfloat16 if dtype == torch.bfloat16 else tl.float32,
        # coarser than float32, finer than what is multiplied
        PRECISION="tf32" if dtype == torch.bfloat16 else "ieee",
        WIDE=rows < columns, GRAIN=grain, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def _table(pointers: tuple[int, ...], device: torch.device) -> Tensor:
    """Addresses on the device, which stay what they are between two cuts."""
    return torch.tensor(pointers, dtype=torch.int64, device=device)


def fits(size: int, tensors: Sequence[Tensor]) -> bool:
    """Whether such tensors can be handled in blocks of so many lines on their GPU."""
    if size > 2 * SMALL or not all(x.dtype == torch.float32 and x.is_contiguous() for x in tensors):
        return False
    chip = torch.cuda.get_device_properties(tensors[0].device)
    return size <= SMALL or getattr(chip, "shared_memory_per_block_optin", 0) >= SHARED
