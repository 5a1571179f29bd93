"""Text is read as it stands in its files; datasets that were saved: whole or in splits, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from homodistil.errors import UserError
from homodistil.images import open_images
from homodistil.text import open_text

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


def test_a_column_is_asked_for_by_the_option_that_there_is(tmp_path: Path) -> None:
    """Verbs call it differently."""
    (tmp_path / "own.csv").write_text("body,number\na cat,1\n")
    with pytest.raises(UserError, match=r"--text\.column body"):
        open_text(str(tmp_path / "own.csv"), "text")
    for column in ("text", "number"):
        with pytest.raises(UserError, match="with --text-column"):
            open_text(str(tmp_path / "own.csv"), column, option="--text-column")
