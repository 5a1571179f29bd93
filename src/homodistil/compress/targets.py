"""From a target as it is written to a shape of the family: by keep ratio, parameter budget, or width by width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from homodistil.axes.layout import Layout
from homodistil.axes.shape import Shape, describe
from homodistil.axes.stack import LAYERS
from homodistil.errors import UserError, nearest

GRAIN = 8
"""ffn is a multiple of it: matrix products of other widths are slower on every machine that was tried."""
CLOSE = 0.02
"""A budget counts as met within it."""
MISS = 30.0
"""What a budget that is missed weighs beside a misshapen ffn: 5 % off is as bad as one that is 2.5 times too wide."""
PROPORTION = 4 / 3
"""How far ffn : hidden may leave the teacher's for the sake of a rounder head_dim."""

PRESETS: Mapping[str, str] = {
    "homobert-base": "hidden=576,heads=12,ffn=2304",
    "homobert-small": "hidden=256,heads=8,ffn=1024",
    "homobert-xsmall": "hidden=240,heads=12,ffn=960",
    "homobert-tiny": "hidden=224,heads=7,ffn=896",
}
"""The sizes published with the paper, by name."""


def clash(layout: Layout, shape: Shape) -> str | None:
    """A width that is as wide as the fixed axis which it must differ from, if there is one."""
    assert layout.family is not None
    return next((w for w, axis in layout.family.unequal.items() if shape[w] == layout.fixed[axis]), None)


def uneven(layout: Layout, shape: Shape) -> tuple[str, int] | None:
    """A width that is no multiple of what must divide it, and that divisor, if there is one."""
    assert layout.family is not None
    known = {**layout.fixed, **shape}
    divisors = {w: math.prod(known[word] for word in p.split()) for w, p in layout.family.divided.items()}
    return next(((w, divisor) for w, divisor in divisors.items() if shape[w] % divisor), None)


def leading(layout: Layout, teacher: Shape) -> str:
    """The width that the others but ffn follow: head_dim where it may be cut, or else heads or hidden."""
    assert layout.family is not None
    if "head_dim" in teacher:
        return "head_dim"
    return "heads" if layout.family.bound else "hidden"


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
    ffn = _grained(ratio * teacher["ffn"], teacher["ffn"])
    if lead == "heads":
        return _bound(layout, teacher, teacher["heads"], max(1, round(ratio * teacher["heads"])), ffn)
    if lead == "hidden":
        hidden = _grained(ratio * teacher["hidden"], teacher["hidden"])
        # the nearest to it that its heads divide
        nearby = sorted((*range(GRAIN, teacher["hidden"], GRAIN), teacher["hidden"]), key=lambda w: abs(w - hidden))
        shapes = [_bound(layout, teacher, 0, width, ffn) for width in nearby]
        return next((shape for shape in shapes if not uneven(layout, shape)), shapes[0])
    wanted = ratio * teacher["head_dim"]
    # a rounder head_dim is worth a tenth of the width, because odd ones waste vector lanes
    head_dim = next(
        near
        for step, slack in ((4, 0.1), (2, 0.1), (1, math.inf))
        if (near := max(step, round(wanted / step) * step)) and abs(near / wanted - 1) <= slack
    )
    head_dim = min(head_dim, teacher["head_dim"])
    while clash(layout, _bound(layout, teacher, teacher["heads"], head_dim, ffn)):
        head_dim += 1
    return _bound(layout, teacher, teacher["heads"], head_dim, ffn)


def from_budget(layout: Layout, teacher: Shape, text: str, budget: int) -> dict[str, int]:
    """The shape nearest to a number of parameters, in the teacher's proportions and depth as far as they allow.

    Raises:
        UserError: no shape has so few or so many.
    """
    whole, smallest = layout.count(teacher), _bound(layout, teacher, teacher.get("heads", 0), 1, 1)
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
        without = layout.count(_bound(layout, teacher, heads, size, 0))
        each = layout.count(_bound(layout, teacher, heads, size, 1)) - without
        shape = _bound(layout, teacher, heads, size, 1)
        if clash(layout, shape) or uneven(layout, shape):
            continue
        near = _grained((budget - without) / each, teacher["ffn"])
        fit = _grained(proportion * shape["hidden"], teacher["ffn"])
        others = (_grained(near * (fit / near) ** (k / between), teacher["ffn"]) for k in range(1, between + 1))
        for ffn in (near, *others):
            shape = {**shape, "ffn": ffn}
            distortion = abs(math.log(ffn / shape["hidden"] / proportion))
            yield abs(layout.count(shape) / budget - 1), distortion, shape


