"""Kernels in Triton equal torch's. Skipped where Triton is not installed: it comes with torch for GPUs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

COMPARED = """
import torch
from homodistil.distill.attention import QueriesKeys
from homodistil.distill.fused import scores
from homodistil.distill.maps import score_distance

draw = torch.Generator().manual_seed(0)
for length, narrow, wide in ((70, 10, 32), (130, 20, 64), (16, 16, 16)):
    q_s, k_s, q_t, k_t = (
        torch.randn(2, length, 3, d, generator=draw).transpose(1, 2) for d in (narrow, narrow, wide, wide)
    )
    mask = torch.ones(2, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    scales = narrow**-0.5, wide**-0.5
    made = scores(q_s, k_s, q_t, k_t, *scales, mask, learns=True)
    q, k = (x.clone().requires_grad_() for x in (q_s, k_s))
    plain = score_distance(QueriesKeys(q, k, scales[0]), QueriesKeys(q_t, k_t, scales[1]), mask)
    for ours, theirs in zip(made, (plain, *torch.autograd.grad(plain, (q, k))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max()))
    assert not made[1][0, :, length // 2 :].any()
    total, *gradients = scores(q_s, k_s, q_t, k_t, *scales, mask, learns=False)
    torch.testing.assert_close(total, plain.detach(), rtol=1e-5, atol=0)
    assert all(g.numel() == 1 for g in gradients)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_scores_in_one_kernel_equal_those_in_several() -> None:
    """Value and gradients, in Triton's interpreter, which needs no GPU; of padding there is no gradient."""
    done = subprocess.run(
        [sys.executable, "-c", COMPARED], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
