"""Kernels in Triton equal torch's. Skipped where Triton is not installed: it comes with torch for GPUs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

SCORES = """
from homodistil.models.attention import QueriesKeys
from homodistil.fused.scores import scaled, scores
from homodistil.losses.maps import score_distance

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
    torch.testing.assert_close(scaled(q_s, torch.tensor(0.3)), 0.3 * q_s)
"""
NORM = """
from homodistil.fused.norm import norm

for shape in ((3, 5, 20), (700, 768), (2, 3, 1), (1, 5000)):
    x, of = (torch.randn(*shape, generator=draw) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=draw) for _ in range(2))
    sides = []
    for function in (lambda *a: norm(*a, 1e-5, torch.float32), lambda x, w, b: torch.layer_norm(x, w.shape, w, b)):
        inputs = [t.clone().requires_grad_() for t in (x + 3, weight, bias)]
        made = function(*inputs)
        sides.append((made, *torch.autograd.grad(made, inputs, of)))
    for ours, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
"""
DISTANCE = """
from homodistil.fused.distance import scaled_difference, summed
from homodistil.losses.kernels import squared_distance

for batch, length, width in ((2, 7, 20), (3, 40, 768), (1, 1, 1), (2, 3, 1500)):
    student, teacher = (torch.randn(batch, length, width, generator=draw) for _ in range(2))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length // 2 + 1 :] = 0
    plain = squared_distance(student.requires_grad_(), teacher, mask)
    (gradient,) = torch.autograd.grad(plain, student)
    count = mask.sum() * width
    torch.testing.assert_close(summed(student.detach(), teacher, mask) / count, plain.detach())
    torch.testing.assert_close(scaled_difference(student.detach(), teacher, mask, 2 / count), gradient)
    assert not summed(teacher, teacher, mask).any() and not scaled_difference(teacher, teacher, mask, 2 / count).any()
"""
VOCABULARY = """
from homodistil.fused.vocabulary import backward, forward
from homodistil.losses.kernels import over_vocabulary

for rows, vocab, temperature in ((5, 11, 1.0), (3, 5000, 2.0), (1, 4096, 1.0)):
    # rows that lie apart, and logits whose largest comes late
    student, teacher = (torch.randn(rows, vocab + 5, generator=draw)[:, :vocab] * 4 for _ in range(2))
    teacher[:, -1] += 9
    padded = torch.full((rows, vocab + 5), 1e9)
    padded[:, :vocab] = student
    student = padded[:, :vocab]
    labels = torch.randint(vocab, (rows,), generator=draw)
    ours = student.clone().requires_grad_()
    plain = over_vocabulary(ours, teacher, labels, temperature)
    (gradient,) = torch.autograd.grad(0.3 * plain[0] + 0.7 * plain[1], ours)
    sums, kept = forward(student, teacher, labels, temperature)
    torch.testing.assert_close(sums / rows * torch.tensor([1, temperature**2]), torch.stack(plain).detach())
    weights = torch.tensor([0.3, 0.7 * temperature]) / rows
    made = backward(student, teacher, labels, temperature, kept, weights)
    torch.testing.assert_close(made, gradient, rtol=1e-4, atol=1e-7)
    alone, kept = forward(student, None, labels, temperature)
    torch.testing.assert_close(alone, sums * torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad(over_vocabulary(ours, None, labels, temperature)[0], ours)
    made = backward(student, None, labels, temperature, kept, torch.tensor([1 / rows, 1.0]))
    torch.testing.assert_close(made, gradient, rtol=1e-4, atol=1e-7)
    # what cannot be is no number, and not another one
    for wrong in (-2, vocab):
        assert forward(student, teacher, torch.full_like(labels, wrong), temperature)[0][0].isnan()
    # logits of minus infinity have no share
    masked = student.clone()
    masked[:, :-2] = -float("inf")
    told = forward(masked, None, torch.full_like(labels, vocab - 1), temperature)[0][0]
    torch.testing.assert_close(told, -masked.log_softmax(-1)[:, -1].sum())
    same, kept = forward(teacher, teacher, labels, temperature)
    assert not same[1] and not backward(teacher, teacher, labels, temperature, kept, torch.tensor([0.0, 1.0])).any()
"""
COLUMNS = """
from homodistil.fused.columns import summed

for rows, columns in ((0, 3), (1, 1), (7, 130), (3000, 20), (600, 3000)):
    matrix = torch.randn(rows, columns, generator=draw)
    torch.testing.assert_close(summed(matrix), matrix.sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(summed(matrix.T.contiguous().T), matrix.sum(0), rtol=1e-4, atol=1e-4)
"""
MUON = """
import math
from homodistil.fused.muon import move
from homodistil.distill.optimizer import COEFFICIENTS, ITERATIONS, LEAST, Muon, block_size

# of one block and of several, whichever way they lie, of even and of odd sizes
for shape in ((40, 40), (24, 96), (1, 30), (130, 24), (300, 140), (140, 300), (64, 160), (160, 64), (192, 192)):
    matrices, gradients, averages = ([torch.randn(shape, generator=draw) for _ in range(4)] for _ in range(3))
    # one that rests, and two that are hardly pulled
    for tensors in (gradients, averages):
        tensors[1].zero_()
        tensors[2].mul_(1e-9)
        tensors[3].mul_(1e-25)
    plain = [torch.nn.Parameter(m.clone()) for m in matrices]
    options = {"lr": 0.03, "weight_decay": 0.1, "momentum": 0.9, "scale": 0.2}
    optimizer = Muon([{"params": plain, **options}], dtype=torch.float32)
    for parameter, gradient, average in zip(plain, gradients, averages, strict=True):
        parameter.grad = gradient.clone()
        optimizer.state[parameter]["exp_avg"] = average.clone()
    # shortened by a half on the way
    for gradient in gradients:
        gradient.mul_(2)
    optimizer.step()
    size = block_size(max(shape), min(shape))
    move(
        matrices, gradients, averages, torch.tensor(0.5), size=size, momentum=0.9, keeps=1 - 0.03 * 0.1,
        far=0.03 * 0.2 * math.sqrt(max(size, min(shape))), coefficients=COEFFICIENTS, iterations=ITERATIONS,
        least=LEAST, dtype=torch.float32,
    )
    right = [p.detach() for p in plain] + [optimizer.state[p]["exp_avg"] for p in plain]
    for ours, theirs in zip(matrices + averages, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
"""
LAWS = {
    "scores": SCORES, "norm": NORM, "distance": DISTANCE, "vocabulary": VOCABULARY, "columns": COLUMNS, "muon": MUON,
}  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_one_kernel_equals_several(law: str) -> None:
    """Values and gradients, in Triton's interpreter, which needs no GPU; losses are zero where both sides agree.

    In float32 alone: the interpreter cuts off what a GPU rounds to bf16.
    """
    program = f"import torch\ndraw = torch.Generator().manual_seed(0)\n{law}\nprint('equal')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=240,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr
