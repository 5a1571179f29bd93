"""Families of users' own: read from a file or made in Python, checked, and known from then on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path

from homodistil.axes.families.family import Family
from homodistil.axes.notation import expand_braces, parse_table
from homodistil.errors import UserError, nearest
from homodistil.reading import content_of

registered: list[Family] = []
"""Families that users added; the newest first, and before those of the package."""


def register(family: Family) -> None:
    """Make a family known. One that has its name already is replaced.

    Raises:
        UserError: it is no family, or its table or its rules cannot be read or do not fit together; the message names
            the row.
    """
    if not isinstance(family, Family):
        raise UserError(
            f"Cannot register a {type(family).__name__}.",
            "A family is a homodistil.Family, with the fields that docs/adding-a-family.md describes.",
            "Make one, or read it from a file with homodistil.read_family.",
        )
    check(family)
    registered[:] = [family, *(f for f in registered if f.name != family.name)]


def read_family(path: str | Path) -> Family:
    """A family out of a YAML file with the fields of `Family`.

    Raises:
        UserError: it cannot be read, or a field is unknown, missing or of another type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    rule = "A family is a YAML file, in UTF-8, with the fields that docs/adding-a-family.md describes."
    given = content_of(path, "family", rule)
    known = {f.name: f for f in fields(Family)}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    wrong = sorted(set(given) - set(known)) or sorted(needed - set(given))
    if wrong:
        raise UserError(
            f"Cannot use the family {path}: the field {wrong[0]!r} is {'unknown' if wrong[0] in given else 'missing'}.",
            f"A family must have {', '.join(sorted(needed))}, and may have {', '.join(sorted(set(known) - needed))}.",
            nearest(wrong[0], known) if wrong[0] in given else f"Add {wrong[0]}.",
        )
    reader = ArgumentParser(exit_on_error=False)
    reader.add_class_arguments(Family)
    try:
        return Family(**vars(reader.parse_object(given)))
    except ArgumentError as error:
        raise UserError(
            f"Cannot use the family {path}: {' '.join(str(error).split())}",
            "A field must be what docs/adding-a-family.md shows: a text, a list of texts, or names with texts.",
            "Correct it there.",
        ) from error


def check(family: Family) -> None:
    """Whether a family's fields can be read and speak of each other's axes and widths.

    Raises:
        UserError: they do not; the message names the row or the rule.
    """
    axes: set[str] = set()
    starred: set[str] = set()
    for table, text in {"rows": family.rows, **family.heads}.items():
        try:
            rows = parse_table(text)
        except ValueError as error:
            raise _unfit(family, f"{table}: {error}", "Rows are written as docs/adding-a-family.md shows.") from error
        parts = {p for row in rows for dim in row.dims for p in dim if isinstance(p, str)}
        axes |= {p.removesuffix("*") for p in parts}
        starred |= {p.removesuffix("*") for p in parts if p.endswith("*")}
    _refuse_strange(family, "widths", family.widths, axes)
    widths = set(family.widths.values())
    needed = {"hidden", "ffn"} | _of_heads(family)
    if widths != needed:
        missing = needed - widths
        what = f"widths has no {min(missing)}." if missing else f"widths has {min(widths - needed)!r}."
        raise _unfit(family, what, f"Its widths must be {', '.join(sorted(needed))}, of which targets are made.")
    # a fixed axis of which each layer has its own has no one size
    sizes = widths | (axes - starred)
    for rule, names, known in (
        ("counted", family.counted, axes),
        ("config", _words(family.config.values()), sizes),
        ("attributes", _words(p for own in family.attributes.values() for p in own.values()), sizes),
        ("unequal", family.unequal, widths),
        ("divided", family.divided, widths),
        ("divided", _words(family.divided.values()), sizes),
        ("scaled", _words(family.scaled.values()), sizes),
        ("logit_scale", _words([family.logit_scale]), {"hidden"}),
    ):
        _refuse_strange(family, rule, names, known)
    if family.class_tokens and "position" not in axes:
        raise _unfit(family, "class_tokens is given.", "An axis `position` must be there to count patches by.")
    dims = {row.pattern: row.dims for text in (family.rows, *family.heads.values()) for row in parse_table(text)}
    for rule, named in (
        ("queries", family.queries),
        ("once", (*family.once, *family.once_with_pooler, *family.once_for_sequences)),
        ("distances", family.distances),
        ("scaled", [row.partition(" + ")[0] for row in family.scaled]),
    ):
        if strange := sorted({n for pattern in named for n in expand_braces(pattern)} - dims.keys()):
            raise _unfit(family, f"{rule} names {strange[0]}, for which there is no row.", "It must be a row's name.")
    for name in (n for pattern in family.queries for n in expand_braces(pattern)) if "head_dim" in widths else ():
        if family.temperature and any(isinstance(part, int) for dim in dims[name] for part in dim[1:]):
            raise _unfit(
                family,
                f"queries names {name}, whose fixed factor is not the first of its dimension.",
                "Queries, which are scaled, must be the first part of their matrix, as in (3 heads* qk*).",
            )


def _refuse_strange(family: Family, rule: str, names: Iterable[str], known: set[str]) -> None:
    if strange := sorted(set(names) - known):
        raise _unfit(family, f"{rule} speaks of {strange[0]!r}.", f"Known there are {', '.join(sorted(known))}.")


def _of_heads(family: Family) -> set[str]:
    """The widths that say how wide heads are together: what a target is made of (see `compress.targets`)."""
    if "head_dim" in family.widths.values():
        return {"heads", "head_dim"}
    return {"heads"} if family.bound else {"kv_heads"}


def _words(products: Iterable[str]) -> set[str]:
    """The names in products; a power that is no number stays with its name, which nothing has then."""
    return {re.sub(r"\^-?\d+(\.\d+)?$", "", word) for product in products for word in product.split()}


def _unfit(family: Family, what: str, rule: str) -> UserError:
    return UserError(f"Cannot use the family {family.name}: {what}", rule, "Correct it there.")
