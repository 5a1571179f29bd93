"""From a shape as it is written to a shape of the family: named widths are as they are, the others follow them."""

from __future__ import annotations

from collections.abc import Mapping

from homodistil.axes.layout import Layout
from homodistil.axes.shape import LAYERS, Shape, describe
from homodistil.compress.targets import grained, in_proportion, leading
from homodistil.errors import UserError, nearest

PUBLISHED: Mapping[str, str] = {
    "homobert-base": "hidden=576,heads=12,ffn=2304",
    "homobert-small": "hidden=256,heads=8,ffn=1024",
    "homobert-xsmall": "hidden=240,heads=12,ffn=960",
    "homobert-tiny": "hidden=224,heads=7,ffn=896",
}
"""The sizes published with the paper, by name."""


def from_shape(layout: Layout, teacher: Shape, text: str) -> dict[str, int]:
    """A shape that is written out, or a published size; widths that it does not name follow those that it does.

    Raises:
        UserError: it names what the family does not have, a width above the teacher's, or widths that do not fit
            together.
    """
    pairs = [piece.partition("=") for piece in PUBLISHED.get(text, text).split(",")]
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
    inner = teacher["heads"] * teacher["head_dim"]
    follows = teacher["head_dim"]
    if "hidden" in given:
        follows = max(1, given["hidden"] * inner // (teacher["hidden"] * heads))
    if not layout.family.bound:
        follows = min(follows, teacher["head_dim"])
    shape = in_proportion(layout, teacher, heads, given.get("head_dim", follows), 1)
    if not layout.family.bound and "hidden" in given:
        shape["hidden"] = given["hidden"]
    head_dim, scale = shape["head_dim"], shape["hidden"] / teacher["hidden"]
    shape["ffn"] = given.get("ffn", grained(scale * teacher["ffn"], teacher["ffn"]))
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
    shape = in_proportion(layout, teacher, 0, max(1, size), 1)
    shape["ffn"] = given.get("ffn", grained(shape["hidden"] / teacher["hidden"] * teacher["ffn"], teacher["ffn"]))
    shape |= {"kv_heads": given["kv_heads"]} if "kv_heads" in given else {}
    if given.get("hidden", shape["hidden"]) != shape["hidden"]:
        raise UserError(
            f"Cannot make hidden={given['hidden']} with heads={shape['heads']}.",
            f"This family needs heads x {each} == hidden, because the {each} dimensions of its heads are never cut.",
            f"Use hidden={shape['hidden']}, or heads={max(1, round(given['hidden'] / each))} alone.",
        )
    return shape
