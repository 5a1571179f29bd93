"""Losses with gradients of their own equal the plain formulas, and differ from autograd by rounding only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from homodistil.losses import kernels, losses


@pytest.mark.parametrize("cached", [1 << 18, 20, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_losses_over_a_vocabulary_equal_the_plain_ones(
    temperature: float, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, however few rows are handled at once."""
    monkeypatch.setattr(kernels, "CACHED", cached)
    draw = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(7, 9, generator=draw, dtype=torch.float32) for _ in range(2))
    labels = torch.randint(9, (7,), generator=draw)
    student.requires_grad_()
    fast = kernels.over_vocabulary(student, teacher, labels, temperature)
    plain = F.cross_entropy(student, labels), losses.prediction(student, teacher, temperature)
    torch.testing.assert_close(fast, plain)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.7, 3.0)):
        ours, theirs = (
            torch.autograd.grad(weights[0] * lm + weights[1] * kl, student, retain_graph=True)[0]
            for lm, kl in (fast, plain)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_without_a_teacher_there_is_no_divergence() -> None:
    """The student's own cross-entropy is left, with its gradient."""
    student = torch.randn(4, 6, requires_grad=True)
    labels = torch.tensor([0, 5, 2, 2])
    lm, divergence = kernels.over_vocabulary(student, None, labels, 1.0)
    plain = F.cross_entropy(student, labels)
    assert divergence == 0
    torch.testing.assert_close(lm, plain)
    torch.testing.assert_close(torch.autograd.grad(lm + divergence, student)[0], torch.autograd.grad(plain, student)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_have_no_divergence_and_no_gradient(dtype: torch.dtype) -> None:
    """Exactly, in both precisions."""
    logits = torch.randn(5, 300).to(dtype).requires_grad_()
    _, divergence = kernels.over_vocabulary(logits, logits.detach(), torch.zeros(5, dtype=torch.long), 1.0)
    assert divergence == 0
    assert torch.autograd.grad(divergence, logits)[0].abs().max() == 0


def test_the_squared_distance_equals_the_plain_one() -> None:
    """Mean over the tokens of the mask and the width; padding has no part in value or gradient."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 5, 8, generator=draw), torch.randn(3, 5, 8, generator=draw)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    student.requires_grad_()
    fast = kernels.squared_distance(student, teacher, mask)
    plain = (student - teacher)[mask.bool()].square().mean()
    torch.testing.assert_close(fast, plain)
    ours, theirs = (torch.autograd.grad(5 * loss, student)[0] for loss in (fast, plain))
    torch.testing.assert_close(ours, theirs)


def test_rows_that_lie_in_one_piece_are_not_copied() -> None:
    """Whatever lies between them; columns that lie apart, and rows that lie over each other, are put in order."""
    matrix = torch.arange(24.0).view(4, 6)
    for apart in (matrix, matrix[:, :5], matrix[1::2]):
        assert kernels._in_rows(apart) is apart
    for torn in (matrix.T, matrix[:, ::2], matrix[:1].expand(3, 6)):
        made = kernels._in_rows(torn)
        assert made.is_contiguous()
        assert torch.equal(made, torn)
