"""A student's card says what was done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from homodistil.reading import load
from homodistil.recipe import IN_MEMORY, Recipe
from homodistil.reports.card import card
from homodistil.settings import Cutting, Losses

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


def test_a_card_tells_operations_and_all_that_was_learnt_from() -> None:
    """In millions of operations for each of both, and as of the last record."""
    recipe = Recipe(teacher="some/teacher", data="corpus.txt", target=["0.5"], out="run", steps=9)
    metrics = [{"step": step, "tokens": 1000 * step} for step in (3, 9)]
    said = card(recipe, FIGURES | {"flops_per_token": 4.25e6}, FIGURES, metrics)
    assert "| MFLOPs a token, 128 tokens a sequence | 4.2 | 1.0 |" in said
    assert "Learnt from 9,000 tokens in 9 steps." in said
    assert "base_model: some/teacher\n" in said


def test_a_width_that_only_one_of_both_has_stands_alone() -> None:
    """A student that was given may be of another family."""
    recipe = Recipe(teacher="some/teacher", data="corpus.txt", target=["0.5"], out="run", steps=3, student="other")
    teacher, made = (FIGURES | {"shape": {"hidden": 24} | own} for own in ({"head_dim": 6}, {"kv_heads": 2}))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in card(recipe, teacher, made, []).splitlines()]
    assert [row for row in rows if row and row[0] in ("hidden", "head_dim", "kv_heads")] == [
        ["hidden", "24", "24"], ["head_dim", "6", ""], ["kv_heads", "", "2"],
    ]  # fmt: skip


def test_the_recipe_of_a_card_makes_the_student_again_and_tells_no_places(tmp_path: Path) -> None:
    """All of its options stand there, and what it read by name alone."""
    folder = str(tmp_path)
    options: dict[str, Any] = {"steps": 3, "target": ["0.5"], "losses": Losses(lm=0.5), "cutting": Cutting(grain=16)}
    places: dict[str, Any] = {name: f"{folder}/{name}" for name in ("teacher", "data", "student", "family", "out")}
    said = card(Recipe(**options, **places), FIGURES, FIGURES, [])
    assert folder not in said
    assert "base_model" not in said
    (tmp_path / "recipe.yaml").write_text(re.findall("```yaml\n(.*?)```", said, re.DOTALL)[0])
    assert load(tmp_path / "recipe.yaml") == Recipe(**options | {name: name for name in places})
    assert "<" not in card(Recipe(**options | places | {"data": IN_MEMORY}), FIGURES, FIGURES, []).split("```yaml")[1]


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
