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
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from homodistil.axes.layout import Layout
from homodistil.compress.compensate import of_distances, read_dim, read_the_target

RIDGE = 1e-3
"""Of the mean second moment, added to each: what never occurred is no reason to divide by zero."""


class Part(NamedTuple):
    """What a linear layer makes or reads: all of it, or one of several of the same size (GPT-2's keys are number 1)."""

    layer: str
    number: int = 0


@dataclass(frozen=True)
class Heads:
    """The dimensions of one layer's heads that may be turned.

    Attributes:
        axis: such as `qk.3`.
        left: what makes queries; or what reads the heads' sums.
        right: what makes keys; or values.
        reads: whether `left` reads what `right` makes, as an output matrix does.
    """

    axis: str
    left: tuple[Part, ...]
    right: tuple[Part, ...]
    reads: bool


def turnable(model: PreTrainedModel, layout: Layout) -> list[Heads]:
    """The heads whose dimensions may be turned: those of linear layers that nothing else reads or writes.

    Rotary dimensions are no cuttable axis.
    """
    family = layout.family
    queries = {name for row in family.queries for name in layout.matches(row)}
    found = []
    for axis in (a for a in layout.axes if a in layout.parent):
        names = [n for n, dims in layout.dims.items() if n not in layout.tied and any(axis in dim for dim in dims)]
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        if not all(isinstance(model.get_submodule(layer), nn.Linear | Conv1D) for layer in layers):
            continue
        readers = tuple(Part(layer) for layer in layers if axis in read_dim(layout, layer))
        makers = [layer for layer in layers if Part(layer) not in readers]
        asking = tuple(Part(layer) for layer in makers if f"{layer}.weight" in queries)
        dims = {dim for layer in makers for dim in layout.dims[f"{layer}.weight"] if axis in dim}
        apart, fused = (layout.parent[axis], axis), (3, layout.parent[axis], axis)
        if dims == {apart} and readers:
            found.append(Heads(axis, readers, tuple(map(Part, makers)), True))
        elif dims == {apart}:
            found.append(Heads(axis, asking, tuple(Part(n) for n in makers if Part(n) not in asking), False))
        elif dims == {fused} and len(makers) == 1 and asking:
            # queries, keys and values; all are turned so that their first dimensions matter most, and leave together
            found.append(Heads(axis, asking, (Part(makers[0], 1),), False))
            found.append(Heads(axis, readers, (Part(makers[0], 2),), True))
    return [heads for heads in found if heads.left and heads.right]


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
        self._of_target, self._of_distances = read_the_target(layout), of_distances(layout)
        self._sums: dict[Part, Sums] = {}

    @contextlib.contextmanager
    def listening(self, mask: Tensor, target: Tensor | None = None) -> Iterator[None]:
        """Observe the forward pass inside the block.

        Args:
            mask: (batch, sequence), 1 for the tokens that count.
            target: the same of what the decoder of an encoder-decoder reads.
        """

        def observe(part: Part, axis: str, _: nn.Module, read: tuple[Tensor, ...], made: Tensor | None = None) -> None:
            # a hook that runs before its layer is given no output
            said = read[0] if made is None else made
            counts = target if target is not None and part.layer in self._of_target else mask
            # DeBERTa's layers also project distances, after the tokens, and those may be as many
            if said.shape[:-1] != counts.shape or (part.layer in self._of_distances and part in heard):
                return
            heard.add(part)
            heads, head_dim = self.sizes[self.parent[axis]], self.sizes[axis]
            said = said.detach().reshape(-1, said.shape[-1])[counts.reshape(-1) > 0]
            said = said.narrow(1, part.number * heads * head_dim, heads * head_dim)
            rows = said.float().reshape(-1, heads, head_dim).transpose(0, 1)
            with torch.autocast(said.device.type, enabled=False):
                new = Sums(rows.transpose(1, 2) @ rows, rows.sum(1), rows.new_tensor(rows.shape[1]))
            old = self._sums.get(part)
            self._sums[part] = Sums(*(a + b for a, b in zip(old, new, strict=True))) if old else new

        heard: set[Part] = set()
        handles: list[RemovableHandle] = []
        for heads in self.heads:
            for part in heads.left if heads.reads else (*heads.left, *heads.right):
                module, hook = self.model.get_submodule(part.layer), functools.partial(observe, part, heads.axis)
                listen = module.register_forward_pre_hook if heads.reads else module.register_forward_hook
                handles.append(listen(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def second(self, parts: tuple[Part, ...], *, centred: bool) -> Tensor | None:
        """Second moments, or covariances, of what each head said, (heads, head_dim, head_dim); None if nothing was."""
        heard = [self._sums[part] for part in parts if part in self._sums]
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
        moments: of what its heads say; those that were not heard, or said the same all along, stay as they are.
    """
    for heads in moments.heads:
        left: Tensor | None
        if heads.reads:
            weights = [_rows(model, layout, part, "weight", heads.axis)[0] for part in heads.left]
            left = torch.stack([w @ w.transpose(1, 2) for w in weights]).sum(0)
            biased = all(getattr(model.get_submodule(part.layer), "bias", None) is not None for part in heads.left)
            right = moments.second(heads.left, centred=biased)
        else:
            left = moments.second(heads.left, centred=False)
            right = moments.second(heads.right, centred=True)
        if left is None or right is None:
            continue
        try:
            there, back = principal(left, right)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            # of what hardly varies about its mean rounding may be all that is left, and that has no directions
            continue
        for matrix, parts in ((there, heads.left), (back, heads.right)):
            for part, name in itertools.product(parts, ("weight", "bias")):
                if any(heads.axis in dim for dim in layout.dims.get(f"{part.layer}.{name}", ())):
                    rows, held = _rows(model, layout, part, name, heads.axis)
                    held.copy_((matrix @ rows).reshape(held.shape).to(held.dtype))


def principal(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """C and C⁻ᵀ, each (heads, head_dim, head_dim), for the second moments of both sides of a product.

    Raises:
        LinAlgError: a moment is none: it has a direction with less than nothing in it.
    """
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


def _rows(model: PreTrainedModel, layout: Layout, part: Part, name: str, axis: str) -> tuple[Tensor, Tensor]:
    """A parameter of a layer as (heads, head_dim, the rest) in float64, and the view (heads x head_dim, ...) of it."""
    dims = layout.dims[f"{part.layer}.{name}"]
    along = next(i for i, dim in enumerate(dims) if axis in dim)
    held = model.get_parameter(f"{part.layer}.{name}").movedim(along, 0)
    parts = next((p for p in dims[along] if isinstance(p, int)), 1)
    held = held.chunk(parts)[part.number]
    heads = layout.sizes(model)[layout.parent[axis]]
    return held.cpu().double().reshape(heads, len(held) // heads, -1), held
