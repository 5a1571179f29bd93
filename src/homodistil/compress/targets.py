"""From a number to a shape of the family, in the teacher's proportions: by keep ratio or parameter budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from homodistil.axes.layout import Layout
from homodistil.axes.shape import LAYERS, Shape, describe, product
from homodistil.errors import UserError

GRAIN = 8
"""ffn is a multiple of it: matrix products of other widths are slower on every machine that was tried."""
CLOSE = 0.02
"""A budget counts as met within it."""
MISS = 30.0
"""What a budget that is missed weighs beside a misshapen ffn: 5 % off is as bad as one that is 2.5 times too wide."""
PROPORTION = 4 / 3
"""How far ffn : hidden may leave the teacher's for the sake of a rounder head_dim."""


def clash(layout: Layout, shape: Shape) -> str | None:
    """A width that is as wide as the fixed axis which it must differ from, if there is one."""
    return next((w for w, axis in layout.family.unequal.items() if shape[w] == layout.fixed[axis]), None)


def uneven(layout: Layout, shape: Shape) -> tuple[str, int] | None:
    """A width that is no multiple of what must divide it, and that divisor, if there is one."""
    known = {**layout.fixed, **shape}
    divisors = {w: int(product(p, known)) for w, p in layout.family.divided.items()}
    return next(((w, divisor) for w, divisor in divisors.items() if shape[w] % divisor), None)


def leading(layout: Layout, teacher: Shape) -> str:
    """The width that the others but ffn follow: head_dim where it may be cut, or else heads or hidden."""
    if "head_dim" in teacher:
        return "head_dim"
    return "heads" if layout.family.bound else "hidden"


