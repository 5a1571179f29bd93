"""Kernels of ours for GPUs, in Triton, where a chain of torch's would carry its inputs through memory often.

Each equals the plain formula to rounding, which stays where there is no such GPU. Triton comes with torch for GPUs, so
that a kernel's file is imported when it is asked for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

TRITON = (3, 3)
"""The oldest compiler for them: the one before it, of torch 2.6, asks for more shared memory than a GPU has."""


def kernels(name: str, *tensors: Tensor) -> Any:
    """The file of this name, if it can handle these tensors: on one GPU that is new enough, of 16 or 32 bits.

    Args:
        name: of a module in this folder.
        tensors: that it would read as floating-point numbers.

    Returns:
        The module, or None.
    """
    if not tensors[0].is_cuda or any(x.dtype == torch.float64 for x in tensors) or not usable():
        return None
    return importlib.import_module(f"{__name__}.{name}")


@functools.cache
def usable() -> bool:
    """Whether the GPU that is there is one that they are for, and their compiler new enough."""
    if torch.version.hip is not None or torch.cuda.get_device_capability() < (8, 0):
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    version = importlib.import_module("triton").__version__.split(".")
    return tuple(map(int, version[:2])) >= TRITON