def from_shape(layout: Layout, teacher: Shape, text: str) -> dict[str, int]:
    """A shape that is written out, or a preset; widths that it does not name follow those that it does.

    Raises:
        UserError: it names what the family does not have, a width above the teacher's, or widths that do not fit
            together.
    """
    pairs = [piece.partition("=") for piece in PRESETS.get(text, text).split(",")]
    given: dict[str, int] = {}
    for name, _, value in ((n.strip(), e, v.strip()) for n, e, v in pairs):
        if name == LAYERS and name not in teacher:
            obstacle = layout.stack.obstacle if layout.stack is not None else "its layers are not one list"
            raise UserError(
                f"Cannot make {name}={value or '?'} of this model: {obstacle}.",
                "Whole layers leave only a list of equal layers that the configuration counts.",
                f"Leave {name} out and cut widths: {', '.join(teacher)}.",
            )
        if name not in teacher:
            raise UserError(
                f"Cannot read {name!r} in the target {text!r}.",
                f"A shape names widths of the family: {', '.join(teacher)}.",
                nearest(name, teacher),
            )
        if not value.isdecimal() or not 1 <= int(value) <= teacher[name]:
            raise UserError(
                f"Cannot make {name}={value or '?'}.",
                f"A width is a whole number from 1 to the teacher's: {describe(teacher)}.",
                f"Use {name}={min(teacher[name], max(1, int(value))) if value.isdecimal() else teacher[name]}, "
                "or another number in between.",
            )
        if name in given:
            raise UserError(
                f"The target {text!r} names {name} twice.", "A width is given once.", "Leave one of them out."
            )
        given[name] = int(value)
    depth = {LAYERS: given.pop(LAYERS)} if LAYERS in given else {}
    return (_from_widths(layout, teacher, given) if given else dict(teacher)) | depth


def _from_widths(layout: Layout, teacher: Shape, given: Mapping[str, int]) -> dict[str, int]:
    if leading(layout, teacher) != "head_dim":
        return _from_whole_heads(layout, teacher, given)
    assert layout.family is not None
    heads = given.get("heads", teacher["heads"])
    # the widths that are not named follow those that are, in the teacher's proportions
    inner = teacher["heads"] * teacher["head_dim"]
    most = min(teacher["head_dim"], inner // heads)
    follows = given["hidden"] * inner // (teacher["hidden"] * heads) if "hidden" in given else most
    if not layout.family.bound:
        follows = max(1, min(follows, most))
    shape = _bound(layout, teacher, heads, given.get("head_dim", follows), 1)
    if not layout.family.bound and "hidden" in given:
        shape["hidden"] = given["hidden"]
    head_dim, scale = shape["head_dim"], shape["hidden"] / teacher["hidden"]
    shape["ffn"] = given.get("ffn", _grained(scale * teacher["ffn"], teacher["ffn"]))
    if "hidden" in given and given["hidden"] != shape["hidden"]:
        raise UserError(
            f"Cannot make hidden={given['hidden']} with heads={heads}"
            + (f" and head_dim={head_dim}." if "head_dim" in given else "."),
            f"This family needs heads x head_dim == hidden, and {given['hidden']} is "
            + (f"not {heads} x {head_dim}." if "head_dim" in given else f"no multiple of {heads}."),
            _instead(teacher, given["hidden"], heads),
        )
    if wider := [w for w in shape if shape[w] > teacher[w]]:
        raise UserError(
            f"Cannot make {describe(shape)}.",
            f"No width may be above the teacher's ({describe(teacher)}), and {' and '.join(wider)} would be.",
            _instead(teacher, shape["hidden"], heads),
        )
    return shape


def _instead(teacher: Shape, hidden: int, heads: int) -> str:
    """The nearest possible of the same hidden width, if there is one, and of the same heads."""
    fit = [h for h in range(1, teacher["heads"] + 1) if hidden % h == 0 and hidden // h <= teacher["head_dim"]]
    other = min(fit, key=lambda h: (abs(h - heads), -h), default=None)
    below = heads * max(1, min(hidden // heads, teacher["head_dim"]))
    ways = [f"heads={other} (head_dim={hidden // other})"] if other else []
    return f"Use {', or '.join([*ways, f'hidden={below} (head_dim={below // heads})'])}."


def _from_whole_heads(layout: Layout, teacher: Shape, given: Mapping[str, int]) -> dict[str, int]:
    """A shape of a family whose head_dim is never cut."""
    lead = leading(layout, teacher)
    each = teacher["hidden"] // teacher["heads"] if lead == "heads" else 1
    size = given.get(lead, given.get("hidden", teacher["hidden"]) // each)
    shape = _bound(layout, teacher, 0, max(1, size), 1)
    shape["ffn"] = given.get("ffn", _grained(shape["hidden"] / teacher["hidden"] * teacher["ffn"], teacher["ffn"]))
    shape |= {"kv_heads": given["kv_heads"]} if "kv_heads" in given else {}
    if given.get("hidden", shape["hidden"]) != shape["hidden"]:
        raise UserError(
            f"Cannot make hidden={given['hidden']} with heads={shape['heads']}.",
            f"This family needs heads x {each} == hidden, because the {each} dimensions of its heads are never cut.",
            f"Use hidden={shape['hidden']}, or heads={max(1, round(given['hidden'] / each))} alone.",
        )
    return shape


def _bound(layout: Layout, teacher: Shape, heads: int, size: int, ffn: int) -> dict[str, int]:
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


def _grained(width: float, most: int) -> int:
    """The nearest multiple of the grain, at least one of it and at most the teacher's width."""
    return min(most, max(GRAIN, round(width / GRAIN) * GRAIN))
