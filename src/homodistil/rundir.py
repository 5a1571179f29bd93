"""A run's folder: what lies where, metrics, and writes that either happen whole or not at all. No torch."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

# of what cannot be looked at, Path.exists and Path.is_dir raise what the user would get to see
from os.path import exists, expanduser, isdir
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from homodistil.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room, of a user without a share of it, and of a file that may not be as large."""
RESUME = "then go on with `homodistil distil --resume` and the run's folder"


@dataclass(frozen=True)
class RunDir:
    """The paths of one run.

    recipe.yaml          the resolved recipe
    asked.yaml           what of it was asked for
    metrics.jsonl        one record a line, in the order of steps
    checkpoints/         the last two states, to resume from; gone when the run is finished
    students/<target>/   each a plain model folder
    units/<target>.json  the widths at the start, the teacher's units on each axis, which of them are left, and which
                         axes are nested in others
    vocabulary.json      where the vocabulary is trimmed: how many tokens the teacher has, and which of them are left
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def asked(self) -> Path:
        """What of the recipe was asked for."""
        return self.path / "asked.yaml"

    @property
    def metrics(self) -> Path:
        """The metrics, a JSON record a line."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def vocabulary(self) -> Path:
        """Which of the teacher's tokens are left."""
        return self.path / "vocabulary.json"

    def student(self, target: str) -> Path:
        """Where the student of a target is, or will be."""
        return self.path / "students" / target.strip().replace("/", "_")

    def units(self, target: str) -> Path:
        """How many units the teacher has on each axis, and which of them the student of a target kept."""
        return self.path / "units" / f"{self.student(target).name}.json"

    def refuse_taken(self) -> None:
        """Check that a new run may be made here.

        Raises:
            UserError: the folder holds another run already, or something else.
        """
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"Cannot start a run in {str(self.path)!r}: its name is not in UTF-8.",
                "Others' libraries save into the run's folder, and some of them take no other names.",
                "Give --out another name.",
            ) from error
        if exists(self.recipe):
            raise UserError(
                f"Cannot start a run in {self.path}: it holds one already.",
                "A run never overwrites another.",
                f"Go on with it by `homodistil distil --resume {self.path}`, or give --out a new name.",
            )
        if taken(self.path):
            raise UserError(
                f"Cannot start a run in {self.path}: something else is there.",
                "The run's folder must be new or empty, so that nothing is overwritten.",
                "Give --out a new name.",
            )

    def refuse_inside(self, data: str) -> None:
        """Check that the run would not lie in the folder that it reads.

        Raises:
            UserError: it would, and could not be resumed, because what it writes would be read as data.
        """
        if isdir(expanduser(data)) and self.path.resolve().is_relative_to(Path(expanduser(data)).resolve()):
            raise UserError(
                f"Cannot start a run in {self.path}: that is inside the folder of the data, {data}.",
                "All files of that folder are read as data, and a run's own must not be among them.",
                "Give --out a place outside of it, or --data a folder or a file that holds the data alone.",
            )

    def create(self, recipe_yaml: str, asked_yaml: str) -> None:
        """Make the folder of a new run.

        Raises:
            UserError: it is taken, or cannot be made.
        """
        self.refuse_taken()
        try:
            # first what says that the folder is a run's: a kill may come between the two
            write_text(self.recipe, recipe_yaml)
            write_text(self.asked, asked_yaml)
            self.checkpoints.mkdir()
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.path}: {error.strerror}.",
                "The run's folder must be on a disk that can be written to.",
                "Give --out another place.",
            ) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from working on the run inside the block; a process that dies lets go of it, too.

        On a disk without locks nobody is kept out.

        Raises:
            UserError: another one works on it.
        """
        # a kill may have come before they were made
        self.checkpoints.mkdir(exist_ok=True)
        lock = FileLock(self.checkpoints / "lock")
        # errors of a disk without locks; of one that cannot be written to at all, whoever writes tells
        with contextlib.suppress(OSError, NotImplementedError):
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError(
                    f"Cannot go on with the run in {self.path}: another process works on it.",
                    "A run is made by one process, or by those that were launched together.",
                    "Wait for its end, or stop it with Ctrl-C, on which it saves its state, and resume then. If there "
                    f"is none, remove {self.checkpoints / 'lock'}.",
                ) from error
        try:
            yield
        finally:
            lock.release()

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one record to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole records; a last line that a kill has torn is left out."""
        records = []
        for line in self.metrics.read_text().splitlines() if exists(self.metrics) else []:
            with contextlib.suppress(json.JSONDecodeError):
                records.append(json.loads(line))
        return records

    def rewind_metrics(self, step: int) -> None:
        """Drop what was recorded after `step`, as when a run goes on from a checkpoint of that step."""
        kept = [r for r in self.read_metrics() if r["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in kept))


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `path` when the block ends, and vanishes if it fails.

    Files are on the disk before the name is, so that a power cut leaves the old folder or the new one or, for a moment,
    neither, but never a torn one. Whoever may look into the folder may read them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{what}") for what in ("writing", "old"))
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        readers = temporary.stat().st_mode & 0o666
        for file in (f for f in temporary.rglob("*") if f.is_file()):
            if file.stat().st_mode & 0o666 != readers:
                # safetensors writes files that nobody else may read
                file.chmod(readers)
            _sync(file)
        # moved away before it is deleted, which takes a while
        if exists(path):
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if exists(old) and not exists(path):
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    r"""Replace a file's content in one step.

    In UTF-8, whatever the machine writes by itself; of names that are no text, what is none stands as `\udce9`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    _sync(temporary)
    temporary.replace(path)


def taken(path: Path) -> bool:
    """Whether something is there already, where a folder must be new or empty."""
    return exists(path) and (not path.is_dir() or any(path.iterdir()))


def disk_failure(path: Path, error: Exception, then: str = RESUME) -> UserError:
    """A failed save, in our three sentences.

    Args:
        path: what was to be saved.
        error: what the system said, or safetensors.
        then: what to do as soon as there is room, or the place can be written to.
    """
    # safetensors has no number of the error, but the same words
    full = any(os.strerror(number) in str(error) for number in FULL)
    return UserError(
        f"Cannot save to {path}: {error}",
        f"A save needs {'room on the disk' if full else 'a place that can be written to'}; what was saved before is "
        "still whole.",
        f"Make {'room' if full else 'it writable'}, {then}.",
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
