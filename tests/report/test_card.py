"""A student's card says what was done."""

from __future__ import annotations

import shlex
from typing import Any

from homodistil.recipe import IN_MEMORY, Recipe
from homodistil.report.card import card, command
from homodistil.settings import Text

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


def test_a_width_that_only_one_of_both_has_stands_alone() -> None:
    """A student that was given may be of another family."""
    recipe = Recipe(teacher="some/teacher", data="corpus.txt", target=["0.5"], out="run", steps=3, student="other")
    teacher, made = (FIGURES | {"shape": {"hidden": 24} | own} for own in ({"head_dim": 6}, {"kv_heads": 2}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card(recipe, teacher, made, []).splitlines()]
    assert [row for row in rows if row and row[0] in ("hidden", "head_dim", "kv_heads")] == [
        ["hidden", "24", "24"], ["head_dim", "6", ""], ["kv_heads", "", "2"],
    ]  # fmt: skip


def test_the_command_of_a_card_can_be_pasted() -> None:
    """Paths with blanks are quoted, and what a run cannot be repeated without is named."""
    options: dict[str, Any] = {"teacher": "some/teacher", "target": ["0.5"], "steps": 3, "trim_vocab": True}
    said = command(Recipe(**options, data="two words.txt", out="runs/smäll one", text=Text(target="summary")))
    assert shlex.split(said)[:9] == [
        "homodistil", "distil", "some/teacher", "--data", "two words.txt", "--text.target", "summary", "--trim_vocab",
        "true",
    ]  # fmt: skip
    assert shlex.split(said)[-2:] == ["--out", "runs/smäll one"]
    assert "<" not in command(Recipe(**options, data=IN_MEMORY, out="run"))


def test_a_measure_that_was_not_taken_has_no_number() -> None:
    """Nothing was measured is not zero."""
    recipe = Recipe(teacher="some/teacher", data="corpus.txt", target=["0.5"], out="run", steps=3)
    metrics = [
        {"step": step, "tokens": step, "widths": {"hidden": 24}, "heldout": heldout}
        for step, heldout in ((1, {"hidden": 0.5}), (2, {"hidden": 0.25, "lm": 0.125}))
    ]
    rows = [
        line for line in card(recipe, FIGURES, FIGURES, metrics).splitlines() if line.startswith(("| 1 |", "| 2 |"))
    ]
    assert [row.split("|")[3:-1] for row in rows] == [["  ", " 0.5000 "], [" 0.1250 ", " 0.2500 "]]
