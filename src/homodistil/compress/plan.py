"""What shape a target means: a keep ratio, a parameter budget or a shape becomes the best shape of the family."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from homodistil.axes.layout import Layout
from homodistil.axes.shape import LAYERS, Shape, describe
from homodistil.compress.targets import clash, from_budget, from_ratio, uneven
from homodistil.compress.written import PUBLISHED, from_shape
from homodistil.errors import UserError, nearest
from homodistil.recipe import UNITS, Target, targets_of

SEQUENCE = 128
"""The tokens in a sequence for which operations are counted, as in the paper; images have as many as they have."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one target comes out as.

    Attributes:
        target: as it was written.
        shape: width of each kind of axis, and the number of layers where it may fall.
        parameters: all of them, tied ones once. Exact.
        flops_per_token: of a forward pass at `sequence` tokens a sequence, in matrix products, two a multiply-add.
        sequence: 128 for text; for images their class tokens and patches.
        memory_bytes: of the weights in float32.
        missed: (parameters - budget) / budget; None if the target was no budget.
    """

    target: str
    shape: dict[str, int]
    parameters: int
    flops_per_token: float
    sequence: int
    memory_bytes: int
    missed: float | None = None

    def as_json(self) -> dict[str, object]:
        """The fields that are printed for programs."""
        return {k: v for k, v in asdict(self).items() if k not in ("missed", "sequence")}


def plan(layout: Layout, teacher: Shape, targets: Target | Iterable[Target]) -> list[Planned]:
    """The shapes of several targets, widest first: the order in which one run passes through them, if it can.

    Args:
        layout: of the teacher.
        teacher: the teacher's shape.
        targets: one or several, as a user writes them: `0.5`, `17.3M`, `17.3M,layers=6`, `hidden=240,heads=12`,
            `homobert-small`; or the numbers 0.5 and 17_300_000.

    Raises:
        UserError: a target cannot be read or reached, or is given twice.
    """
    texts = targets_of(targets)
    if not texts:
        raise UserError(
            "There is no target.",
            "A run needs at least one target: a keep ratio, a parameter budget or a shape.",
            "Add, for example, --target 0.5.",
        )
    planned = [_planned(layout, teacher, text) for text in texts]
    names = [p.target for p in planned]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"The target {', '.join(sorted(twice))} is given twice.",
            "Each target is reached once and saved under its name.",
            "Leave one of them out.",
        )
    return sorted(planned, key=lambda p: -p.parameters)


def refuse_growth(planned: Sequence[Planned]) -> None:
    """Raise the error of targets, widest first, that no single run passes through."""
    for wide, narrow in itertools.pairwise(planned):
        if grown := [w for w in wide.shape if narrow.shape[w] > wide.shape[w]]:
            raise UserError(
                f"Cannot reach {narrow.target} ({describe(narrow.shape)}) after {wide.target} "
                f"({describe(wide.shape)}).",
                f"One run only ever cuts, and {' and '.join(grown)} would have to grow.",
                "Give the later target the same proportions, or reach it in a run of its own.",
            )


def teacher_figures(layout: Layout, teacher: Shape) -> Planned:
    """The same figures for the teacher itself."""
    return _figures(layout, "teacher", teacher)


def _figures(layout: Layout, target: str, shape: Shape, missed: float | None = None) -> Planned:
    # ratios and budgets speak of widths
    shape = {**shape, LAYERS: shape.get(LAYERS, layout.depth)} if layout.depth else shape
    parameters, sequence = layout.count(shape), layout.sequence or SEQUENCE
    return Planned(
        target=target,
        shape=dict(shape),
        parameters=parameters,
        flops_per_token=layout.flops_per_token(shape, sequence),
        sequence=sequence,
        memory_bytes=4 * parameters,
        missed=missed,
    )


def _planned(layout: Layout, teacher: Shape, text: str) -> Planned:
    written = text.strip()
    size, comma, rest = written.partition(",")
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKmMbB]?)", size.strip())
    if match is None and "=" in PUBLISHED.get(written, written):
        shape = from_shape(layout, teacher, written)
        if alike := clash(layout, shape):
            raise UserError(
                f"Cannot make {describe(shape)}.",
                f"{alike} must not be {shape[alike]}, the width of this model's embeddings: transformers would build "
                "a model without the projection between the two.",
                f"Use another width of {alike}.",
            )
        if off := uneven(layout, shape):
            width, divisor = off
            raise UserError(
                f"Cannot make {describe(shape)}.",
                f"With these heads {width} must be a multiple of {divisor}: transformers would not load the model.",
                f"Use {describe({**shape, width: max(1, shape[width] // divisor) * divisor})}, for example.",
            )
        return _figures(layout, written, shape)
    if match is None:
        raise UserError(
            f"Cannot read the target {text!r}.",
            "A target is a keep ratio (0.5), a parameter budget (17.3M, 8600000), either of them with a depth "
            "(17.3M,layers=6), a shape (hidden=240,heads=12,ffn=960) or a published size ("
            + ", ".join(PUBLISHED)
            + ").",
            nearest(written, PUBLISHED) if written[:1].isalpha() else "Write, for example, --target 0.5.",
        )
    within = _at_depth(layout, teacher, rest) if comma else teacher
    number, suffix = float(match[1]), match[2].upper()
    if suffix or (number > 1 and "." not in match[1]):
        budget = round(number * UNITS[suffix])
        shape = from_budget(layout, within, written, budget)
        return _figures(layout, written, shape, layout.count(shape) / budget - 1)
    return _figures(layout, written, from_ratio(layout, within, written, number))


def _at_depth(layout: Layout, teacher: Shape, text: str) -> dict[str, int]:
    """The teacher's shape with as many layers as `layers=6` says, which a ratio or a budget is then taken of.

    Raises:
        UserError: something else is named, or so many layers cannot be.
    """
    if others := [name for piece in text.split(",") if (name := piece.partition("=")[0].strip()) != LAYERS]:
        raise UserError(
            f"Cannot read {others[0]!r} beside a ratio or a budget.",
            f"These decide the widths themselves, and only {LAYERS}=N may be added.",
            "Leave it out, or write out all of the shape.",
        )
    return from_shape(layout, teacher, text)
