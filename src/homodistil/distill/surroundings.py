"""What a process brings with it: settings of torch that its code has made, and an allocator that gives memory back."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as in a process that has changed no setting, whatever surrounds the block; afterwards all is as before.

    Settings are: that nothing has gradients, the precision of autocast, in which dtype and on which device new tensors
    are made.
    """
    dtype, elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # autocast forgets its copies of weights when its outermost block ends: within another, no step may keep any
        for device in ("cpu", "cuda") if _within_autocast() else ():
            stack.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        if elsewhere:
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def _within_autocast() -> bool:
    depth: int = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth > 1


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: a step frees and asks for the same sizes, and new pages cost more than sums."""
    if sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    library.mallopt(mmap_max, 0)
    library.mallopt(trim_threshold, 2**31 - 1)
    library.mallopt(top_pad, 64 << 20)
