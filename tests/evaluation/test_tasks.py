"""Tasks: the table, the files that are found for it, and a user's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from homodistil.errors import UserError
from homodistil.evaluation.metrics import METRICS
from homodistil.evaluation.tasks import TASKS, open_task


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _labelled(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"sentence": f"text {i}", "label": i % 2, **more} for i in range(count)]


def test_the_table_is_glue_and_squad() -> None:
    """All nine tasks of GLUE that are scored by GLUE's metrics, and both SQuADs; every metric is known."""
    assert set(TASKS) == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "squad", "squad_v2"}
    assert TASKS["cola"].metrics == ("matthews",)
    assert TASKS["stsb"].labels == "number"
    assert TASKS["mnli"].evaluated == ("validation_matched", "validation_mismatched")
    assert {m for t in TASKS.values() for m in t.metrics} - {"exact", "span_f1"} <= set(METRICS)


@pytest.mark.parametrize("place", ["sst2", "glue/sst2"])
def test_a_task_is_found_in_its_folder(place: str, tmp_path: Path) -> None:
    """Directly in the data folder, or in its folder glue; training rows are never scored."""
    _write(tmp_path / place / "train.jsonl", _labelled(6))
    _write(tmp_path / place / "validation.jsonl", _labelled(4))
    splits = open_task("sst2", tmp_path)
    assert len(splits.train) == 6
    assert {split: len(rows) for split, rows in splits.evaluated.items()} == {"validation": 4}
    assert len(open_task("sst2", tmp_path, limit=3).train) == 3


def test_a_limit_draws_the_same_rows_each_time(tmp_path: Path) -> None:
    """A limited task is a fixed sample of its training rows, so that two models learn from the same."""
    for split in ("train", "validation"):
        _write(tmp_path / "sst2" / f"{split}.jsonl", _labelled(50))
    first, second = (open_task("sst2", tmp_path, limit=10).train["sentence"] for _ in range(2))
    assert list(first) == list(second) != [f"text {i}" for i in range(10)]


def test_ones_own_file_is_split_and_its_labels_are_understood(tmp_path: Path) -> None:
    """Words are classes, broken numbers a regression; a fifth is scored; text columns need no names, ids are none."""
    rows = [{"review_id": f"r-{i}", "review": f"text {i}", "label": "good" if i % 2 else "bad"} for i in range(20)]
    splits = open_task(str(_write(tmp_path / "reviews.jsonl", rows)), None)
    assert (splits.task.name, splits.task.columns, splits.task.labels) == ("reviews", ("review",), "classes")
    assert (len(splits.train), len(splits.evaluated["validation"])) == (16, 4)
    scored = [{"a": "x", "b": "y", "id": i, "stars": i / 3} for i in range(20)]
    splits = open_task(str(_write(tmp_path / "pairs.jsonl", scored)), None, label="stars")
    assert (splits.task.columns, splits.task.labels) == (("a", "b"), "number")


def test_ones_own_folder_has_its_own_validation_rows(tmp_path: Path) -> None:
    """With train and validation files, nothing is split off."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.csv").write_text("text,label\n" + "".join(f"t{i},{i % 3}\n" for i in range(9)))
    (tmp_path / "own" / "validation.csv").write_text("text,label\nu,0\nv,2\n")
    splits = open_task(str(tmp_path / "own"), None)
    assert (len(splits.train), len(splits.evaluated["validation"])) == (9, 2)


@pytest.mark.parametrize("kind", ["file", "folder", "stsb"])
def test_of_pairs_that_are_compared_as_they_are_every_row_is_scored(kind: str, tmp_path: Path) -> None:
    """Nothing is learnt, so that no row is kept back and no training rows need to be there."""
    rows = [{"sentence1": f"a {k}", "sentence2": f"b {k}", "label": k} for k in range(20)]
    _write(tmp_path / (f"{kind}.jsonl" if kind == "file" else f"{kind}/validation.jsonl"), rows)
    name = {"file": str(tmp_path / "file.jsonl"), "folder": str(tmp_path / "folder"), "stsb": "stsb"}[kind]
    splits = open_task(name, tmp_path, learnt=False, numbers=True)
    assert splits.task.labels == "number"
    assert len(splits.train) == 0
    assert sorted(splits.evaluated["validation"]["label"][:]) == list(range(20))


def test_every_row_of_a_table_is_read(tmp_path: Path) -> None:
    """A quote that opens a text between tabs is a character, and None is a word."""
    for ending, tab, quote in ((".tsv", "\t", '"'), (".csv", ",", "")):
        rows = [f"{quote if k in (3, 7) else ''}text {k}{tab}{'None' if k % 2 else 'NA'}" for k in range(20)]
        (tmp_path / f"own{ending}").write_text("\n".join([f"text{tab}label", *rows]) + "\n")
        splits = open_task(str(tmp_path / f"own{ending}"), None)
        assert len(splits.train) + len(splits.evaluated["validation"]) == 20
        assert set(splits.train["label"]) == {"None", "NA"}


def test_a_files_name_is_no_pattern(tmp_path: Path) -> None:
    """Brackets and stars stand for themselves."""
    for name, count in (("own[1]*.jsonl", 10), ("own1.jsonl", 20)):
        splits = open_task(str(_write(tmp_path / name, _labelled(count))), None)
        assert len(splits.train) + len(splits.evaluated["validation"]) == count


@pytest.mark.parametrize(
    ("name", "rows", "options", "said"),
    [
        ("sst3", None, {}, "Did you mean 'sst2'?"),
        ("sst2", None, {}, "there is no folder sst2"),
        ("own.jsonl", _labelled(5), {"label": "stars"}, "Name it, for example --label label"),
        ("own.jsonl", _labelled(10, second="b", third="c"), {}, "--columns premise,hypothesis"),
        ("own.jsonl", _labelled(10), {"columns": ["txt"]}, "has no column txt"),
        ("own.jsonl", [{"sentence": "x", "label": -1}] * 10, {}, "rows without a label"),
        ("own.jsonl", _labelled(2), {}, "There must be at least two"),
    ],
)
def test_a_task_that_cannot_be_used_says_why(
    name: str, rows: list[dict[str, Any]] | None, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Unknown names, missing files, columns and labels are refused in words that name the way out."""
    path = str(_write(tmp_path / name, rows)) if rows else name
    with pytest.raises(UserError) as refusal:
        open_task(path, tmp_path, **options)
    assert said in str(refusal.value)


def test_a_broken_file_says_why(tmp_path: Path) -> None:
    """A file that is no JSON is refused in words."""
    (tmp_path / "own.jsonl").write_text('{"text": "a", "label"\n')
    with pytest.raises(UserError, match="Cannot read"):
        open_task(str(tmp_path / "own.jsonl"), None)


@pytest.mark.parametrize(("error", "said"), [(ConnectionError("offline"), "offline"), (TimeoutError(), "TimeoutError")])
def test_a_task_without_the_hub_says_why(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hub can be reached, in whatever words, or in none; the remedy is a local folder."""
    import datasets

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=f"{said}\\.?\n(?s:.*)--data-dir"):
        open_task("sst2", None)


def test_a_file_is_refused_in_the_words_of_who_read_it(tmp_path: Path) -> None:
    """And not in those of an error around it, which is the same for all."""
    (tmp_path / "own.csv").write_text('text,label\na,1\n"b,2\n')
    with pytest.raises(UserError) as refusal:
        open_task(str(tmp_path / "own.csv"), None)
    assert "EOF inside string" in refusal.value.refused
