"""Muon: matrices move by their momentum with its singular values made alike, everything else moves by AdamW.

The gradient of a matrix is dominated by a few directions; made orthogonal, its momentum moves the others as far. Of
Jordan et al. (2024, *Muon: an optimizer for hidden layers in neural networks*), with the size of updates of Liu et al.
(2025, *Muon is scalable for LLM training*, equation 4). One moment a matrix, where AdamW has two.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from homodistil import fused
from homodistil.axes.layout import Layout
from homodistil.compress.schedule import Stage
from homodistil.settings import Optim

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of Jordan et al.'s iteration: X becomes aX + b(XXᵀ)X + c(XXᵀ)²X."""
ITERATIONS = 3
"""Theirs are 5; students learn as well from 3 (`docs/log.md`), for three fifths of the products."""
LEAST = 1e-18
"""The norm of a block that is evened: a smaller one moves by less."""
NARROW, BLOCK = 128, 64
"""Rows that are evened together at most: `NARROW` of matrices no wider than that, `BLOCK` of all others. What an
element costs grows with them, and where a step reads few tokens it would be more than what those cost."""
TOGETHER, TOGETHER_AWAY = 1 << 22, 1 << 26
"""Elements of matrices that are moved in one go, unless one has more, on a CPU and on an accelerator: what the
iteration holds is some times that."""


