"""Tables out of records."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from homodistil.reports import curves
from homodistil.reports.tables import markdown, rows, terminal, written


def _record(model: str, measure: str, seed: int | None = None, **values: float) -> dict[str, Any]:
    role = "teacher" if model.endswith("teacher") else "model"
    return {"model": model, "role": role, "measure": measure, "seed": seed, "values": values}


RECORDS = [
    _record("runs/a/half", "size", parameters=1_000_000, file_bytes=4e6),
    _record("runs/a/teacher", "size", parameters=4_000_000, file_bytes=16e6),
    _record("runs/a/half", "sst2", 0, accuracy=0.8, score=80.0),
    _record("runs/a/half", "sst2", 1, accuracy=0.9, score=90.0),
    _record("runs/a/teacher", "sst2", 0, accuracy=0.95, score=95.0),
]


def test_seeds_become_mean_and_deviation() -> None:
    """Records that differ in the seed alone are one cell."""
    accuracy = next(r for r in rows(RECORDS) if r.value == "accuracy")
    cell = accuracy.cells["runs/a/half"]
    assert (cell.mean, cell.deviation, cell.count) == pytest.approx((0.85, 0.005**0.5, 2))
    assert accuracy.cells["runs/a/teacher"].deviation == 0


def test_what_was_measured_again_counts_once_and_as_it_was_last() -> None:
    """A file that is read twice changes nothing; a model that was replaced, or other settings, leave nothing behind."""
    assert written([*RECORDS, *RECORDS]) == written(RECORDS)
    before, after = ([{**r, "identity": name} for r in RECORDS if r["model"].endswith("half")] for name in "xy")
    after = [{**r, "values": {k: v / 2 for k, v in r["values"].items()}} for r in after]
    assert rows([*before, *after]) == rows(after)
    assert rows([*before, after[0]]) == rows(after[:1])
    slow, fast = ([{**r, "settings": {"learning_rate": rate}} for r in RECORDS] for rate in (1e-4, 1e-3))
    assert rows([*slow, *fast[2:3]])[2].cells["runs/a/half"].count == 1


def _timed(*models: str) -> list[dict[str, Any]]:
    settings = {"length": 32, "beside": [f"identity of {model}" for model in models]}
    return [
        {**_record(model, "speed", latency_ms=len(models)), "settings": settings, "identity": f"identity of {model}"}
        for model in models
    ]


def test_speeds_of_several_evaluations_stand_in_several_rows() -> None:
    """Each names the models that took turns; a row of which no model was timed last is left out."""
    assert [row.measure for row in rows(_timed("a", "teacher"))] == ["speed"]
    several = rows([*_timed("a"), *_timed("a", "teacher"), *_timed("b", "teacher")])
    assert [(row.measure, list(row.cells)) for row in several] == [
        ("speed, beside a and teacher", ["a", "teacher"]),
        ("speed, beside b and teacher", ["b", "teacher"]),
    ]
    assert [row.cells["a"].mean for row in rows([*_timed("a", "teacher"), *_timed("a")])] == [2, 1]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({"data": "x/A/own.jsonl"}, {"data": "x/B/own.jsonl"}, ["own, data A/own.jsonl", "own, data B/own.jsonl"]),
        ({"label": "a", "digest": "1"}, {"label": "b", "digest": "2"}, ["own, label a", "own, label b"]),
        ({"columns": ["a"]}, {"columns": ["a", "b"]}, ["own, columns a", "own, columns a,b"]),
        ({}, {"batch": 8}, ["own", "own, batch 8"]),
        ({"digest": "1"}, {"digest": "2"}, ["own, digest 1", "own, digest 2"]),
        ({"teacher": "x/a"}, {"teacher": "x/b"}, ["own, teacher x/a", "own, teacher x/b"]),
        ({"digest": "1"}, {"digest": "1", "learning_rate": 1}, ["own"]),
    ],
)
def test_one_measure_on_several_data_is_several_rows(
    first: dict[str, Any], second: dict[str, Any], names: list[str]
) -> None:
    """Each is named by what tells it from the others; how a model was fine-tuned makes no row."""
    records = [{**_record("m", "own", k, score=k), "settings": s} for k, s in enumerate((first, second))]
    assert [row.measure for row in rows(records)] == names
    assert all(row.cells["m"].count == 1 for row in rows(records))


def test_a_model_stands_beside_its_teacher() -> None:
    """Sizes as a ratio, scores as a difference; names are as short as they can be."""
    header, lines = written(RECORDS)
    assert header == ["", "", "half", "teacher", "against"]
    assert ["size", "parameters", "1,000,000", "4,000,000", "x 0.25"] in lines
    assert ["", "score", "85.0 ± 7.1", "95.0", "-10.0"] in lines
    assert markdown(header, lines).count("\n") == len(lines) + 1


def test_figures_of_other_tokens_are_not_compared() -> None:
    """Of a student with a part of its teacher's vocabulary each token says more; its size is compared all the same."""
    for tokens, beside in (("x", "x 1.50"), ("y", "")):
        read = [
            {**_record(f"runs/a/{name}", "language", perplexity=number), "settings": {"digest": "1", "tokens": one}}
            for name, number, one in (("half", 6.0, tokens), ("teacher", 4.0, "x"))
        ]
        lines = written([*RECORDS, *read])[1]
        assert ["language", "perplexity", "6.00", "4.00", beside] in lines
        assert ["size", "parameters", "1,000,000", "4,000,000", "x 0.25"] in lines
        figure = curves.quality([*RECORDS, *read])
        assert figure is not None
        assert any("perplexity" in axes.get_title() for axes in figure.axes) == bool(beside)


