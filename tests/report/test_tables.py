"""Tables out of records."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from homodistil.report.tables import markdown, rows, terminal, written


def _record(model: str, measure: str, **values: float) -> dict[str, Any]:
    return {"model": model, "measure": measure, "values": values}


RECORDS = [
    _record("runs/a/half", "size", parameters=1_000_000, file_bytes=4e6),
    _record("runs/a/teacher", "size", parameters=4_000_000, file_bytes=16e6),
    _record("runs/a/half", "sst2", accuracy=0.8, score=80.0),
    _record("runs/a/half", "sst2", accuracy=0.9, score=90.0),
    _record("runs/a/teacher", "sst2", accuracy=0.95, score=95.0),
]


def test_seeds_become_mean_and_deviation() -> None:
    """Records that differ in the seed alone are one cell."""
    accuracy = next(r for r in rows(RECORDS) if r.value == "accuracy")
    cell = accuracy.cells["runs/a/half"]
    assert (cell.mean, cell.deviation, cell.count) == pytest.approx((0.85, 0.005**0.5, 2))
    assert accuracy.cells["runs/a/teacher"].deviation == 0


def test_a_model_stands_beside_its_teacher() -> None:
    """Sizes as a ratio, scores as a difference; names are as short as they can be."""
    header, lines = written(RECORDS)
    assert header == ["", "", "half", "teacher", "against"]
    assert ["size", "parameters", "1,000,000", "4,000,000", "x 0.25"] in lines
    assert ["", "score", "85.0 ± 7.1", "95.0", "-10.0"] in lines
    assert markdown(header, lines).count("\n") == len(lines) + 1


def test_models_of_one_name_are_told_apart() -> None:
    """Two students called 0.5 are called by their runs as well."""
    records = [_record(f"runs/{run}/students/0.5", "size", parameters=1) for run in "ab"]
    assert written(records)[0][2:4] == ["a/students/0.5", "b/students/0.5"]


def test_a_narrow_terminal_breaks_words_and_no_number() -> None:
    """Every cell of a model is there whole, also beside a measure with a long name."""
    records = [{**r, "measure": f"a task with quite a long name: {r['measure']}"} for r in RECORDS]
    console = Console(width=60, record=True)
    console.print(terminal(records))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 60
    assert all(cell in shown for line in written(records)[1] for cell in line[2:])