class Muon(torch.optim.AdamW):
    """AdamW, but for groups of matrices that have a `momentum`.

    Such a group has `lr`, `weight_decay`, `momentum` and `scale`: the root mean square of the elements of an update, in
    learning rates, if all singular values became 1. AdamW's lies between 0.2 and 0.4 (Liu et al. 2025).

    Args:
        groups: as `torch.optim.AdamW` takes them.
        dtype: in which products of the iteration are computed.
        betas: AdamW's.
        eps: AdamW's.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        dtype: torch.dtype,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
    ) -> None:
        self.dtype = dtype
        super().__init__(groups, betas=betas, eps=eps, fused=True)

    @torch.no_grad()
    def step(self, clip: float = math.inf) -> Tensor:  # type: ignore[override]
        """Move every parameter that has a gradient. Gradients may be other ones after it.

        Args:
            clip: to which norm the gradients are shortened, all of them together, before anything moves.

        Returns:
            The norm that they had.
        """
        learnt = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(_gradients(learnt))
        share = (clip / (norm + 1e-6)).clamp(max=1.0) if clip < math.inf else torch.ones_like(norm)
        of_matrices = [(group, alike) for group in self.param_groups if "momentum" in group for alike in _alike(group)]
        by_kernel = [self._kernel(alike) for _, alike in of_matrices]
        # a kernel shortens what it reads
        read = {p for kernel, (_, alike) in zip(by_kernel, of_matrices, strict=True) if kernel for p in alike}
        rest = _gradients([p for p in learnt if p not in read])
        if rest and clip < math.inf:
            torch._foreach_mul_(rest, share)
        # AdamW passes over what has no gradient
        moved = [(p, p.grad) for _, alike in of_matrices for p in alike]
        for matrix, _ in moved:
            matrix.grad = None
        super().step()
        for matrix, gradient in moved:
            matrix.grad = gradient
        for kernel, (group, alike) in zip(by_kernel, of_matrices, strict=True):
            self._move(alike, group, share, kernel)
        return norm

    def _kernel(self, matrices: list[Tensor]) -> Any:
        """What moves matrices of one shape in one go, if there is such a thing."""
        if self.dtype != torch.bfloat16 or (kernel := fused.kernels("muon", *matrices)) is None:
            return None
        return kernel if kernel.fits(_block(matrices[0]), [*matrices, *_gradients(matrices)]) else None

    def _move(self, matrices: list[Tensor], group: dict[str, Any], share: Tensor, kernel: Any) -> None:
        for matrix in matrices:
            # named as AdamW's first moment is, so that it is cut and saved alike
            if not (state := self.state[matrix]):
                state["exp_avg"] = torch.zeros_like(matrix)
        gradients = _gradients(matrices)
        averages = [self.state[matrix]["exp_avg"] for matrix in matrices]
        keeps, far = 1 - group["lr"] * group["weight_decay"], group["lr"] * group["scale"]
        if kernel is not None:
            size = _block(matrices[0])
            kernel.move(
                matrices, gradients, averages, share, size=size, momentum=group["momentum"], keeps=keeps,
                far=far * math.sqrt(max(size, min(matrices[0].shape))),
                coefficients=COEFFICIENTS, iterations=ITERATIONS, least=LEAST, dtype=self.dtype,
            )  # fmt: skip
            return
        # one call for all of them, because an accelerator waits for calls
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        # in the order of the matrices, or they would be added one by one
        directions = evened(torch.stack(ahead).to(self.dtype)).to(matrices[0].dtype).contiguous()
        torch._foreach_mul_(matrices, keeps)
        torch._foreach_add_(matrices, directions.unbind(), alpha=-far)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _alike(group: dict[str, Any]) -> list[list[Tensor]]:
    """Matrices of one shape that have gradients, as many as `TOGETHER` allows: small ones are many, each call costs."""
    matrices = [p for p in group["params"] if p.grad is not None]
    most = TOGETHER if matrices and matrices[0].device.type == "cpu" else TOGETHER_AWAY
    lists: list[list[Tensor]] = []
    open_lists: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        held = open_lists.get(matrix.shape)
        if held is None or (len(held) + 1) * matrix.numel() > most:
            held = open_lists[matrix.shape] = []
            lists.append(held)
        held.append(matrix)
    return lists


def evened(matrices: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """Each matrix with singular values that are nearly alike, in blocks of its longer dimension (see `BLOCK`).

    They are scaled so that elements have a root mean square of 1 where all singular values of a block became the same.
    Zeros stay zeros.
    """
    wide = matrices.shape[1] < matrices.shape[2]
    x = matrices.mT if wide else matrices
    length, width = x.shape[1:]
    size = block_size(length, width)
    blocks = math.ceil(length / size)
    # where there is nothing to pad with, it would copy
    padded = F.pad(x, (0, 0, 0, blocks * size - length)) if blocks * size > length else x
    made = orthogonalised(padded.reshape(-1, size, width)).mul_(math.sqrt(max(size, width)))
    x = made.reshape(padded.shape)[:, :length]
    return x.mT if wide else x


def block_size(length: int, width: int) -> int:
    """Of the lines of a matrix along its longer dimension, how many are evened together."""
    return math.ceil(length / math.ceil(length / (NARROW if width <= NARROW else BLOCK)))


def _block(matrix: Tensor) -> int:
    return block_size(max(matrix.shape), min(matrix.shape))


def orthogonalised(matrices: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """Each matrix with its singular values brought near to 1, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    # below it squares are no numbers of float32 any more, and a norm would be zero where its matrix is not
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def between_widths(layout: Layout, name: str) -> bool:
    """Whether a parameter is a matrix from units to units, and no table of tokens, positions or classes."""
    dims = layout.dims[name]
    return len(dims) == 2 and all(any(part in layout.axes for part in dim) for dim in dims)


def rate(optim: Optim, stage: Stage, step: int, *, narrower: float = 1.0) -> float:
    """The learning rate at a step: in each stage linear up, then linear down, so that each target's student settles.

    The k-th stage has a k-th of the height: it starts from a student that has settled, of which the whole height would
    leave nothing but its shape.

    Args:
        optim: how the student learns; its learning rate is known.
        stage: that the step belongs to.
        step: of the run, from 1.
        narrower: the teacher's hidden width over the student's.
    """
    assert optim.learning_rate is not None
    at, steps = step - stage.begin, stage.end - stage.begin
    rise = math.ceil(optim.warmup * steps)
    share = at / rise if at <= rise else optim.floor + (1 - optim.floor) * (steps - at + 1) / (steps - rise + 1)
    return float(optim.learning_rate * share / stage.number * narrower**optim.width_power)
