"""All that a step changes, and how it loses units and layers in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from homodistil.axes.layout import Layout
from homodistil.axes.shape import LAYERS
from homodistil.compress.compensate import InputMoments
from homodistil.compress.cut import Keep, cut, kept_inputs, narrowed
from homodistil.compress.depth import moved_up
from homodistil.compress.importance import Importance
from homodistil.distill.optimizer import Muon
from homodistil.losses.projections import Projections


@dataclass
class State:
    """All that a step changes.

    Attributes:
        layout: the axes of the layers that are left.
        student: as wide and as deep as it is now.
        projections: as narrow as the student.
        optimizer: over both.
        importance: the smoothed scores.
        moments: running moments of what layers read.
        origin: for each axis, which of the teacher's units are left, (units,) or (parent units, units); under
            `layers` which of its layers. An axis is named by the layer's number now.
        step: finished optimizer steps.
        tokens: tokens learnt from, without padding.
        sums: loss terms summed since the last line of metrics, and over how many batches.
        batches: the batches in `sums`.
        seen: tells what has been learnt from apart (see `collate.seen_after`).
    """

    layout: Layout
    student: PreTrainedModel
    projections: Projections
    optimizer: Muon
    importance: Importance
    moments: InputMoments
    origin: dict[str, Tensor]
    step: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    seen: str = ""

    @property
    def learnt(self) -> list[Tensor]:
        """What the optimizer moves: the student's parameters and the projections."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def shrink(self, keep: Keep, *, compensate: bool) -> None:
        """Take units, and layers, out of everything that has them."""
        sizes = self.layout.sizes(self.student)
        inputs = self.moments.inputs if compensate else None
        cut(self.student, self.layout, keep, optimizer=self.optimizer, inputs=inputs)
        self.projections.shrink(keep, self.optimizer)
        self.importance.apply(lambda scores: self._narrowed(scores, keep))
        self.moments.keep(kept_inputs(self.layout, keep, sizes, self.moments.sums))
        self.origin = self._narrowed(self.origin, keep)
        if LAYERS in keep:
            self.importance.apply(lambda scores: moved_up(self.layout, scores, keep[LAYERS]))
            self.moments.drop(keep[LAYERS])
            self.origin = moved_up(self.layout, self.origin, keep[LAYERS])
            self.layout = self.layout.shallower(len(keep[LAYERS]))

    def _narrowed(self, vectors: Mapping[str, Tensor], keep: Keep) -> dict[str, Tensor]:
        return {axis: narrowed(self.layout, axis, vector, keep) for axis, vector in vectors.items()}


def every_unit(layout: Layout, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The origin of an uncut student: all of the teacher's units and layers."""
    layers = {LAYERS: torch.arange(sizes[LAYERS])} if LAYERS in sizes else {}
    return layers | {
        axis: torch.arange(sizes[axis])
        .expand(*([sizes[layout.parent[axis]]] if axis in layout.parent else []), -1)
        .clone()
        for axis in layout.axes
    }
