"""Finding the user's text: files, folders, datasets and streams all become a dataset with one text column."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

# of what cannot be looked at, Path.exists raises what the user would get to see
from os.path import exists, expanduser
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets import Dataset, IterableDataset

from homodistil.errors import UserError, first_line, reason
from homodistil.files import READERS, cache_explained, ending, files_of, load_files, refuse_binary


def open_text(
    data: str, column: str, *, target: str | None = None, stream: bool = False, options: str = "--text."
) -> Dataset | IterableDataset:
    """A dataset whose column `column` holds text, and `target`, if it is named, as well.

    Args:
        data: a file, a folder of files of one kind, a saved dataset, or a hub dataset (`name` or `name:config`, its
            split `train`).
        column: the text column; plain text files have no columns.
        target: a second one.
        stream: read on the fly.
        options: what the names of the columns begin with on the command line.

    Raises:
        UserError: nothing is there, it is empty, binary or torn, or it has no such split or column.
    """
    opened = _opened(data, column, stream, f"{options}column")
    return opened if target is None else _checked(opened, data, target, f"{options}target")


def _opened(data: str, column: str, stream: bool, option: str) -> Dataset | IterableDataset:
    path = Path(expanduser(data))
    if not exists(path):
        return _checked(from_hub(data, stream), data, column, option)
    if (saved := from_disk(path)) is not None:
        return _checked(saved.to_iterable_dataset() if stream else saved, data, column, option)
    files = files_of(path)
    reader = READERS.get(ending(files[0]), "text")
    if reader in ("text", "json", "csv"):
        for file in files:
            refuse_binary(file)
    try:
        opened = load_files(reader, files, stream=stream)
        if reader == "text":
            return opened if column == "text" else opened.rename_column("text", column)
        return _checked(opened, data, column, option)
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        raise UserError(
            f"Cannot read {data} as {reader}: {reason(error)}",
            f"A file ending in {ending(files[0])} must be whole, valid {reader}.",
            "Correct the file, or give its text as .txt.",
        ) from error


def strings(texts: Iterable[Any]) -> Iterator[str]:
    """Texts in memory, one after the other; None is passed over.

    Raises:
        UserError: one of them is something else than a string, or cannot be written in UTF-8, or what gives them fails.
    """
    reading = iter(texts)
    for number in itertools.count():
        try:
            text = next(reading)
        except StopIteration:
            return
        except Exception as error:  # it is the user's own, and may raise anything
            raise UserError(
                f"Cannot read item {number} of the data: {type(error).__name__}: {first_line(error)}",
                "What gives texts in memory must give them to its end, or to that of the run.",
                "Mend it, or write the texts to a file and give that.",
            ) from error
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(
                f"Cannot read item {number} of the data: it is a {type(text).__name__}.",
                "Data in memory are texts, each a string.",
                "Give them alone, such as `data=dataset['text']`, or save the dataset and give its folder.",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"Cannot read item {number} of the data: half of a character stands at its place {error.start}.",
                "Texts must be whole characters, which can be written in UTF-8.",
                "Replace halves by text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').",
            ) from error
        yield text


def counted(texts: Iterable[Any]) -> bool:
    """Whether texts in memory have a number and places, as lists, arrays and columns do."""
    return all(hasattr(type(texts), name) for name in ("__len__", "__getitem__"))


def dataset_of(texts: Iterable[Any], column: str) -> Dataset:
    """Texts in memory as a dataset, copied; see `strings`."""
    every = strings(texts)
    # in parts, because each process that tokenises is sent whole ones
    parts = iter(lambda: list(itertools.islice(every, 1000)), [])
    return Dataset(pyarrow.table({column: pyarrow.chunked_array(parts, pyarrow.string())}))


def each_text(rows: Iterable[Mapping[str, Any]], column: str, data: object) -> Iterator[str]:
    """The texts of a column, one after the other; a row without one is passed over. See `each_row`."""
    return (text for (text,) in each_row(rows, [column], data) if isinstance(text, str))


def each_row(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], data: object) -> Iterator[tuple[Any, ...]]:
    """What stands in some columns, a row after the other.

    Args:
        rows: a dataset, read whole or on the fly.
        columns: those that are read.
        data: what the user calls it.

    Raises:
        UserError: a row cannot be read.
    """
    reading = iter(rows)
    while True:
        try:
            row = next(reading)
            found = tuple(row[column] for column in columns)
        except StopIteration:
            return
        except Exception as error:  # the library raises whatever its readers raise
            raise UserError(
                f"Cannot read {data} to its end: {reason(error)}",
                "All of it must be whole, in UTF-8, and with the same columns.",
                "Correct the file, or take it out.",
            ) from error
        yield found


def some_texts(data: str | Iterable[Any], column: str, count: int, *, stream: bool) -> list[str] | None:
    """Some texts, evenly spaced where they have places, and otherwise the first; None if they can be read only once.

    Args:
        data: as `open_text` takes it, or the texts themselves.
        column: the text column.
        count: how many at most.
        stream: read on the fly.

    Raises:
        UserError: they cannot be found or read.
    """
    if isinstance(data, str):
        opened = open_text(data, column, stream=stream)
        if isinstance(opened, Dataset) and len(opened) > count:
            opened = opened.select(range(0, len(opened), -(-len(opened) // count)))
        return list(itertools.islice(each_text(opened, column, data), count))
    if iter(data) is data:
        return None
    return list(itertools.islice(strings(data), count))


def from_disk(path: Path) -> Dataset | None:
    """The dataset that `save_to_disk` wrote into a folder, of one in splits its `train`; None if there is none.

    Raises:
        UserError: it is not whole, or has no such split.
    """
    marks = [name for name in ("dataset_dict.json", "dataset_info.json") if (path / name).exists()]
    if not marks:
        return None
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises whatever its readers raise
        raise UserError(
            f"Cannot open the saved dataset {path}: {reason(error)}",
            f"A folder with a {marks[0]} must be a dataset as `save_to_disk` wrote it, whole.",
            f"Save it again, or take the {marks[0]} out if the folder holds other files to read.",
        ) from error
    if isinstance(saved, Dataset):
        return saved
    if "train" not in saved:
        raise UserError(
            f"Cannot find the split train in {path}: it has {', '.join(saved) or 'none'}.",
            "A saved dataset in splits is read from the one called train.",
            f"Give the folder of a split, for example {path / next(iter(saved), 'train')}.",
        )
    return saved["train"]


def from_hub(data: str, stream: bool) -> Dataset | IterableDataset:
    """The split `train` of a hub dataset, `name` or `name:config`.

    Raises:
        UserError: it cannot be found or reached, or the cache not be written to.
    """
    name, _, config = data.partition(":")
    try:
        if data.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in READERS:
            raise FileNotFoundError("there is no such file or folder")
        with cache_explained():
            return datasets.load_dataset(name, config or None, split="train", streaming=stream)
    except UserError:
        raise
    except Exception as error:  # offline, unknown, gated, without this split: all have their own type
        raise UserError(
            f"Cannot find the data {data}: {first_line(error)}",
            "The data must be a file or folder that exists, or a dataset on a hub that can be reached.",
            "Check the path, or download the dataset and give its folder.",
        ) from error


def _checked(opened: Dataset | IterableDataset, data: str, column: str, option: str) -> Dataset | IterableDataset:
    columns = opened.column_names
    if columns is None:
        columns = list(next(iter(opened), {}))
    if column not in columns:
        raise UserError(
            f"Cannot find the column {column!r} in {data}.",
            f"The data must have a column of text; its columns are {', '.join(columns) or 'none'}.",
            f"Name it with {option}, for example {option} {columns[0] if columns else 'text'}.",
        )
    first = next((v for v in (row[column] for row in itertools.islice(opened, 100)) if v is not None), "")
    if not isinstance(first, str):
        raise UserError(
            f"Cannot read the column {column!r} of {data}: it holds {type(first).__name__}.",
            "The column must hold text.",
            f"Name another one with {option}; there are {', '.join(columns)}.",
        )
    return opened
