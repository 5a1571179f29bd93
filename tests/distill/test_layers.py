"""Layers that a GPU computes quickly remain what they are; their gradients and paddings, on any machine."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertForMaskedLM

from conftest import make
from homodistil import shrink
from homodistil.distill import layers
from homodistil.distill.layers import Head, Norm, Product, padded, quicken, with_padding

HEADS = ("cls.predictions.decoder",)


def _quick() -> BertForMaskedLM:
    model = make(BertForMaskedLM)
    assert isinstance(model, BertForMaskedLM)
    quicken(model, HEADS)
    return model


def test_plain_norms_and_products_become_quick_ones() -> None:
    """All of them, the head by its name; what is of another class already stays."""
    model = _quick()
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.LayerNorm | nn.Linear)}
    assert kinds == {Norm, Product, Head}
    assert type(model.get_submodule(HEADS[0])) is Head
    before = [type(m) for m in model.modules()]
    quicken(model, ())
    assert [type(m) for m in model.modules()] == before
    plain = nn.ModuleList(
        [nn.LayerNorm((2, 3)), nn.LayerNorm(3, bias=False), nn.LayerNorm(3, elementwise_affine=False)]
    )
    quicken(plain, ())
    assert {type(m) for m in plain} == {nn.LayerNorm}


@pytest.mark.parametrize("rounded", [False, True])
def test_without_a_gpu_nothing_is_computed_otherwise(rounded: bool) -> None:
    """Logits and gradients, to the bit."""
    quick, plain = _quick(), make(BertForMaskedLM)
    ids = torch.arange(2 * 7).view(2, 7)
    for model in (quick, plain):
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            logits = model(input_ids=ids).logits
        logits.float().square().sum().backward()
    for ours, theirs in zip(quick.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None or theirs.grad is None
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_a_quick_model_is_copied_cut_and_saved_as_any_other(tmp_path: Path) -> None:
    """What opens again is a plain model that says the same."""
    model = copy.deepcopy(_quick())
    shrink(model, "0.5")
    model.save_pretrained(tmp_path)
    opened = BertForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(2 * 7).view(2, 7)
    torch.testing.assert_close(opened(input_ids=ids).logits, model(input_ids=ids).logits)
    assert {type(m) for m in opened.modules() if isinstance(m, nn.LayerNorm)} == {nn.LayerNorm}


@pytest.mark.parametrize("function", [layers._Product, layers._Padded])
@pytest.mark.parametrize(("size", "bias"), [(16, True), (11, True), (11, False)])
def test_products_of_ours_have_the_gradients_of_the_librarys(function: type, size: int, bias: bool) -> None:
    """To the rounding of bf16; of weights and biases they are in float32. What learns nothing gets none."""
    draw = torch.Generator().manual_seed(0)
    x, weight, shift, of = (torch.randn(*s, generator=draw) for s in ((5, 8), (size, 8), (size,), (5, size)))
    made = [x.requires_grad_(), weight.requires_grad_(), *([shift.requires_grad_()] if bias else [])]
    ours = function.apply(x, weight, shift if bias else None)  # type: ignore[attr-defined]
    theirs = F.linear(x, weight, shift if bias else None)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs, rtol=2e-2, atol=5e-2)
    pairs = (torch.autograd.grad(y, made, of.to(y.dtype)) for y in (ours, theirs))
    for mine, right in zip(*pairs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, right, rtol=2e-2, atol=5e-2)
    frozen = function.apply(x, weight.detach(), None)  # type: ignore[attr-defined]
    assert torch.autograd.grad(frozen.float().sum(), x)[0].shape == x.shape


def test_padding_stands_between_the_rows_where_there_is_room_for_it() -> None:
    """Zeros, in place; a matrix without that room is copied, and its neighbours in memory stay what they are."""
    memory = torch.ones(3, 16)
    roomy = memory[:, :11]
    made = with_padding(roomy, 16)
    assert made.data_ptr() == roomy.data_ptr()
    assert made.shape == (3, 16)
    assert memory[:, 11:].eq(0).all()
    assert memory[:, :11].eq(1).all()
    # the last row ends where the memory does
    torn = torch.ones(43)[:43].as_strided((3, 11), (16, 1))
    dense = torch.ones(3, 11)
    for matrix in (torn, dense):
        made = with_padding(matrix, 16)
        assert made.data_ptr() != matrix.data_ptr()
        assert torch.equal(made, F.pad(matrix, (0, 5)))
    assert with_padding(dense, 11) is dense


def test_weights_are_padded_to_the_next_multiple_of_eight() -> None:
    """By zeros after the last row; those that are a multiple already stay the same tensor."""
    weight = torch.ones(11, 3)
    assert torch.equal(padded(weight), F.pad(weight, (0, 0, 0, 5)))
    assert torch.equal(padded(weight[:, 0]), F.pad(weight[:, 0], (0, 5)))
    assert padded(weight[:8]).shape == (8, 3)
