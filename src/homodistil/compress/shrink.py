"""Cutting a model in memory to a target, in one step and without training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from homodistil.axes.layout import Layout
from homodistil.axes.shape import LAYERS
from homodistil.compress.compensate import Inputs
from homodistil.compress.cut import cut, select
from homodistil.compress.importance import Scores, magnitude
from homodistil.compress.plan import Planned, plan
from homodistil.errors import UserError
from homodistil.recipe import Target


def shrink(
    model: PreTrainedModel,
    target: Target,
    *,
    scores: Mapping[str, Tensor | ArrayLike] | None = None,
    inputs: Mapping[str, Inputs] | None = None,
    optimizer: Optimizer | None = None,
) -> Planned:
    """Cut a model in memory, in place, to a target in one step.

    Args:
        model: any model of a known family.
        target: a keep ratio, a parameter budget, a shape or a published size, as a text, a number or the widths by
            name; see `plan`.
        scores: by axis (`hidden`, `ffn.3`; those of `homodistil.axes.layout.Layout.of(model).axes`), how much each unit
            matters: (units,), or of an axis that is nested in another (parent units, units); under `layers` of each
            layer, (layers,). What scores highest stays. Axes without are ranked by the sum of their weights'
            magnitudes, and layers without stay evenly spaced.
        inputs: what linear layers read, to compensate with; see `homodistil.compress.compensate.InputMoments`.
        optimizer: its moments follow the parameters.

    Returns:
        The shape and the counts of what the model is now.

    Raises:
        UserError: it is no model of transformers, or one without its weights, its family is unknown, the target cannot
            be read or reached, or scores do not fit the model. It is unchanged then.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"Cannot shrink a {type(model).__name__}.",
            "A model in memory must be a transformers one, a PreTrainedModel.",
            "Open it with AutoModel.from_pretrained(...); of a sentence encoder give the transformer inside it.",
        )
    if away := next((name for name, weight in model.named_parameters() if weight.is_meta), None):
        raise UserError(
            f"Cannot shrink this {type(model).__name__}: {away} is on the meta device.",
            "A model must hold all its weights, none of them offloaded or left out.",
            "Open it with from_pretrained and no device_map.",
        )
    layout = Layout.of(model)
    planned = plan(layout, layout.shape(model), [target])[0]
    by_weights = magnitude(layout, model)
    given = {axis: torch.as_tensor(of_units) for axis, of_units in (scores or {}).items()}
    _refuse_unfit(given, by_weights, layout.depth)
    keep = select(layout, layout.sizes(model), by_weights | given, planned.shape)
    cut(model, layout, keep, optimizer=optimizer, inputs=inputs)
    return planned


def _refuse_unfit(scores: Scores, fit: Scores, depth: int) -> None:
    """Scores of an axis that is none, of another number of units, or that are no numbers."""
    shapes = {**{axis: tuple(s.shape) for axis, s in fit.items()}, LAYERS: (depth,)}
    if unfit := next((axis for axis, s in scores.items() if tuple(s.shape) != shapes.get(axis)), None):
        raise UserError(
            f"Cannot rank units by scores of {unfit} of shape {tuple(scores[unfit].shape)}.",
            f"Scores have a number for each unit: {unfit} has "
            + (f"{shapes[unfit]}." if unfit in shapes else f"none; the axes are {', '.join(shapes)}."),
            "Leave them out to rank by magnitudes, or give them as `Importance.ranking` does.",
        )
    if unfit := next((axis for axis, s in scores.items() if s.isnan().any()), None):
        raise UserError(
            f"Cannot rank units by scores of {unfit}: some of them are nan.",
            "Each score must be a number, of which the highest stay.",
            "Correct them, or leave them out to rank by magnitudes.",
        )
