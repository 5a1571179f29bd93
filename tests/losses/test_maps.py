"""Attention is compared without a map in memory, to the same numbers and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from homodistil.losses import losses, maps
from homodistil.models.attention import QueriesKeys


def _layers(width: int, seed: int) -> QueriesKeys:
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(2, 3, 7, width, generator=draw, requires_grad=True) for _ in range(2))
    return QueriesKeys(queries, keys, width**-0.5)


@pytest.mark.parametrize("size", [1 << 24, 1])
def test_the_attention_loss_without_maps_equals_the_one_with_maps(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with padding, for students with narrower heads, however many texts at a time."""
    monkeypatch.setattr(maps, "CACHED", size)
    student, teacher = _layers(4, 0), _layers(6, 1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    scores = [x.queries @ x.keys.transpose(-1, -2) * x.scaling for x in (student, teacher)]
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None].expand(2, 3, 7, 7).bool()
    plain = (scores[0] - scores[1])[pairs].square().mean()
    made = losses.attention_scores(student, teacher, mask)
    torch.testing.assert_close(made, plain)
    for ours, theirs in zip(
        torch.autograd.grad(made, [student.queries, student.keys]),
        torch.autograd.grad(plain, [student.queries, student.keys]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1 << 24, 3 * 7 * 7, 3 * 7 * 2, 1])
def test_attention_probabilities_in_blocks_equal_the_whole_map(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with padding, however many texts or few rows are compared at a time."""
    monkeypatch.setattr(maps, "CACHED", size)
    student, teacher = _layers(4, 0), _layers(6, 1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    hidden = (mask == 0)[:, None, None]
    whole = [
        (x.queries @ x.keys.transpose(-1, -2) * x.scaling).masked_fill(hidden, -1e9).softmax(-1)
        for x in (student, teacher)
    ]
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None].expand(2, 3, 7, 7).bool()
    plain = (whole[0] - whole[1])[pairs].square().mean()
    made = losses.attention_probabilities(student, teacher, mask)
    torch.testing.assert_close(made, plain)
    inputs = [student.queries, student.keys]
    torch.testing.assert_close(torch.autograd.grad(made, inputs), torch.autograd.grad(plain, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [losses.attention_scores, losses.attention_probabilities])
def test_equal_attention_has_no_loss_and_no_gradient(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Exactly: an uncut student stays its teacher's copy."""
    drawn = _layers(12, 0)
    student = QueriesKeys(drawn.queries.to(dtype), drawn.keys.to(dtype), drawn.scaling)
    teacher = QueriesKeys(student.queries.detach(), student.keys.detach(), student.scaling)
    made = loss(student, teacher, torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))
    assert made.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(made, [student.queries, student.keys]))


@pytest.mark.parametrize("loss", [losses.attention_scores, losses.attention_probabilities])
def test_no_attention_loss_keeps_a_map_for_its_backward_pass(loss: Callable[..., Tensor]) -> None:
    """What autograd holds on to grows with the length, not with its square."""
    draw = torch.Generator().manual_seed(0)
    q_s, k_s, q_t, k_t = (torch.randn(1, 2, 512, 4, generator=draw, requires_grad=True) for _ in range(4))
    student, teacher = QueriesKeys(q_s, k_s, 0.5), QueriesKeys(q_t, k_t, 0.5)
    kept: list[int] = []

    def noted(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda x: x):
        loss(student, teacher, torch.ones(1, 512, dtype=torch.long))
    assert 0 < max(kept) <= student.queries.numel()
