"""The notation in which a family of models is described: one row a parameter, one name a dimension.

    encoder.layer.*.attention.self.{query,key}.weight     (heads* qk*) hidden

A word is an axis. `*` after a word means one instance of the axis for each layer, and `*` in the name is the
layer; `^` in the name is every layer but the first. Parentheses are one fused dimension, in memory order; an axis that
follows another inside them is nested in it: its units are counted for each unit of the one before. A number is a
fixed factor.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

Dim = tuple[str | int, ...]
"""One dimension of a parameter: axis names and fixed factors, in memory order. Most have a single part."""

_WORD = re.compile(r"[a-z_]+\*?|\d+")


@dataclass(frozen=True)
class Row:
    """One row of a family's table, with its braces already expanded.

    Attributes:
        pattern: a parameter's name below the base model, `*` standing for the layer.
        dims: one `Dim` for each dimension of the parameter, outermost first.
    """

    pattern: str
    dims: tuple[Dim, ...]

    def bind(self, name: str) -> tuple[Dim, ...] | None:
        """The dims of parameter `name` with every `axis*` made `axis.<layer>`, or None if the row is not its row."""
        match = expression(self.pattern).fullmatch(name)
        if match is None:
            return None
        layer = ".".join(match.groups())
        return tuple(tuple(p.replace("*", f".{layer}") if isinstance(p, str) else p for p in d) for d in self.dims)


@functools.cache
def expression(pattern: str) -> re.Pattern[str]:
    """What a row's name stands for: a number for each layer where it has a `*` or a `^`."""
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)").replace(r"\^", r"([1-9]\d*)"))


def parse_dims(text: str) -> tuple[Dim, ...]:
    """Read `(heads* qk*) hidden` as `(("heads*", "qk*"), ("hidden",))`.

    Raises:
        ValueError: the text is not in the notation.
    """
    dims: list[Dim] = []
    for piece in re.findall(r"\([^()]*\)|[^\s()]+|[()]", text):
        words = piece[1:-1].split() if piece.startswith("(") and piece.endswith(")") else [piece]
        if not words or not all(_WORD.fullmatch(w) for w in words):
            raise ValueError(f"{text!r} is not axis notation: cannot read {piece!r}.")
        dims.append(tuple(int(w) if w.isdigit() else w for w in words))
    if not dims:
        raise ValueError("A row names at least one dimension.")
    return tuple(dims)


@functools.cache
def parse_table(text: str) -> tuple[Row, ...]:
    """Read a table: a row a line, `name  dims`; `#` starts a comment, `{a,b}` in a name means both.

    Raises:
        ValueError: a line is not in the notation, an `axis*` stands in a row without a layer, or two lines
            describe the same parameter.
    """
    rows: list[Row] = []
    for line in text.splitlines():
        content = line.split("#")[0].strip()
        if not content:
            continue
        name, _, dims_text = content.partition(" ")
        try:
            dims = parse_dims(dims_text)
        except ValueError as error:
            raise ValueError(f"In the row {content!r}: {error}") from None
        if not {"*", "^"} & {*name} and any(isinstance(p, str) and p.endswith("*") for d in dims for p in d):
            raise ValueError(f"In the row {content!r}: an axis for each layer, but the name has no layer.")
        rows += [Row(pattern, dims) for pattern in expand_braces(name)]
    names = [row.pattern for row in rows]
    if twice := {n for n in names if names.count(n) > 1}:
        raise ValueError(f"Described twice: {', '.join(sorted(twice))}.")
    return tuple(rows)


def expand_braces(name: str) -> Iterator[str]:
    """Every name that `a.{b,c}.{d,e}` stands for."""
    pieces = [p[1:-1].split(",") if p.startswith("{") else [p] for p in re.split(r"(\{[^{}]*\})", name)]
    return ("".join(choice) for choice in itertools.product(*pieces))
