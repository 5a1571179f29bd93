"""Labels and texts that cannot be learnt or scored are refused when a task is opened, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from homodistil.errors import UserError
from homodistil.evaluation import similarity
from homodistil.evaluation.finetune import best_of_grid
from homodistil.evaluation.labels import classes
from homodistil.evaluation.tasks import Splits, Task, open_task
from homodistil.evaluation.training import Settings


def _folder(folder: Path, train: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]] = ()) -> str:
    """A task in a folder; what is scored is what is learnt, unless it is given."""
    for split, rows in (("train", train), ("validation", validation or train)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def _rows(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {k}", "label": label} for k, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("yes", None, "no"), "train rows without a label"),
        ((-1, -1, -1), "train rows without a label"),
        ((0.5, None, 1.5), "train rows without a label"),
        ((1, "two", 3), "labels are words and rows whose labels are numbers"),
        ((0.5, float("nan"), 1.5), "train rows without a label"),
        ((["yes"], ["no"], ["no"]), r"whose label is \['yes'\]"),
        (([], [1], [1, 2]), r"whose label is \[\]"),
        (("yes", "yes", "yes"), "single class, 'yes'"),
        ((1.5, 1.5, 1.5), "all have the number 1.5"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(labels: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    """Labels that are missing, are no words or numbers, or are all alike."""
    with pytest.raises(UserError, match=said):
        open_task(_folder(tmp_path, _rows(*labels)), None)


def test_a_label_below_zero_is_a_class_unless_it_is_all_there_is(tmp_path: Path) -> None:
    """What is said for, of, and against something; in GLUE -1 is a label that is kept secret."""
    opened = open_task(_folder(tmp_path, _rows(1, -1, 0, -1)), None)
    assert classes(opened) == [-1, 0, 1]
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    _folder(tmp_path / "glue" / "sst2", [{"sentence": f"x {k}", "label": k - 1} for k in range(3)])
    with pytest.raises(UserError, match="rows without a label"):
        open_task("sst2", tmp_path)


def test_f1_of_a_pair_task_is_of_class_one(tmp_path: Path) -> None:
    """With labels in words it would be of whichever class comes later in the alphabet."""
    (tmp_path / "mrpc").mkdir()
    rows = [{"sentence1": "a", "sentence2": "b", "label": ("equivalent", "not_equivalent")[k % 2]} for k in range(4)]
    _folder(tmp_path / "mrpc", rows)
    with pytest.raises(UserError, match="its labels must be 0 and 1"):
        open_task("mrpc", tmp_path)


@pytest.mark.parametrize(
    "answer", [None, "cat", [{"text": "cat", "answer_start": 4}], {"text": ["cat"], "answer_start": []}]
)
def test_answers_are_texts_with_their_places(answer: Any, tmp_path: Path) -> None:
    """As the hub has them, and not as SQuAD's own file does; without any where each question has one."""
    (tmp_path / "squad").mkdir()
    _folder(tmp_path / "squad", [{"question": "what", "context": "the cat", "answers": answer}] * 3)
    with pytest.raises(UserError, match="lists of one length"):
        open_task("squad", tmp_path)


def test_a_row_without_its_text_is_refused(tmp_path: Path) -> None:
    """Nothing can be read there, wherever in the column it stands."""
    rows = _rows(0, 1, 0)
    with pytest.raises(UserError, match="without a text"):
        open_task(_folder(tmp_path, rows, [*rows, {"text": None, "label": 1}]), None)


def test_numbers_are_no_texts(tmp_path: Path) -> None:
    """A column that is named, and holds none."""
    rows = [{**row, "number": 7} for row in _rows(0, 1, 0)]
    with pytest.raises(UserError, match="whose number is no text, such as 7"):
        open_task(_folder(tmp_path, rows), None, columns=["number"])


def test_an_empty_cell_of_a_table_is_refused(tmp_path: Path) -> None:
    """A number that is not there is not zero."""
    (tmp_path / "own.csv").write_text(
        "text,label\n" + "".join(f"text {k},{k / 2 if k % 3 else ''}\n" for k in range(9))
    )
    with pytest.raises(UserError, match="rows without a label"):
        open_task(str(tmp_path / "own.csv"), None)


def test_a_class_that_only_scored_rows_have_is_refused(tmp_path: Path) -> None:
    """When the task is opened, not when it is learnt; a limit may leave a class out as well."""
    with pytest.raises(UserError, match="a class that no training row has: 'maybe'"):
        open_task(_folder(tmp_path, _rows("yes", "no"), _rows("yes", "maybe")), None)
    with pytest.raises(UserError, match="a class that no training row has: 'maybe'"):
        open_task(_folder(tmp_path, _rows(*["yes", "no"] * 20, "maybe")), None, limit=5)


def test_a_single_row_is_refused(tmp_path: Path) -> None:
    """In one's own file, and by a limit."""
    (tmp_path / "own.jsonl").write_text(json.dumps(_rows("yes")[0]))
    with pytest.raises(UserError, match="There must be at least two"):
        open_task(str(tmp_path / "own.jsonl"), None)
    with pytest.raises(UserError, match="There must be at least two"):
        open_task(_folder(tmp_path, _rows("yes", "no", "no")), None, limit=1)


def test_whole_numbers_are_scores_of_pairs_and_classes_of_tasks(tmp_path: Path) -> None:
    """What they are depends on what is asked of them."""
    folder = _folder(tmp_path, _rows(1, 2, 3))
    assert open_task(folder, None).task.labels == "classes"
    assert open_task(folder, None, learnt=False, numbers=True).task.labels == "number"


def test_pairs_that_are_all_equally_alike_correlate_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives all texts one embedding scores 0, and not no number."""
    monkeypatch.setattr(similarity, "open_encoder", lambda *_: None)
    monkeypatch.setattr(similarity, "embed", lambda *_, **__: np.ones((3, 2)) / np.sqrt(2))
    task = Task(name="own", columns=("a", "b"), labels="number", metrics=("spearman",))
    rows = Dataset.from_dict({"a": ["x"] * 3, "b": ["y"] * 3, "label": [1.0, 2.0, 3.0]})
    assert similarity.judged_pairs("", task, rows) == 0


def test_a_grid_needs_rows_to_choose_by() -> None:
    """Of few rows none are held out; of a class with a single row nothing can be scored."""
    task = Task(name="own", columns=("text",), labels="classes", metrics=("accuracy",))
    rows = Dataset.from_list(_rows("yes", "no", "no"))
    with pytest.raises(UserError, match="--grid"):
        best_of_grid(pytest.fail, Splits(task, rows, {"validation": rows}), Settings(learning_rate=1e-3, epochs=1))
