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
