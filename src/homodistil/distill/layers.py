"""Layers as a GPU computes them best in bf16: autocast's numbers, with fewer bytes carried through memory.

Autocast normalises in float32, so that in a model that normalises its residual stream, as BERT does, every sum and
every copy of it is of float32, and rounded anew for each product that reads it. Here norms compute in float32 as well
and write bf16. On other devices, and in float32, the layers are what they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from homodistil.distill import fused

ALIGNED = 8
"""Numbers of 16 bits in the 16 bytes that rows must begin at multiples of, for the fastest products."""


def quicken(model: PreTrainedModel, heads: Sequence[str]) -> None:
    """Let layers of a model compute as this module says, in place; they remain what they are to everything else.

    Args:
        model: of which plain norms change.
        heads: linear layers that make logits, by module name; a name that the model does not have counts for nothing.
    """
    for name, module in model.named_modules():
        if type(module) is nn.LayerNorm and module.bias is not None and len(module.normalized_shape) == 1:
            module.__class__ = Norm
        elif type(module) is nn.Linear and name in heads:
            module.__class__ = Head


class Norm(nn.LayerNorm):
    """A layer norm with a weight and a bias, over the last dimension."""

    def forward(self, states: Tensor) -> Tensor:
        """The normalised states, in bf16 on a GPU."""
        triton = fused.kernels("norm", states, self.weight) if _rounds(states) else None
        if triton is None or states.shape[-1] > triton.WIDEST:
            return super().forward(states)
        made: Tensor = triton.norm(states, self.weight, self.bias, self.eps, torch.bfloat16)
        return made


class Head(nn.Linear):
    """A linear layer the rows of whose outputs begin at multiples of 16 bytes on a GPU, of 30,522 outputs, too."""

    def forward(self, states: Tensor) -> Tensor:
        """Logits (rows, classes); rows may lie apart."""
        if states.dim() != 2 or not self.out_features % ALIGNED or not _rounds(states):
            return super().forward(states)
        made: Tensor = _Aligned.apply(states, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made


def _rounds(states: Tensor) -> bool:
    return states.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16


class _Aligned(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, w = states.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, w)
        ctx.types = states.dtype, weight.dtype
        return aligned_product(x, w, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_made: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, w = ctx.saved_tensors
        of_states, of_weight = ctx.types
        of_bias = of_made.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return (of_made @ w).to(of_states), (of_made.mT @ x).to(of_weight), of_bias


def aligned_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X · weightᵀ + bias, whose rows are as far apart as the next multiple of `ALIGNED` says.

    Args:
        x: (rows, in_features).
        weight: (out_features, in_features), of the same type.
        bias: (out_features,), rounded to that type.
    """
    size = len(weight)
    made = x.new_empty(len(x), -(-size // ALIGNED) * ALIGNED)[:, :size]
    if bias is None:
        return torch.mm(x, weight.mT, out=made)
    return torch.addmm(bias.to(x.dtype), x, weight.mT, out=made)
