"""Files of text: which there are, what reads them, and what is none."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
from collections.abc import Iterator, Sequence
from os.path import isdir
from pathlib import Path
from typing import Any

import datasets
import pandas
from datasets import Dataset, IterableDataset

from homodistil.errors import UserError
from homodistil.rundir import FULL

READERS = {
    ".txt": "text", ".text": "text", ".md": "text", ".smi": "text",
    ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip
"""Which of the datasets library's readers opens a file, by its ending; an unknown ending is plain text."""


def files_of(path: Path) -> list[Path]:
    """A file itself, or the text files of a folder, however deep, that are not empty.

    Raises:
        UserError: there are none, or files of several kinds.
    """
    files = [path]
    if isdir(path):
        inside = [f for f in path.rglob("*") if f.is_file() and not f.name.startswith(".")]
        files = sorted(f for f in inside if ending(f) in READERS)
        # the two kinds of tables are read by different rules
        kinds = {"tsv" if ending(f) == ".tsv" else READERS[ending(f)] for f in files}
        if len(kinds) != 1:
            raise UserError(
                f"Cannot read the folder {path}: it holds "
                + (f"files of {len(kinds)} kinds ({', '.join(sorted(kinds))})." if kinds else _instead(inside)),
                f"All text files of a folder must be of one kind; known endings are {', '.join(READERS)}.",
                "Give one file, or a folder with files of one kind.",
            )
    if not any(f.stat().st_size for f in files):
        raise UserError(
            f"Cannot read {path}: it is empty.",
            "The data must hold text.",
            "Check that it was written completely.",
        )
    return [f for f in files if f.stat().st_size]


def _instead(files: list[Path]) -> str:
    """What a folder without text holds."""
    endings = sorted({ending(f) for f in files} - {""})
    return "no text file" + (f", but {', '.join(endings[:5])}." if endings else ".")


def ending(file: Path) -> str:
    """What a file's name ends with, but for what it is packed by."""
    found = [s for s in file.suffixes if s not in (".gz", ".bz2", ".xz", ".zst")]
    return found[-1].lower() if found else ""


def refuse_binary(file: Path) -> None:
    """Raise UserError if what a file begins with is no text in UTF-8."""
    with file.open("rb") as opened:
        head = opened.read(65536)
    if head[:2] in (b"\x1f\x8b", b"BZ") or head[:4] in (b"\xfd7zX", b"\x28\xb5\x2f\xfd"):
        return
    try:
        # a character may be cut at the end of what was read
        head[: len(head) - 4 if len(head) == 65536 else None].decode("utf-8", errors="strict")
        torn = False
    except UnicodeDecodeError as error:
        torn = error.start < len(head) - 8
    if b"\0" in head or torn:
        raise UserError(
            f"Cannot read {file}: it is binary, or not in UTF-8.",
            "Text must be UTF-8.",
            "Convert it, for instance with `iconv -t utf-8`, or give another file.",
        )


def load_files(reader: str, files: Sequence[Path], *, stream: bool = False) -> Dataset | IterableDataset:
    """Files of one ending as one dataset, with every row that is in them now.

    The library knows files that it has read by their paths and times alone, and a file can be replaced within both.
    What is in them names their place in its cache as well: to read that costs a hundredth of tokenising it.

    Args:
        reader: one of `READERS`.
        files: whatever their names are; brackets and stars are no patterns.
        stream: read on the fly.

    Raises:
        UserError: the first row of a table has more fields than its header, or the cache cannot be written to.
    """
    options: dict[str, Any] = {}
    if reader == "csv":
        # an empty cell is missing, and None or NA is a word
        options = {"keep_default_na": False, "na_values": [""]}
    if ending(files[0]) == ".tsv":
        # nothing is quoted there, so that a quote that opens a text would take in the rows up to the next one
        options |= {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    for file in files if reader == "csv" else ():
        first = pandas.read_csv(file, nrows=1, **options)
        if len(first) and not isinstance(first.index, pandas.RangeIndex):
            # a surplus field would be taken for the row's name, and no text at all
            raise UserError(
                f"Cannot read {file}: its first row has more fields than its header.",
                "Each field of a row must have a name above it.",
                "Put texts in quotes, or give them as .txt.",
            )
    names = [glob.escape(str(file)) for file in files]
    known_as = None if stream else _digest(files)
    with cache_explained():
        return datasets.load_dataset(reader, known_as, data_files=names, split="train", streaming=stream, **options)


@contextlib.contextmanager
def cache_explained() -> Iterator[None]:
    """Raise UserError in place of the library's error inside the block, if its cache cannot be written to."""
    folder = str(datasets.config.HF_DATASETS_CACHE)
    try:
        yield
    except Exception as error:
        # the library hides what the system said behind errors of its own, or meets others while it closes its files
        said: BaseException | None = error
        while said is not None and not (isinstance(said, OSError) and _of_cache(said, folder)):
            said = said.__cause__ or said.__context__
        if said is None:
            raise
        raise UserError(
            f"Cannot write to the cache of the datasets library, {folder}: {said}",
            "Text is kept there as it was read and as it was tokenised, so that both are done once.",
            "Make room there, and it writable, or set HF_HOME to a folder on another disk.",
        ) from error


def _of_cache(error: OSError, folder: str) -> bool:
    return error.errno in FULL or Path(str(error.filename)).is_relative_to(folder)


def _digest(files: Sequence[Path]) -> str:
    """What tells other content of files apart."""
    sums = []
    for file in files:
        with file.open("rb") as opened:
            sums.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:32]
