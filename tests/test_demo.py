"""The demo refuses what it cannot use before it has done anything. `make demo` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from homodistil import demo as module
from homodistil.cli import main
from homodistil.demo import demo
from homodistil.errors import UserError


def test_tokens_that_cannot_be_read_are_refused_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is left behind."""
    monkeypatch.setattr(module, "fetch", lambda name: pytest.fail(f"{name} was fetched"))
    assert main(["demo", "--tokens", "lots", "--out", str(tmp_path / "run")]) == 2
    assert "lots" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where a folder must be, as no user may write below one."""
    text = tmp_path / "leads.txt"
    text.write_text("a text\n" * 500)
    monkeypatch.setattr(module, "fetch", lambda name: text)
    with pytest.raises(UserError, match=r"leads\.txt") as refusal:
        demo(str(text / "run"), "1k")
    assert "run the demo again" in str(refusal.value)


def test_the_folder_that_one_is_in_may_be_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text that is learnt from lies beside it, under its name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = tmp_path / "leads.txt"
    text.write_text("a text\n" * 500)
    monkeypatch.setattr(module, "fetch", lambda name: text)
    with pytest.raises(UserError, match="Cannot load the teacher"):
        demo(".", "1k")
    assert (tmp_path / "here-text" / "learn.txt").exists()
