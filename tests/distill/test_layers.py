"""Layers that a GPU computes quickly remain what they are; their gradients and paddings, on any machine."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, BertForMaskedLM

from conftest import make
from homodistil import shrink
from homodistil.distill import layers
from homodistil.distill.layers import Head, Norm, Product, padded, quicken


def _quick() -> BertForMaskedLM:
    model = make(BertForMaskedLM)
    assert isinstance(model, BertForMaskedLM)
    quicken(model)
    return model


def test_plain_norms_and_products_become_quick_ones() -> None:
    """All of them; what is of another class already stays."""
    model = _quick()
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.LayerNorm | nn.Linear)}
    assert kinds == {Norm, Product, Head}
    before = [type(m) for m in model.modules()]
    quicken(model)
    assert [type(m) for m in model.modules()] == before
    model.cls.predictions.transform.LayerNorm = nn.LayerNorm(48, bias=False)
    quicken(model)
    assert type(model.cls.predictions.transform.LayerNorm) is nn.LayerNorm


@pytest.mark.parametrize("model_type", "bert roberta xlm-roberta distilbert electra mpnet modernbert".split())
def test_what_makes_the_logits_is_the_head(model_type: str) -> None:
    """Of each family, wherever it lies; and nothing else is."""
    config = AutoConfig.for_model(
        model_type, vocab_size=35, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        **({"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 1} if model_type == "distilbert" else {}),
        **({"pad_token_id": 0} if model_type == "modernbert" else {}),
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config)
    quicken(model)
    heads = [m for m in model.modules() if isinstance(m, Head)]
    assert [m.out_features for m in heads] == [35]


def _gradients(model: BertForMaskedLM, *, rounded: bool) -> list[Tensor]:
    """Of all parameters that have one, in float32."""
    ids = torch.arange(2 * 7).view(2, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        logits = model(input_ids=ids).logits
    logits.float().square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_in_float32_nothing_is_computed_otherwise() -> None:
    """Gradients to the bit."""
    ours, theirs = (_gradients(model, rounded=False) for model in (_quick(), make(BertForMaskedLM)))
    assert all(torch.equal(mine, right) for mine, right in zip(ours, theirs, strict=True))


def test_in_bf16_quick_layers_are_as_near_to_float32_as_the_librarys() -> None:
    """Norms that write bf16 round once more; they add no more than half to what autocast rounds."""
    right = _gradients(make(BertForMaskedLM), rounded=False)
    ours, theirs = (_gradients(model, rounded=True) for model in (_quick(), make(BertForMaskedLM)))

    def off(made: list[Tensor]) -> float:
        far = sum(float((a - b).square().sum()) for a, b in zip(made, right, strict=True))
        return math.sqrt(far / sum(float(b.square().sum()) for b in right))

    assert 0 < off(ours) < 1.5 * off(theirs)


def test_norms_write_what_the_products_behind_them_read() -> None:
    """In bf16 where autocast is on, computed in float32, with gradients of the weights in it; or as they were."""
    norm = Norm(48)
    torch.nn.init.normal_(norm.weight)
    states = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = F.layer_norm(states.float(), (48,), norm.weight, norm.bias, norm.eps)
    with torch.autocast("cpu", torch.bfloat16):
        made = norm(states)
    assert torch.equal(made, exact.bfloat16())
    made.float().sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.float32
    assert norm(states.float()).dtype == torch.float32


def test_a_quick_model_is_copied_cut_and_saved_as_any_other(tmp_path: Path) -> None:
    """What opens again is a plain model that says the same."""
    model = copy.deepcopy(_quick())
    shrink(model, "0.5")
    model.save_pretrained(tmp_path)
    opened = BertForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(2 * 7).view(2, 7)
    torch.testing.assert_close(opened(input_ids=ids).logits, model(input_ids=ids).logits)
    assert {type(m) for m in opened.modules() if isinstance(m, nn.LayerNorm)} == {nn.LayerNorm}


@pytest.mark.parametrize(("size", "bias"), [(16, True), (11, True), (11, False)])
def test_products_of_ours_have_the_gradients_of_the_librarys(size: int, bias: bool) -> None:
    """To the rounding of bf16; of weights and biases they are in float32. What learns nothing gets none."""
    draw = torch.Generator().manual_seed(0)
    x, weight, shift, of = (torch.randn(*s, generator=draw) for s in ((5, 2, 8), (size, 8), (size,), (5, 2, size)))
    made = [x.requires_grad_(), weight.requires_grad_(), *([shift.requires_grad_()] if bias else [])]
    function: Any = layers._Product.apply
    ours = function(x, weight, shift if bias else None)
    whole = function(x, padded(weight), padded(shift) if bias else None)
    theirs = F.linear(x, weight, shift if bias else None)
    right = torch.autograd.grad(theirs, made, of)
    assert whole.shape[-1] == 16
    assert not whole[..., size:].any()
    for product in (ours, whole[..., :size]):
        assert product.dtype == torch.bfloat16
        torch.testing.assert_close(product.float(), theirs, rtol=2e-2, atol=5e-2)
        for mine, exact in zip(torch.autograd.grad(product, made, of.bfloat16()), right, strict=True):
            assert mine.dtype == torch.float32
            torch.testing.assert_close(mine, exact, rtol=2e-2, atol=0.1)
    frozen = function(x, weight.detach(), None)
    assert torch.autograd.grad(frozen.float().sum(), x)[0].shape == x.shape


def test_weights_are_padded_to_the_next_multiple_of_eight() -> None:
    """By zeros after the last row; those that are a multiple already stay the same tensor."""
    weight = torch.ones(11, 3)
    assert torch.equal(padded(weight), F.pad(weight, (0, 0, 0, 5)).bfloat16())
    assert torch.equal(padded(weight[:, 0]), F.pad(weight[:, 0], (0, 5)).bfloat16())
    eight = weight[:8]
    assert padded(eight) is eight
