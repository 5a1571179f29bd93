"""Shapes: a width for each kind of axis; what is written with them, and computed from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

Shape = Mapping[str, int]
"""A width for each kind of axis, and the depth: `{"hidden": 240, "heads": 12, "head_dim": 20, "ffn": 960,
"layers": 6}`.

Where a shape does not name `layers`, all of them are meant."""

LAYERS = "layers"
"""What the number of layers is called in a shape, and the key of those that stay in a `Keep`."""

Polynomial = Counter[tuple[str, ...]]
"""A sum of products of widths: `{("hidden", "hidden"): 12.0}` is 12 hidden²."""


def describe(shape: Shape) -> str:
    """A shape as a person writes it: `hidden=240, heads=12, head_dim=20, ffn=960`."""
    return ", ".join(f"{name}={width}" for name, width in shape.items())


def evaluate(polynomial: Polynomial, shape: Shape) -> float:
    """The value of a closed form at a shape."""
    return sum(factor * math.prod(shape[w] for w in term) for term, factor in polynomial.items())


def product(text: str, shape: Shape) -> float:
    """The value of a family's product at a shape: `heads head_dim` multiplied, `head_dim^-0.5` a power."""
    value: float = 1
    for word in text.split():
        width, _, power = word.partition("^")
        value *= shape[width] ** float(power) if power else shape[width]
    return value
