"""Layers that carry fewer bytes through memory in bf16 than autocast's do.

Autocast normalises in float32, so that in a model that normalises its residual stream, as BERT does, every sum and
every copy of it is of float32, and rounded anew for each product that reads it. Here norms compute in float32 as well
and write bf16: the stream is rounded once more on its way, which students do not feel (`docs/log.md`). Gradients of
weights and biases are not rounded on a GPU, but for those of a padded head. On other devices products are what they
were, and in float32 all is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from homodistil import fused

ALIGNED = 8
"""Numbers of 16 bits in 16 bytes: for matrices with another number of columns the library has slower products only."""


def quicken(model: PreTrainedModel) -> None:
    """Let plain norms and linear layers of a model compute as this module says, in place.

    They remain what they are to everything else.
    """
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.LayerNorm and module.bias is not None and len(module.normalized_shape) == 1:
            module.__class__ = Norm
        elif type(module) is nn.Linear:
            module.__class__ = Head if module is head else Product


class Norm(nn.LayerNorm):
    """A layer norm with a weight and a bias, over the last dimension."""

    def forward(self, states: Tensor) -> Tensor:
        """The normalised states, in bf16 where autocast computes in it."""
        if not _rounds(states):
            return super().forward(states)
        if not states.is_cuda:
            with torch.autocast(states.device.type, enabled=False):
                return super().forward(states.bfloat16())
        triton = fused.kernels("norm", states, self.weight)
        if triton is None or not len(self.weight) == states.shape[-1] <= triton.WIDEST:
            return super().forward(states)
        made: Tensor = triton.norm(states, self.weight, self.bias, self.eps, torch.bfloat16)
        return made


class Product(nn.Linear):
    """A linear layer whose gradients are summed in float32 and stay in it: autograd would round them on the way."""

    def forward(self, states: Tensor) -> Tensor:
        """The states times the weight, and the bias."""
        if not torch.is_grad_enabled() or not states.is_cuda or not _rounds(states):
            return super().forward(states)
        made: Tensor = _Product.apply(states, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return made


class Head(nn.Linear):
    """A linear layer that makes logits, as many as the next multiple of `ALIGNED` on a GPU, and leaves the rest out."""

    def forward(self, states: Tensor) -> Tensor:
        """Logits (..., classes), whose rows may lie apart."""
        if not states.is_cuda or not _rounds(states):
            return super().forward(states)
        bias = None if self.bias is None else padded(self.bias)
        made: Tensor = _Product.apply(states, padded(self.weight), bias)  # type: ignore[no-untyped-call]
        return made[..., : self.out_features]


def _rounds(states: Tensor) -> bool:
    """Whether autocast would round products of these states to bf16, on a CPU or a GPU that the kernels are for."""
    device = states.device.type
    if device not in ("cpu", "cuda") or states.dtype == torch.float64 or states.dim() < 2 or not states.numel():
        return False
    if states.is_cuda and not fused.usable():
        return False
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, w = states.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, w)
        ctx.types = states.dtype, weight.dtype
        return F.linear(x, w, None if bias is None else bias.bfloat16())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_made: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        of_states, of_weight = ctx.types
        rows, multiplied = of_made.flatten(0, -2), torch.mm if of_weight == w.dtype else _in_float32
        return (
            (rows @ w).view(x.shape).to(of_states) if ctx.needs_input_grad[0] else None,
            multiplied(rows.mT, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None,
            _summed(rows) if ctx.needs_input_grad[2] else None,
        )


class _Padded(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.size = len(tensor)
        made = tensor.new_empty(-(-ctx.size // ALIGNED) * ALIGNED, *tensor.shape[1:], dtype=torch.bfloat16)
        made[: ctx.size] = tensor
        made[ctx.size :] = 0
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_made: Tensor) -> Tensor:
        return of_made[: ctx.size]


def padded(tensor: Tensor) -> Tensor:
    """A tensor in bf16, with zeros after its rows, as many as make them a multiple of `ALIGNED`; as it is
    where that is none.
    """
    if not len(tensor) % ALIGNED:
        return tensor
    made: Tensor = _Padded.apply(tensor)  # type: ignore[no-untyped-call]
    return made


def _in_float32(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices of bf16 as it is summed; an older torch rounds it to bf16."""
    if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _summed(matrix: Tensor) -> Tensor:
    """The sums of columns in float32."""
    triton = fused.kernels("columns", matrix)
    made: Tensor = matrix.sum(0, dtype=torch.float32) if triton is None else triton.summed(matrix)
    return made
