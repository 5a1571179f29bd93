"""What is left behind by cut units: the layers that read them take over what the units that stay can tell of them.

A linear layer says W x + b. Without the units C of x it says W_K x_K + W_C x_C + b, of which x_C is gone; its best
linear guess from what stays is E[x_C] + A (x_K - E[x_K]) with A = Σ_CK Σ_KK⁻¹. So W_K += W_C A and
b += W_C (E[x_C] - A E[x_K]), which is the least-squares solution over the tokens that were seen. With A = 0 it is the
mean alone. A layer without a bias has no place for a mean: there Σ are the second moments, E[x xᵀ], and b is nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from homodistil.axes.layout import Layout
from homodistil.axes.notation import Dim
from homodistil.compress.depth import moved_up
from homodistil.compress.gram import gram

RIDGE = 0.01
"""Of the mean variance, added to each: units that say the same must not be told apart by rounding."""
FADING = 0.9
"""What earlier observations keep of their weight at a later one: a student that is cut reads something else."""


class Inputs(NamedTuple):
    """What a linear layer reads: the mean (in_features,), and the covariance (in_features, in_features) if known."""

    mean: Tensor
    covariance: Tensor | None


class InputMoments:
    """Running moments of what each linear layer reads that can be compensated.

    Covariances are kept for layers that read units of layers, such as ffn and value units. The residual stream is
    normalised over the units that are left, so that a cut changes what its readers see; measured, covariances did harm
    there.

    Args:
        model: the model to listen to.
        layout: its axes.
        covariance: whether covariances are kept; they are as large as the square of the inputs' width.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, *, covariance: bool = True) -> None:
        self.model, self.layout, self.covariance = model, layout, covariance
        self.counts: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.products: dict[str, Tensor] = {}

    @property
    def inputs(self) -> dict[str, Inputs]:
        """For each layer that has read any token that counts, by module name, what it reads."""
        found = {}
        for name, total in self.sums.items():
            if not self.counts[name]:
                continue
            mean = total / self.counts[name]
            second = self.products.get(name)
            covariance = None if second is None else second / self.counts[name] - torch.outer(mean, mean)
            found[name] = Inputs(mean, covariance)
        return found

    def fade(self, kept: float = FADING) -> None:
        """Let what has been seen weigh `kept` times as much beside what will be; with 0 it is forgotten."""
        for store in self._stores.values():
            store |= {name: kept * value for name, value in store.items()}

    @contextlib.contextmanager
    def listening(self, mask: Tensor, target: Tensor | None = None) -> Iterator[None]:
        """Add up what is read in the forward pass inside the block.

        Args:
            mask: (batch, sequence), 1 for the tokens that count. Leave special tokens out as well as padding: some
                units speak at them alone, so loudly that the mean is wrong everywhere else.
            target: the same of what the decoder of an encoder-decoder reads.
        """
        seen: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

        def observe(name: str, x: Tensor) -> None:
            counts = target if target is not None and name in of_target else mask
            if name in by_distance:
                # after the tokens it reads embeddings of distances, which may be as many
                if name in heard or x.shape[:-1] != counts.shape:
                    return
                heard.add(name)
            # queries, keys and values read one tensor; `seen` holds it, so that its id stays its own
            if id(x) not in seen:
                rows = x.detach().reshape(-1, x.shape[-1])
                if len(rows) == counts.numel():
                    # some models pass all tokens of a batch on as one row of them
                    rows = rows[counts.reshape(-1) > 0]
                # float32, because a product of bf16 vectors may be summed in bf16, which loses small terms
                seen[id(x)] = (x, rows, rows.float().sum(0), rows.new_tensor(len(rows), dtype=torch.float32))
            _, rows, total, count = seen[id(x)]
            if self.covariance and self._has_input_alone(name):
                self.products[name] = gram(rows) + self.products.get(name, 0)
            # a new tensor in any case: what layers read together they do not hold together
            self.sums[name] = total + self.sums.get(name, 0)
            self.counts[name] = count + self.counts.get(name, 0)

        of_target = read_the_target(self.layout)
        by_distance, heard = of_distances(self.layout), set[str]()
        handles: list[RemovableHandle] = []
        for name, module in self._readers():
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: observe(name, inputs[0])))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def keep(self, indices: Mapping[str, Tensor]) -> None:
        """Forget what a cut took: for each layer that lost inputs, the positions that stay."""
        for name, index in indices.items():
            if name in self.sums:
                index = index.to(self.sums[name].device)
                self.sums[name] = self.sums[name][index]
            if name in self.products:
                self.products[name] = self.products[name][index][:, index]

    def drop(self, layers: Tensor) -> None:
        """Forget the layers that leave, and know the others by their new numbers; `layers` are those that stay."""
        for store in self._stores.values():
            left = moved_up(self.layout, store, layers)
            store.clear()
            store |= left
        self.layout = self.layout.shallower(len(layers))

    def state(self) -> dict[str, Tensor]:
        """Everything that is remembered, as named tensors."""
        return {f"{kind}/{name}": v for kind, store in self._stores.items() for name, v in store.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for kind, store in self._stores.items():
            store.clear()
            store |= {k.partition("/")[2]: v for k, v in state.items() if k.startswith(f"{kind}/")}

    @property
    def _stores(self) -> dict[str, dict[str, Tensor]]:
        return {"sum": self.sums, "count": self.counts, "product": self.products}

    def _has_input_alone(self, name: str) -> bool:
        cuttable = [p for p in read_dim(self.layout, name) if isinstance(p, str) and p not in self.layout.fixed]
        return any(self.layout.width_of(p) != "hidden" for p in cuttable)

    def _readers(self) -> Iterator[tuple[str, nn.Module]]:
        for name, module in self.model.named_modules():
            if not isinstance(module, nn.Linear | Conv1D) or f"{name}.weight" not in self.layout.dims:
                continue
            if module.bias is not None or (self.covariance and self._has_input_alone(name)):
                yield name, module


def read_the_target(layout: Layout) -> set[str]:
    """The modules of an encoder-decoder whose rows are the target's tokens; none of other models."""
    family = layout.family
    if not family.decoder:
        return set()
    decoder = next(layout.matches(family.decoder))
    inside = {name for name in layout.modules if name.startswith(f"{decoder}.")}
    return inside - {name for row in family.crossing for name in layout.matches(row)}


def of_distances(layout: Layout) -> set[str]:
    """The modules that read embeddings of distances after the tokens; none of most models."""
    return {name.rpartition(".")[0] for row in layout.family.distances for name in layout.matches(row)}


def read_dim(layout: Layout, name: str) -> Dim:
    """The dimension that a layer reads, by module name: of a matrix its second, or its first in a transposed one."""
    first, second = layout.dims[f"{name}.weight"]
    # a bias has the dimension that is written, which tells the two layouts of a matrix apart
    return first if layout.dims.get(f"{name}.bias") == (second,) and first != second else second


def compensate(layer: nn.Linear | Conv1D, inputs: Inputs, index: Tensor) -> None:
    """Let a layer guess what it will not read any more, before its weight is sliced.

    Args:
        layer: its weight still reads everything.
        inputs: what it read.
        index: the positions of its input that stay.
    """
    device, dtype = layer.weight.device, torch.float32
    # a view (out_features, in_features), through which the weight itself is changed
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    mean, stay = inputs.mean.to(device, dtype), index.to(device)
    gone = torch.ones(len(mean), dtype=torch.bool, device=device)
    gone[stay] = False
    lost = weight[:, gone].to(dtype)  # (out_features, gone)
    guess = mean[gone]
    if inputs.covariance is not None:
        covariance = inputs.covariance.to(device, dtype)
        if layer.bias is None:
            covariance = covariance + torch.outer(mean, mean)
        among = covariance[stay][:, stay]
        # above zero also where nothing varies at all
        ridge = RIDGE * among.diagonal().mean() + torch.finfo(dtype).tiny
        told = _solved(among, covariance[stay][:, gone], ridge)  # (stay, gone)
        if bool(told.isfinite().all()):
            weight[:, stay] += (lost @ told.T).to(weight.dtype)
            guess = guess - mean[stay] @ told
    if layer.bias is not None:
        layer.bias.add_((lost @ guess).to(layer.bias.dtype))


def _solved(covariance: Tensor, right: Tensor, ridge: Tensor) -> Tensor:
    """(Σ + ridge)⁻¹ times the right side, where Σ may be a covariance only up to rounding."""
    ridged = covariance + ridge * torch.eye(len(covariance), device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    if not bool(failed) or not bool(ridged.isfinite().all()):
        return torch.cholesky_solve(right, factor)
    # directions below zero are rounding, and there is nothing in them but the ridge
    values, vectors = torch.linalg.eigh(covariance)
    solved: Tensor = vectors @ ((vectors.T @ right) / (values.clamp(min=0) + ridge)[:, None])
    return solved
