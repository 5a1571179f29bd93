"""Assets: pinned, checked, cached, and refused in words."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from homodistil import assets, pinned
from homodistil.errors import UserError


def _wheel(folder: Path) -> Path:
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        # a fixed date, so that the file is the same each time
        archive.writestr(zipfile.ZipInfo("thing/text.txt", (2020, 1, 1, 0, 0, 0)), "hello")
    return path


def _pinned(sha256: str) -> pinned.Asset:
    def unpack(wheel: Path, place: Path) -> None:
        (place / "text.txt").write_text((wheel / "thing" / "text.txt").read_text())

    return pinned.Asset(wheels={"thing": sha256}, version="1.0", unpack=unpack, result="text.txt", licence="none")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that hands out a wheel of ours; the commands that it was asked."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        _wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("HOMODISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    return asked


@pytest.fixture
def digest(tmp_path: Path) -> str:
    """The SHA-256 of the wheel that the index hands out."""
    (tmp_path / "same").mkdir()
    return hashlib.sha256(_wheel(tmp_path / "same").read_bytes()).hexdigest()


def test_an_asset_is_fetched_once(monkeypatch: pytest.MonkeyPatch, index: list[list[str]], digest: str) -> None:
    """The second use reads the cache."""
    monkeypatch.setitem(pinned.ASSETS, "thing", _pinned(digest))
    assert assets.fetch("thing").read_text() == "hello"
    assert assets.fetch("thing").read_text() == "hello"
    assert len(index) == 1
    assert "--no-deps" in index[0]
    assert index[0][-1] == "thing==1.0"


def test_an_asset_of_several_wheels_is_fetched_whole(
    monkeypatch: pytest.MonkeyPatch, index: list[list[str]], digest: str
) -> None:
    """Each of them in its pinned version, and each is checked."""
    asset = _pinned(digest)
    monkeypatch.setitem(pinned.ASSETS, "thing", replace(asset, wheels={"first": digest, "second": digest}))
    assert assets.fetch("thing").read_text() == "hello"
    assert [command[-1] for command in index] == ["first==1.0", "second==1.0"]
    monkeypatch.setitem(pinned.ASSETS, "other", replace(asset, wheels={"first": digest, "second": "0" * 64}))
    with pytest.raises(UserError, match=f"Cannot use other.*{digest}"):
        assets.fetch("other")


def test_a_filled_cache_need_not_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: list[list[str]], digest: str
) -> None:
    """One that was copied to where all may read it; `~` is the home, and nothing is locked there."""
    monkeypatch.setitem(pinned.ASSETS, "thing", _pinned(digest))
    assets.fetch("thing")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOMODISTIL_CACHE", "~/cache")
    (tmp_path / "cache" / "thing.lock").unlink()
    assert assets.fetch("thing").read_text() == "hello"
    assert not (tmp_path / "cache" / "thing.lock").exists()
    assert len(index) == 1


def test_a_cache_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: list[list[str]], digest: str
) -> None:
    """By the variable that names another one."""
    monkeypatch.setitem(pinned.ASSETS, "thing", _pinned(digest))
    (tmp_path / "file").write_text("words")
    monkeypatch.setenv("HOMODISTIL_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="another place by HOMODISTIL_CACHE"):
        assets.fetch("thing")


def test_another_wheel_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: list[list[str]], digest: str
) -> None:
    """A wheel with another SHA-256 is not unpacked, and nothing of it stays."""
    monkeypatch.setitem(pinned.ASSETS, "thing", _pinned("0" * 64))
    with pytest.raises(UserError, match=digest):
        assets.fetch("thing")
    assert not list((tmp_path / "cache").glob("thing-*"))


def test_without_index_and_cache_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    """A pip that fails is quoted, and both ways out are named."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found\n")

    monkeypatch.setenv("HOMODISTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setitem(pinned.ASSETS, "thing", _pinned(digest))
    with pytest.raises(UserError, match=r"(?s)No matching distribution.*index.*HOMODISTIL_CACHE"):
        assets.fetch("thing")


def test_an_unknown_asset_is_refused_with_the_nearest_name() -> None:
    """A typing error is answered with what was probably meant."""
    with pytest.raises(UserError, match="minilm"):
        assets.fetch("minilmm")
