"""XᵀX of what a layer reads: in float32, and in less than a third of the time where X is bf16.

A product of two numbers of bf16 is a number of float32, exactly. Units that multiply bf16 and sum up in float32 make of
such inputs what float32 makes of them, up to the order of the sum; only their result must not be rounded to bf16, as a
product of bf16 tensors is, because what a mean leaves of a rounded product is no covariance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCKS = 4
"""Into how many blocks of columns a matrix is cut; the blocks below the diagonal are those above it."""
SMALLEST = 256
"""Columns of a block, at least: narrower products are slower than what they save."""


def gram(rows: Tensor) -> Tensor:
    """XᵀX in float32.

    Args:
        rows: X, (rows, width), of any floating-point type.

    Returns:
        (width, width).
    """
    width = rows.shape[1]
    step = max(SMALLEST, -(-width // BLOCKS))
    x = rows.float()
    made = x.new_empty(width, width)
    exact = _by_units_of_bf16(x.device) if rows.dtype == torch.bfloat16 else contextlib.nullcontext()
    with torch.autocast(x.device.type, enabled=False), exact:
        for at in range(0, width, step):
            end = at + step
            block = x[:, at:end].T @ x[:, at:]
            made[at:end, at:] = block
            made[end:, at:end] = block[:, step:].T
    return made


@contextlib.contextmanager
def _by_units_of_bf16(device: torch.device) -> Iterator[None]:
    """Let products of float32 tensors round what they read, and not what they make, inside the block."""
    of_cpu = getattr(torch.backends.mkldnn, "matmul", None)
    backends = {"cpu": (of_cpu, "bf16"), "cuda": (torch.backends.cuda.matmul, "tf32")}
    backend, precision = backends.get(device.type, (None, ""))
    before = getattr(backend, "fp32_precision", None)
    if backend is None or before is None:
        # torch older than 2.9 knows one setting for all devices: slower there, and as exact
        yield
        return
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = before
