"""Heads in another basis, in which their dimensions are worth telling apart, before any of them is cut.

The dimensions of a head are arbitrary. With any invertible C, queries C q and keys C⁻ᵀ k have the scores of q and k,
and an output matrix W Cᵀ makes of values C⁻ᵀ v what W makes of v. Both are one problem: the products ⟨x, y⟩ of a left
vector (a query; a row of W) and a right one (a key; what a head sums up for W to read) are to be kept by as few
dimensions as possible. With A Aᵀ = E[x xᵀ], B Bᵀ = E[y yᵀ] and Aᵀ B = U S Vᵀ,

    C = S^½ Uᵀ A⁻¹

makes both moments the diagonal S, largest first, and the first r dimensions give the products that are nearest to the
whole ones in expected square, x and y drawn independently, of all that r dimensions can give (Eckart and Young, 1936).

Attention does not see what all keys of a sequence have in common, and biases take over the mean of what W reads: y is
taken about its mean.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from homodistil.axes.layout import Layout
from homodistil.compress.compensate import read_dim, read_the_target

RIDGE = 1e-3
"""Of the mean second moment, added to each: what never occurred is no reason to divide by zero."""


@dataclass(frozen=True)
class Heads:
    """The dimensions of one layer's heads that may be turned.

    Attributes:
        axis: such as `qk.3`.
        left: the linear layers, by module name, that make queries; or that read the heads' sums.
        right: those that make keys; or values.
        reads: whether `left` reads what `right` makes, as an output matrix does.
    """

    axis: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    reads: bool


def turnable(model: PreTrainedModel, layout: Layout) -> list[Heads]:
    """The heads whose dimensions may be turned: those of separate linear layers that nothing else reads or writes.

    Rotary dimensions are no cuttable axis. Those that queries, keys and values share, as in GPT-2, are left as they
    are, because one basis would have to serve all three.
    """
    family = layout.family
    assert family is not None
    queries = {name for row in family.queries for name in layout.matches(row, model)}
    found = []
    for axis in (a for a in layout.axes if a in layout.parent):
        names = [n for n, dims in layout.dims.items() if n not in layout.tied and any(axis in dim for dim in dims)]
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        plain = all(isinstance(model.get_submodule(layer), nn.Linear | Conv1D) for layer in layers)
        if not plain or any(dim != (layout.parent[axis], axis) for n in names for dim in layout.dims[n] if axis in dim):
            continue
        readers = tuple(layer for layer in layers if axis in read_dim(layout, layer))
        left = readers or tuple(layer for layer in layers if f"{layer}.weight" in queries)
        right = tuple(layer for layer in layers if layer not in left)
        if left and right:
            found.append(Heads(axis, left, right, bool(readers)))
    return found


class Sums(NamedTuple):
    """Over tokens, of what was said in each head: (heads, head_dim, head_dim), (heads, head_dim), and their number."""

    products: Tensor
    values: Tensor
    tokens: Tensor


class HeadMoments:
    """First and second moments of what is said within each head, summed over the tokens that were seen.

    Args:
        model: the model to listen to.
        layout: its axes.
        heads: whose queries, keys and sums are observed.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, heads: list[Heads]) -> None:
        self.model, self.heads = model, heads
        self.sizes, self.parent = layout.sizes(model), layout.parent
        self._of_target = read_the_target(layout, model)
        self._sums: dict[str, Sums] = {}

    @contextlib.contextmanager
    def listening(self, mask: Tensor, target: Tensor | None = None) -> Iterator[None]:
        """Observe the forward passes inside the block.

        Args:
            mask: (batch, sequence), 1 for the tokens that count.
            target: the same of what the decoder of an encoder-decoder reads.
        """

        def observe(name: str, axis: str, _: nn.Module, read: tuple[Tensor, ...], made: Tensor | None = None) -> None:
            # a hook that runs before its layer is given no output
            said = read[0] if made is None else made
            counts = target if target is not None and name in self._of_target else mask
            # DeBERTa's layers also project distances, which are no tokens
            if said.shape[:-1] != counts.shape:
                return
            size = self.sizes[self.parent[axis]], self.sizes[axis]
            rows = said.detach().float().reshape(-1, *size)[counts.reshape(-1) > 0].transpose(0, 1)
            with torch.autocast(said.device.type, enabled=False):
                new = Sums(rows.transpose(1, 2) @ rows, rows.sum(1), rows.new_tensor(rows.shape[1]))
            old = self._sums.get(name)
            self._sums[name] = Sums(*(a + b for a, b in zip(old, new, strict=True))) if old else new

        handles: list[RemovableHandle] = []
        for heads in self.heads:
            for name in heads.left if heads.reads else (*heads.left, *heads.right):
                module, hook = self.model.get_submodule(name), functools.partial(observe, name, heads.axis)
                listen = module.register_forward_pre_hook if heads.reads else module.register_forward_hook
                handles.append(listen(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def second(self, names: tuple[str, ...], *, centred: bool) -> Tensor | None:
        """Second moments, or covariances, of what each head said, (heads, head_dim, head_dim); None if nothing was."""
        heard = [self._sums[name] for name in names if name in self._sums]
        if not any(bool(sums.tokens) for sums in heard):
            return None
        # in float64 on the CPU, which every machine has
        products, values, tokens = (torch.stack(kind).cpu().double().sum(0) for kind in zip(*heard, strict=True))
        moment, mean = products / tokens, values / tokens
        return moment - mean[:, :, None] * mean[:, None, :] if centred else moment


@torch.no_grad()
def turn(model: PreTrainedModel, layout: Layout, moments: HeadMoments) -> None:
    """Turn heads into their principal basis, in place: what the model says stays as it is, up to rounding.

    Args:
        model: the model that was listened to.
        layout: its axes.
        moments: of what its heads say; those that were not heard stay as they are.
    """
    for heads in moments.heads:
        left: Tensor | None
        if heads.reads:
            left = torch.stack([_gram(model, layout, name, heads.axis) for name in heads.left]).sum(0)
            right = moments.second(heads.left, centred=True)
        else:
            left = moments.second(heads.left, centred=False)
            right = moments.second(heads.right, centred=True)
        if left is None or right is None:
            continue
        there, back = principal(left, right)
        for name in heads.left:
            _apply(model, layout, name, heads.axis, there)
        for name in heads.right:
            _apply(model, layout, name, heads.axis, back)


def principal(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """C and C⁻ᵀ, each (heads, head_dim, head_dim), for the second moments of both sides of a product."""
    a, b = (torch.linalg.cholesky(_with_ridge(moment)) for moment in (left, right))
    u, s, _ = torch.linalg.svd(a.transpose(1, 2) @ b)
    root, u_t = s.sqrt()[:, :, None], u.transpose(1, 2)
    # Uᵀ A⁻¹ = (A⁻ᵀ U)ᵀ
    turned = torch.linalg.solve_triangular(a.transpose(1, 2), u, upper=True).transpose(1, 2)
    return root * turned, (u_t @ a.transpose(1, 2)) / root


def _with_ridge(moment: Tensor) -> Tensor:
    size = moment.shape[-1]
    level = moment.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return moment + RIDGE * level[:, None, None] * torch.eye(size, dtype=moment.dtype)


def _along(layout: Layout, parameter: str, axis: str) -> int:
    return next(i for i, dim in enumerate(layout.dims[parameter]) if axis in dim)


def _gram(model: PreTrainedModel, layout: Layout, name: str, axis: str) -> Tensor:
    """Wᵀ W of each head, (heads, head_dim, head_dim)."""
    weight = model.get_parameter(f"{name}.weight").cpu().double()
    rows = weight.movedim(_along(layout, f"{name}.weight", axis), 0)
    heads = layout.sizes(model)[layout.parent[axis]]
    rows = rows.reshape(heads, len(rows) // heads, -1)
    return torch.bmm(rows, rows.transpose(1, 2))


def _apply(model: PreTrainedModel, layout: Layout, name: str, axis: str, matrix: Tensor) -> None:
    """Multiply the dimensions of each head, in a layer's weight and, where it has that axis, its bias."""
    for parameter in (f"{name}.weight", f"{name}.bias"):
        if not any(axis in dim for dim in layout.dims.get(parameter, ())):
            continue
        held = model.get_parameter(parameter)
        first = held.movedim(_along(layout, parameter, axis), 0)
        rows = first.cpu().double().reshape(*matrix.shape[:2], -1)
        first.copy_((matrix @ rows).reshape(first.shape).to(held.dtype))