def test_the_teacher_is_what_a_model_is_compared_with_whichever_was_measured_first() -> None:
    """It stands last; two students, or two teachers, are not compared at all."""
    assert written(RECORDS[::-1])[0] == written(RECORDS)[0]
    assert ["size", "parameters", "1,000,000", "4,000,000", "x 0.25"] in written([RECORDS[1], RECORDS[0]])[1]
    for role in ("model", "teacher"):
        assert written([{**r, "role": role} for r in RECORDS])[0] == ["", "", "half", "teacher"]


def test_nothing_is_so_many_times_nothing() -> None:
    """Beside a teacher's zero a model's number stands alone."""
    records = [_record("half", "size", file_bytes=4e6), _record("teacher", "size", file_bytes=0)]
    assert written(records)[1] == [["size", "MB on disk", "4.0", "0.0", ""]]


def test_a_name_in_brackets_is_shown_as_it_is() -> None:
    """Models and tasks are no markup of the terminal's."""
    console = Console(width=80, record=True)
    console.print(terminal([_record("m[v2]", "rev[en] probe", score=1), _record("m[v2]", "rev[de] probe", score=2)]))
    shown = console.export_text()
    assert all(name in shown for name in ("m[v2]", "rev[en] probe", "rev[de] probe"))


def test_models_of_one_name_are_told_apart() -> None:
    """Two students called 0.5 are called by their runs as well."""
    records = [_record(f"runs/{run}/students/0.5", "size", parameters=1) for run in "ab"]
    assert written(records)[0][2:4] == ["a/students/0.5", "b/students/0.5"]


def test_a_name_is_as_short_as_it_can_be_however_deep_its_folder_lies() -> None:
    """Of absolute paths with many folders in common no more is shown than tells them apart."""
    deep = "students/deep/down/in/some/folder/0.5"
    records = [_record(f"/home/me/{run}/{deep}", "size", parameters=1) for run in "ab"]
    assert written(records)[0][2:4] == [f"a/{deep}", f"b/{deep}"]
    assert written([_record(f"{root}x", "size", parameters=1) for root in ("/", "")])[0][2:4] == ["/x", "x"]


def test_a_narrow_terminal_breaks_words_and_no_number() -> None:
    """Every cell of a model is there whole, also beside a measure with a long name."""
    records = [{**r, "measure": f"a task with quite a long name: {r['measure']}"} for r in RECORDS]
    console = Console(width=60, record=True)
    console.print(terminal(records))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 60
    assert all(cell in shown for line in written(records)[1] for cell in line[2:])
