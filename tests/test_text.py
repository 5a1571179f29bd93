"""Text is read as it stands in its files; datasets that were saved: whole or in splits, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

import homodistil
from homodistil.errors import UserError
from homodistil.images import open_images
from homodistil.text import each_text, open_text, strings

ROWS = Dataset.from_dict({"text": ["a cat", "two dog", "one man"]})
OPEN: dict[str, Callable[[str], Any]] = {
    "text": lambda data: open_text(data, "text"),
    "stream": lambda data: open_text(data, "text", stream=True),
    "images": lambda data: open_images(data, "image"),
}


@pytest.mark.parametrize("reads", ["text", "stream"])
def test_of_a_dataset_in_splits_train_is_read(reads: str, tmp_path: Path) -> None:
    """As the hub's are; the others are not looked at."""
    DatasetDict({"test": ROWS.select([0]), "train": ROWS}).save_to_disk(str(tmp_path))
    assert [row["text"] for row in itertools.islice(OPEN[reads](str(tmp_path)), 9)] == ROWS["text"][:]


@pytest.mark.parametrize("reads", OPEN)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no train", r"split train in \S+: it has validation, test\.(?s:.*)/validation"),
        ("no split", r"split train in \S+: it has none"),
        ("stray", r"Cannot open the saved dataset(?s:.*)take the dataset_info\.json out"),
        ("torn", r"Cannot open the saved dataset(?s:.*)Save it again"),
        ("without a split's rows", r"Cannot open the saved dataset(?s:.*)Save it again"),
    ],
)
def test_a_saved_dataset_that_cannot_be_opened_is_refused(kind: str, said: str, reads: str, tmp_path: Path) -> None:
    """One without the split that is read, one that is not whole, and a folder with one of its files alone."""
    if kind == "no train":
        DatasetDict({"validation": ROWS, "test": ROWS}).save_to_disk(str(tmp_path))
    elif kind in ("no split", "without a split's rows"):
        splits = [] if kind == "no split" else ["train"]
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    elif kind == "stray":
        (tmp_path / "dataset_info.json").write_text("{}")
        (tmp_path / "a.txt").write_text("a cat")
    else:
        ROWS.save_to_disk(str(tmp_path))
        (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match=said) as refusal:
        OPEN[reads](str(tmp_path))
    assert len(str(refusal.value).splitlines()) == 3


def test_every_text_of_a_table_is_read(tmp_path: Path) -> None:
    """A quote that opens a text is a character of it, None is a word, and a file's name is no pattern."""
    texts = ["None", '"the cat', "a dog", '"one tree', "NA"]
    (tmp_path / "own[1].tsv").write_text("".join(f"{text}\t{k}\n" for k, text in enumerate(["text", *texts])))
    assert [row["text"] for row in open_text(str(tmp_path / "own[1].tsv"), "text")] == texts


def test_a_row_with_more_fields_than_the_header_is_refused(tmp_path: Path) -> None:
    """The words before its first comma would be read as the row's name, and be lost."""
    (tmp_path / "own.csv").write_text("text\nHello, world\nGood day, sir\n")
    for stream in (False, True):
        with pytest.raises(UserError, match=r"own\.csv: its first row has more fields than its header"):
            open_text(str(tmp_path / "own.csv"), "text", stream=stream)


def test_tables_of_two_rules_are_two_kinds(tmp_path: Path) -> None:
    """A folder of them is not read by the rules of one."""
    (tmp_path / "a.csv").write_text('text\n"a cat, a dog"\n')
    (tmp_path / "b.tsv").write_text("text\na man, a tree\n")
    with pytest.raises(UserError, match=r"files of 2 kinds \(csv, tsv\)"):
        open_text(str(tmp_path), "text")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("own.txt", b"a cat\n" * 20_000 + b"caf\xe9\n", "utf-8"),
        ("own.txt.gz", gzip.compress(random.Random(0).randbytes(2_000_000).hex().encode())[:-900_000], "end"),
    ],
)
def test_a_stream_that_cannot_be_read_to_its_end_says_why(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    """Text that is torn, or in another code, far behind its beginning."""
    (tmp_path / name).write_bytes(content)
    rows = open_text(str(tmp_path / name), "text", stream=True)
    with pytest.raises(UserError, match=f"Cannot read own to its end(?s:.*){said}"):
        list(each_text(rows, "text", "own"))


def test_what_is_no_text_is_passed_over_in_a_stream() -> None:
    """As it is in a file that is read whole."""
    rows: list[dict[str, Any]] = [{"text": "a cat"}, {"text": None}, {"text": 7}, {"text": "two dog"}]
    assert list(each_text(rows, "text", "own")) == ["a cat", "two dog"]


def test_a_column_is_asked_for_by_the_option_that_there_is(tmp_path: Path) -> None:
    """Verbs call it differently."""
    (tmp_path / "own.csv").write_text("body,number\na cat,1\n")
    with pytest.raises(UserError, match=r"--text\.column body"):
        open_text(str(tmp_path / "own.csv"), "text")
    for column in ("text", "number"):
        with pytest.raises(UserError, match="with --text-column"):
            open_text(str(tmp_path / "own.csv"), column, options="--text-")


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_a_file_is_read_as_it_is_now(ending: str, tmp_path: Path) -> None:
    """Also where another one of the same size took its place within its time, as a copy that keeps times does."""
    whole = {"txt": "{}\n", "csv": "text\n{}\n", "jsonl": '{{"text": "{}"}}\n'}[ending]
    path = tmp_path / f"own.{ending}"
    for text in ("a cat", "a dog"):
        path.write_text(whole.format(text))
        os.utime(path, (1.7e9, 1.7e9))
        assert [row["text"] for row in open_text(str(path), "text")] == [text]


def test_halves_of_characters_are_refused_by_their_place(masked_lm: Path, tmp_path: Path) -> None:
    """By every verb that reads texts in memory; the advice helps."""
    texts: list[Any] = ["a cat", None, "cut \ud83d", "a dog"]
    verbs: list[Callable[[], object]] = [
        lambda: list(strings(texts)),
        lambda: homodistil.plan(masked_lm, "0.5", data=texts),
        lambda: homodistil.trim_vocabulary(masked_lm, texts, tmp_path / "trimmed"),
        lambda: homodistil.distil(masked_lm, texts, "0.5", tmp_path / "run", text={"length": 32}),
        lambda: homodistil.distil(masked_lm, iter(texts), "0.5", tmp_path / "run", text={"length": 32}),
    ]
    for verb in verbs:
        with pytest.raises(UserError, match="item 2 of the data: half of a character stands at its place 4"):
            verb()
    assert not list(tmp_path.iterdir())
    mended = "cut \ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert list(strings([mended])) == ["cut \ufffd"]
