"""What shape a target means: a keep ratio, a parameter budget or a shape becomes the best shape of the family."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from homodistil.axes.layout import Layout
from homodistil.axes.shape import Shape, describe
from homodistil.axes.stack import LAYERS
from homodistil.errors import UserError, nearest

GRAIN = 8
"""ffn is a multiple of it: matrix products of other widths are slower on every machine that was tried."""
SEQUENCE = 128
"""The tokens in a sequence for which operations are counted, as in the paper; images have as many as they have."""
CLOSE = 0.02
"""A budget counts as met within it."""
PROPORTION = 4 / 3
"""How far ffn : hidden may leave the teacher's for the sake of a rounder head_dim."""

PRESETS: Mapping[str, str] = {
    "homobert-base": "hidden=576,heads=12,ffn=2304",
    "homobert-small": "hidden=256,heads=8,ffn=1024",
    "homobert-xsmall": "hidden=240,heads=12,ffn=960",
    "homobert-tiny": "hidden=224,heads=7,ffn=896",
}
"""The sizes published with the paper, by name."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one target comes out as.

    Attributes:
        target: as it was written.
        shape: width of each kind of axis, and the number of layers where it may fall.
        parameters: all of them, tied ones once. Exact.
        flops_per_token: of a forward pass at `sequence` tokens a sequence, in matrix products, two a multiply-add.
        sequence: 128 for text; for images their class tokens and patches.
        memory_bytes: of the weights as they are saved.
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


def plan(layout: Layout, teacher: Shape, targets: Sequence[str], *, weight_bytes: int = 4) -> list[Planned]:
    """The shapes of several targets, widest first: the order in which one run passes through them.

    Args:
        layout: of the teacher.
        teacher: the teacher's shape.
        targets: as a user writes them: `0.5`, `17.3M`, `hidden=240,heads=12`, `homobert-small`.
        weight_bytes: bytes of one saved weight.

    Raises:
        UserError: a target cannot be read or reached, or is wider somewhere than one that comes before it.
    """
    if not targets:
        raise UserError(
            "There is no target.",
            "A run needs at least one target: a keep ratio, a parameter budget or a shape.",
            "Add, for example, --target 0.5.",
        )
    planned = [_planned(layout, teacher, text, weight_bytes) for text in targets]
    names = [p.target for p in planned]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"The target {', '.join(sorted(twice))} is given twice.",
            "Each target is reached once and saved under its name.",
            "Leave one of them out.",
        )
    planned.sort(key=lambda p: -p.parameters)
    for wide, narrow in itertools.pairwise(planned):
        if grown := [w for w in wide.shape if narrow.shape[w] > wide.shape[w]]:
            raise UserError(
                f"Cannot reach {narrow.target} ({describe(narrow.shape)}) after {wide.target} "
                f"({describe(wide.shape)}).",
                f"One run only ever cuts, and {' and '.join(grown)} would have to grow.",
                "Give the later target the same proportions, or reach it in a run of its own.",
            )
    return planned


def teacher_figures(layout: Layout, teacher: Shape, *, weight_bytes: int = 4) -> Planned:
    """The same figures for the teacher itself."""
    return _figures(layout, "teacher", teacher, weight_bytes)


def _figures(layout: Layout, target: str, shape: Shape, weight_bytes: int, missed: float | None = None) -> Planned:
    # ratios and budgets speak of widths
    shape = {**shape, LAYERS: shape.get(LAYERS, layout.depth)} if layout.depth else shape
    parameters, sequence = layout.count(shape), layout.sequence or SEQUENCE
    return Planned(
        target=target,
        shape=dict(shape),
        parameters=parameters,
        flops_per_token=layout.flops_per_token(shape, sequence),
        sequence=sequence,
        memory_bytes=parameters * weight_bytes,
        missed=missed,
    )


def _planned(layout: Layout, teacher: Shape, text: str, weight_bytes: int) -> Planned:
    written = text.strip()
    if "=" in PRESETS.get(written, written):
        shape = _from_shape(layout, teacher, written)
        if clash := _clash(layout, shape):
            raise UserError(
                f"Cannot make {describe(shape)}.",
                f"{clash} must not be {shape[clash]}, the width of this model's embeddings: transformers would build "
                "a model without the projection between the two.",
                f"Use another width of {clash}.",
            )
        if uneven := _uneven(layout, shape):
            width, divisor = uneven
            raise UserError(
                f"Cannot make {describe(shape)}.",
                f"With these heads {width} must be a multiple of {divisor}: transformers would not load the model.",
                f"Use {describe({**shape, width: max(1, shape[width] // divisor) * divisor})}, for example.",
            )
        return _figures(layout, written, shape, weight_bytes)
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kKmMbB]?)", written)
    if match is None:
        raise UserError(
            f"Cannot read the target {text!r}.",
            "A target is a keep ratio (0.5), a parameter budget (17.3M, 8600000), a shape "
            "(hidden=240,heads=12,ffn=960) or a preset (" + ", ".join(PRESETS) + ").",
            nearest(written, PRESETS) if written[:1].isalpha() else "Write, for example, --target 0.5.",
        )
    number, suffix = float(match[1]), match[2].upper()
    if suffix or (number > 1 and "." not in match[1]):
        budget = round(number * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[suffix])
        shape = _from_budget(layout, teacher, written, budget)
        return _figures(layout, written, shape, weight_bytes, layout.count(shape) / budget - 1)
    return _figures(layout, written, _from_ratio(layout, teacher, written, number), weight_bytes)


def _clash(layout: Layout, shape: Shape) -> str | None:
    """A width that is as wide as the fixed axis which it must differ from, if there is one."""
    assert layout.family is not None
    return next((w for w, axis in layout.family.unequal.items() if shape[w] == layout.fixed[axis]), None)


def _uneven(layout: Layout, shape: Shape) -> tuple[str, int] | None:
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


def _from_ratio(layout: Layout, teacher: Shape, text: str, ratio: float) -> dict[str, int]:
    lead = leading(layout, teacher)
    if not 0 < ratio <= 1 or ratio * teacher[lead] < 0.5:
        raise UserError(
            f"Cannot keep {text} of the teacher's width ({describe(teacher)}).",
            f"A keep ratio lies above 0 and at most at 1, and leaves {lead} at least 1.",
            f"Use a ratio from {math.ceil(100 / teacher[lead]) / 100:g} to 1.",
        )
    ffn = teacher["ffn"] if ratio == 1 else _grained(ratio * teacher["ffn"], teacher["ffn"])
    if lead == "heads":
        return _bound(layout, teacher, teacher["heads"], max(1, round(ratio * teacher["heads"])), ffn)
    if lead == "hidden":
        hidden = _grained(ratio * teacher["hidden"], teacher["hidden"]) if ratio < 1 else teacher["hidden"]
        # the nearest to it that its heads divide
        nearby = sorted((*range(GRAIN, teacher["hidden"], GRAIN), teacher["hidden"]), key=lambda w: abs(w - hidden))
        shapes = [_bound(layout, teacher, 0, width, ffn) for width in nearby]
        return next((shape for shape in shapes if not _uneven(layout, shape)), shapes[0])
    wanted = ratio * teacher["head_dim"]
    # a rounder head_dim is worth a tenth of the width, because odd ones waste vector lanes
    head_dim = next(
        near
        for step, slack in ((4, 0.1), (2, 0.1), (1, math.inf))
        if (near := max(step, round(wanted / step) * step)) and abs(near / wanted - 1) <= slack
    )
    head_dim = min(head_dim, teacher["head_dim"])
    while _clash(layout, _bound(layout, teacher, teacher["heads"], head_dim, ffn)):
        head_dim += 1
    return _bound(layout, teacher, teacher["heads"], head_dim, ffn)


def _from_budget(layout: Layout, teacher: Shape, text: str, budget: int) -> dict[str, int]:
    whole, smallest = layout.count(teacher), _bound(layout, teacher, teacher.get("heads", 0), 1, 1)
    if not layout.count(smallest) <= budget <= whole * (1 + CLOSE):
        near = ("the teacher itself", whole) if budget > whole else (describe(smallest), layout.count(smallest))
        raise UserError(
            f"Cannot make a student of {budget:,} parameters ({text}) from a teacher of {whole:,}.",
            (f"With {teacher['heads']} heads kept, a" if "head_dim" in teacher else "A")
            + f" student has between {layout.count(smallest):,} and {whole:,} parameters.",
            f"The nearest possible is {near[0]}, with {near[1]:,}.",
        )
    if abs(whole / budget - 1) <= CLOSE / 100:
        return dict(teacher)
    best = {step: list(_near(layout, teacher, budget, step)) for step in (4, 2, 1)}
    for candidates in best.values():
        fair = [c for c in candidates if c[0] <= CLOSE and c[1] <= math.log(PROPORTION)]
        if fair:
            return min(fair, key=lambda c: (c[1], c[0]))[2]
    # the least misshapen of those that meet the budget, or else the nearest
    everything = [c for candidates in best.values() for c in candidates]
    met = [c for c in everything if c[0] <= CLOSE]
    return min(met, key=lambda c: c[1])[2] if met else min(everything, key=lambda c: c[0])[2]


def _near(layout: Layout, teacher: Shape, budget: int, step: int) -> Iterator[tuple[float, float, dict[str, int]]]:
    """For each size of the leading width, the ffn nearest to the budget: (relative miss, distortion, shape)."""
    proportion, lead, heads = teacher["ffn"] / teacher["hidden"], leading(layout, teacher), teacher.get("heads", 0)
    step *= GRAIN if lead == "hidden" else 1
    for size in range(min(step, teacher[lead]), teacher[lead] + 1, step):
        without = layout.count(_bound(layout, teacher, heads, size, 0))
        each = layout.count(_bound(layout, teacher, heads, size, 1)) - without
        ffn = _grained((budget - without) / each, teacher["ffn"])
        shape = _bound(layout, teacher, heads, size, ffn)
        if _clash(layout, shape) or _uneven(layout, shape):
            continue
        distortion = abs(math.log(ffn / shape["hidden"] / proportion))
        yield abs(layout.count(shape) / budget - 1), distortion, shape


def _from_shape(layout: Layout, teacher: Shape, text: str) -> dict[str, int]:
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
    heads = given.get("heads", teacher["heads"])
    # the widths that are not named follow those that are, in the teacher's proportions
    if "head_dim" in given:
        head_dim = given["head_dim"]
    else:
        head_dim = (
            given["hidden"] // heads if "hidden" in given else min(teacher["head_dim"], teacher["hidden"] // heads)
        )
    shape = _bound(layout, teacher, heads, head_dim, 1)
    scale = shape["hidden"] / teacher["hidden"]
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
    """The shape with the leading width at `size`; `heads` are those of families whose head_dim leads."""
    lead = leading(layout, teacher)
    if lead == "heads":
        return {"hidden": size * (teacher["hidden"] // teacher["heads"]), "heads": size, "ffn": ffn}
    if lead == "hidden":
        kv_heads = max(1, round(size / teacher["hidden"] * teacher["kv_heads"]))
        return {"hidden": size, "kv_heads": kv_heads, "ffn": ffn}
    return {"hidden": heads * size, "heads": heads, "head_dim": size, "ffn": ffn}


def _grained(width: float, most: int) -> int:
    """The nearest multiple of the grain, at least one of it and at most the teacher's width."""
    return min(most, max(GRAIN, round(width / GRAIN) * GRAIN))
