"""Where a run may lie, who works on it, and what is said of a save that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file

from homodistil.errors import UserError
from homodistil.rundir import RunDir, disk_failure, writing_folder


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_a_full_disk_is_told_from_a_place_that_cannot_be_written_to(number: int, kind: type[Exception]) -> None:
    """By the system's number, and by what safetensors says of it; room helps against the one alone."""
    words = os.strerror(number)
    error = OSError(number, words) if kind is OSError else kind(f"I/O error: {words} (os error {number})")
    said = disk_failure(Path("runs/x"), error)
    full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    assert ("room" in said.rule, "Make room" in said.remedy) == (full, full)
    assert ("written to" in said.rule, "writable" in said.remedy) == (not full, not full)
    assert "--resume" in said.remedy
    assert disk_failure(Path("x"), error, "or wait").remedy.endswith(", or wait.")


def test_what_is_made_first_says_that_a_folder_is_a_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while it is made leaves nothing that is neither new nor a run's."""
    made: list[bool] = []
    make = Path.mkdir

    def seen(path: Path, *rest: Any, **options: Any) -> None:
        if path.name == "checkpoints":
            made.append(run.recipe.exists())
        make(path, *rest, **options)

    run = RunDir(tmp_path / "deep" / "run")
    monkeypatch.setattr(Path, "mkdir", seen)
    run.create("teacher: x", "")
    assert made == [True]


def test_a_run_whose_name_is_not_in_utf_8_is_refused_before_it_starts(tmp_path: Path) -> None:
    """What saves tokenizers takes none, and would end the run at its first student."""
    with pytest.raises(UserError, match="not in UTF-8"):
        RunDir(tmp_path / os.fsdecode(b"r\xe9s")).refuse_taken()


def test_a_run_does_not_lie_in_the_folder_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However both are written; beside it, or beside a file, it may."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a cat")
    (tmp_path / "link").symlink_to(texts)
    monkeypatch.chdir(texts)
    for data in (str(texts), ".", "..", str(tmp_path / "link")):
        with pytest.raises(UserError, match="inside the folder of the data"):
            RunDir(Path("runs/half")).refuse_inside(data)
    RunDir(Path("../runs")).refuse_inside(str(texts))
    RunDir(tmp_path / "texts of mine").refuse_inside(str(texts))
    for data in (str(texts / "a.txt"), "someone/dataset", "x" * 300):
        RunDir(Path("runs/half")).refuse_inside(data)


WORKER = """
import sys, time
from pathlib import Path
from homodistil.rundir import RunDir

with RunDir(Path(sys.argv[1])).alone():
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_may_be_read_by_whoever_may_look_into_their_folder(mask: int, tmp_path: Path) -> None:
    """As any other file would be there: a student may be served by another user than the one who made it."""
    before = os.umask(mask)
    try:
        (tmp_path / "plain").touch()
        with writing_folder(tmp_path / "student") as folder:
            save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    written, plain = tmp_path / "student" / "model.safetensors", tmp_path / "plain"
    assert written.stat().st_mode & 0o777 == plain.stat().st_mode & 0o777


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and with nothing beside it; one that can be is replaced whole."""
    for text in ("first", "second"):
        with writing_folder(tmp_path / "student") as folder:
            (folder / "file").write_text(text)
        assert (tmp_path / "student" / "file").read_text() == text
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".writing"):
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="broken"), writing_folder(tmp_path / "student") as folder:
        (folder / "file").write_text("third")
    assert (tmp_path / "student" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_run_has_one_process_at_a_time(tmp_path: Path) -> None:
    """Another is refused until it ends, however it ends."""
    run = RunDir(tmp_path / "run")
    run.create("teacher: x", "")
    with subprocess.Popen([sys.executable, "-c", WORKER, str(run.path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match="another process works on it"), run.alone():
            pass
        other.kill()
    for end in (ValueError, None):
        with contextlib.suppress(ValueError), run.alone():
            if end is not None:
                raise end


@pytest.mark.parametrize("said", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError()])
def test_a_disk_without_locks_keeps_nobody_out(
    said: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some that clusters share are."""

    def none(*_: Any, **__: Any) -> None:
        raise said

    run = RunDir(tmp_path / "run")
    run.create("teacher: x", "")
    monkeypatch.setattr(FileLock, "acquire", none)
    with run.alone():
        entered = True
    assert entered