def in_proportion(layout: Layout, teacher: Shape, heads: int, size: int, ffn: int) -> dict[str, int]:
    """The leading width at `size` in the teacher's depth; `heads` are those of families whose head_dim leads."""
    lead = leading(layout, teacher)
    depth = {LAYERS: teacher[LAYERS]} if LAYERS in teacher else {}
    if lead == "heads":
        return {"hidden": size * (teacher["hidden"] // teacher["heads"]), "heads": size, "ffn": ffn, **depth}
    if lead == "hidden":
        kv_heads = max(1, round(size / teacher["hidden"] * teacher["kv_heads"]))
        return {"hidden": size, "kv_heads": kv_heads, "ffn": ffn, **depth}
    # where heads are not as wide as the stream together, it keeps its proportion to them
    hidden = teacher["hidden"] * heads * size / (teacher["heads"] * teacher["head_dim"])
    return {"hidden": max(1, round(hidden)), "heads": heads, "head_dim": size, "ffn": ffn, **depth}


def grained(width: float, most: int) -> int:
    """The nearest multiple of the grain, at least one of it and at most the teacher's width."""
    return min(most, max(GRAIN, round(width / GRAIN) * GRAIN))


def from_ratio(layout: Layout, teacher: Shape, text: str, ratio: float) -> dict[str, int]:
    """The shape that keeps a share of the leading width and of ffn.

    Raises:
        UserError: the share is not above 0 and at most 1, or leaves nothing.
    """
    lead = leading(layout, teacher)
    if not 0 < ratio <= 1 or ratio * teacher[lead] < 0.5:
        raise UserError(
            f"Cannot keep {text} of the teacher's width ({describe(teacher)}).",
            f"A keep ratio lies above 0 and at most at 1, and leaves {lead} at least 1.",
            f"Use a ratio from {math.ceil(100 / teacher[lead]) / 100:g} to 1.",
        )
    if ratio == 1:
        return dict(teacher)
    ffn = grained(ratio * teacher["ffn"], teacher["ffn"])
    if lead == "heads":
        return in_proportion(layout, teacher, teacher["heads"], max(1, round(ratio * teacher["heads"])), ffn)
    if lead == "hidden":
        hidden = grained(ratio * teacher["hidden"], teacher["hidden"])
        # the nearest to it that its heads divide
        nearby = sorted((*range(GRAIN, teacher["hidden"], GRAIN), teacher["hidden"]), key=lambda w: abs(w - hidden))
        shapes = [in_proportion(layout, teacher, 0, width, ffn) for width in nearby]
        return next((shape for shape in shapes if not uneven(layout, shape)), shapes[0])
    wanted = ratio * teacher["head_dim"]
    # a rounder head_dim is worth a tenth of the width, because odd ones waste vector lanes
    head_dim = next(
        near
        for step, slack in ((4, 0.1), (2, 0.1), (1, math.inf))
        if (near := max(step, round(wanted / step) * step)) and abs(near / wanted - 1) <= slack
    )
    head_dim = min(head_dim, teacher["head_dim"])
    while clash(layout, in_proportion(layout, teacher, teacher["heads"], head_dim, ffn)):
        head_dim += 1
    return in_proportion(layout, teacher, teacher["heads"], head_dim, ffn)


def from_budget(layout: Layout, teacher: Shape, text: str, budget: int) -> dict[str, int]:
    """The shape nearest to a number of parameters, in the teacher's proportions and depth as far as they allow.

    Raises:
        UserError: no shape has so few or so many.
    """
    whole, smallest = layout.count(teacher), in_proportion(layout, teacher, teacher.get("heads", 0), 1, 1)
    if not layout.count(smallest) <= budget <= whole * (1 + CLOSE):
        layers = teacher.get(LAYERS, layout.depth)
        widest = "the teacher itself" if layers == layout.depth else describe(teacher)
        near = (widest, whole) if budget > whole else (describe(smallest), layout.count(smallest))
        raise UserError(
            f"Cannot make a student of {budget:,} parameters ({text}) from a teacher of {whole:,}"
            + (f" in {layers} layers." if layers != layout.depth else "."),
            (f"With {teacher['heads']} heads kept, a" if "head_dim" in teacher else "A")
            + f" student has between {layout.count(smallest):,} and {whole:,} parameters.",
            f"The nearest possible is {near[0]}, with {near[1]:,}.",
        )
    if abs(whole / budget - 1) <= CLOSE / 100:
        return dict(teacher)
    for step in (4, 2, 1):
        fair = [c for c in _near(layout, teacher, budget, step) if c[0] <= CLOSE and c[1] <= math.log(PROPORTION)]
        if fair:
            return min(fair, key=lambda c: (c[1], c[0]))[2]
    everything = itertools.chain(*(_near(layout, teacher, budget, step, between=4) for step in (4, 2, 1)))
    return min(everything, key=lambda c: c[1] + MISS * max(0.0, c[0] - CLOSE))[2]


def _near(
    layout: Layout, teacher: Shape, budget: int, step: int, *, between: int = 0
) -> Iterator[tuple[float, float, dict[str, int]]]:
    """For each size of the leading width the ffn nearest to the budget, and some others.

    Args:
        layout: of the teacher.
        teacher: its shape.
        budget: of parameters.
        step: between two sizes.
        between: how many others, from that one to the ffn in the teacher's proportion.

    Yields:
        How far the budget is missed, relatively; the distortion, |log| of ffn : hidden over the teacher's; the shape.
    """
    proportion, lead, heads = teacher["ffn"] / teacher["hidden"], leading(layout, teacher), teacher.get("heads", 0)
    step *= GRAIN if lead == "hidden" else 1
    for size in range(min(step, teacher[lead]), teacher[lead] + 1, step):
        without = layout.count(in_proportion(layout, teacher, heads, size, 0))
        each = layout.count(in_proportion(layout, teacher, heads, size, 1)) - without
        shape = in_proportion(layout, teacher, heads, size, 1)
        if clash(layout, shape) or uneven(layout, shape):
            continue
        near = grained((budget - without) / each, teacher["ffn"])
        fit = grained(proportion * shape["hidden"], teacher["ffn"])
        others = (grained(near * (fit / near) ** (k / between), teacher["ffn"]) for k in range(1, between + 1))
        for ffn in (near, *others):
            shape = {**shape, "ffn": ffn}
            distortion = abs(math.log(ffn / shape["hidden"] / proportion))
            yield abs(layout.count(shape) / budget - 1), distortion, shape
