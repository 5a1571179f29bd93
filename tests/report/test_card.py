"""A student's card says what was done."""

from __future__ import annotations

from typing import Any

from homodistil.recipe import Recipe
from homodistil.report.card import card

FIGURES: dict[str, Any] = {
    "target": "0.5",
    "shape": {"hidden": 24},
    "parameters": 1000,
    "flops_per_token": 1e6,
    "sequence": 128,
}


def test_a_card_says_what_the_student_began_as() -> None:
    """As a copy of its teacher, or as the student that was given."""
    options: dict[str, Any] = {"teacher": "some/teacher", "data": "corpus.txt", "target": ["0.5"], "out": "run"}
    said = card(Recipe(**options, steps=3), FIGURES, FIGURES, [])
    assert "began as a copy of its teacher" in said
    said = card(Recipe(**options, steps=3, student="some/student"), FIGURES, FIGURES, [])
    assert "copy of its teacher" not in said
    assert "began as the student `some/student`" in said
