"""Kernels in Triton compile for GPUs, none of which is needed. Skipped where Triton is not installed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    # versions that tell of their next default
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
CHIPS = {80: 163 * 1024, 90: 227 * 1024}
"""Compute capabilities, and the bytes of shared memory that a program may have."""
LARGER = 128
"""Rows of a block that only chips with more shared memory get (`muon.fits`)."""

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Collects what would be launched."""
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []
    monkeypatch.setattr(
        JITFunction, "__getitem__", lambda kernel, _: lambda *args, **options: found.append((kernel, args, options))
    )
    return found


def _compiled(launch: Launch, chip: int) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, args, options = launch
    names = kernel.arg_names
    values = dict(zip(names, args, strict=False)) | {n: v for n, v in options.items() if n in names}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(names):
        value = values[name]
        if isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
        elif name in options:
            signature[name], constants[index,] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    rest = {n: v for n, v in options.items() if n not in names}
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=rest)


def _norms(draw: Callable[..., Tensor]) -> None:
    from homodistil.fused.norm import norm

    x, weight, bias = draw(6, 768), draw(768), draw(768)
    x.requires_grad_()
    made = norm(x, weight, bias, 1e-5, torch.bfloat16)
    torch.autograd.grad(made, x, torch.zeros_like(made))


def _distances(draw: Callable[..., Tensor]) -> None:
    from homodistil.fused.distance import scaled_difference, summed

    mask = torch.ones(2, 5, dtype=torch.long)
    student, teacher = draw(2, 5, 384), draw(2, 5, 384)
    summed(student, teacher, mask)
    scaled_difference(student, teacher, mask, torch.tensor(1.0))


def _vocabularies(draw: Callable[..., Tensor]) -> None:
    from homodistil.fused.vocabulary import backward, forward

    student, labels = draw(3, 5000), torch.zeros(3, dtype=torch.long)
    for teacher in (None, draw(3, 5000)):
        _, kept = forward(student, teacher, labels, 1.0)
        backward(student, teacher, labels, 1.0, kept, torch.ones(2))


def _columns(draw: Callable[..., Tensor]) -> None:
    from homodistil.fused.columns import summed

    summed(draw(70, 768))


def _scores(draw: Callable[..., Tensor]) -> None:
    from homodistil.fused.scores import scaled, scores

    mask = torch.ones(2, 70, dtype=torch.long)
    for narrow, wide in ((20, 64), (64, 64), (10, 16)):
        q_s, k_s, q_t, k_t = (draw(2, 3, 70, d) for d in (narrow, narrow, wide, wide))
        for learns in (True, False):
            scores(q_s, k_s, q_t, k_t, 0.2, 0.1, mask, learns=learns)
    scaled(draw(9), torch.tensor(0.3))


def _muon(draw: Callable[..., Tensor]) -> None:
    from homodistil.distill.optimizer import COEFFICIENTS, ITERATIONS, LEAST, block_size
    from homodistil.fused.muon import move

    # of blocks of 16, 64 and 128 rows, whichever way they lie, of sizes that are even and odd
    for rows, columns in (
        (768, 768),
        (300, 140),
        (140, 300),
        (768, 3072),
        (3072, 768),
        (120, 480),
        (115, 461),
        (9, 30),
    ):
        matrices, gradients, averages = ([draw(rows, columns).float() for _ in range(2)] for _ in range(3))
        size = block_size(max(rows, columns), min(rows, columns))
        move(
            matrices, gradients, averages, torch.tensor(1.0), size=size, momentum=0.9, keeps=0.99,
            far=0.1 * math.sqrt(max(size, rows)), coefficients=COEFFICIENTS, iterations=ITERATIONS, least=LEAST,
            dtype=torch.bfloat16,
        )  # fmt: skip


USES = {
    "norm": _norms, "distance": _distances, "vocabulary": _vocabularies, "columns": _columns, "scores": _scores,
    "muon": _muon,
}  # fmt: skip


CASES = [(name, dtype) for name in USES for dtype in (torch.bfloat16, torch.float32)]
"""Whose tensors are of which type."""
# the optimizer takes it for products in bf16 alone
CASES.remove(("muon", torch.float32))


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_kernel_compiles_for_gpus_that_are_new_enough(
    name: str, dtype: torch.dtype, launches: list[Launch]
) -> None:
    """As it would be launched, without numbers in float64, and within the memory of a chip."""
    USES[name](lambda *shape: torch.zeros(*shape, dtype=dtype))
    assert launches
    seen = set()
    for kernel, args, options in launches:
        types = [(str(a.dtype) if isinstance(a, Tensor) else type(a).__name__) for a in args]
        if (key := (kernel.fn.__name__, *types, *map(str, options.items()))) in seen:
            continue
        seen.add(key)
        for chip, memory in CHIPS.items():
            # they differ in how they multiply, and products in float32 take no cores for it
            if chip < 90 and (options.get("SIZE") == LARGER or dtype == torch.float32):
                continue
            made = _compiled((kernel, args, options), chip)
            assert made.metadata.shared <= memory
            assert ".f64" not in made.asm["ptx"]
