"""What was measured: one record a measurement, kept in a JSON file so that nothing finished is measured twice."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from homodistil.errors import UserError
from homodistil.evaluation.models import local, module_folders, weight_files
from homodistil.rundir import disk_failure, write_text

Record = dict[str, Any]
"""`model` (a folder's absolute path, or a hub name), `identity`, `role` (model or teacher), `measure`, `seed` (None
where nothing is drawn), `settings`, `values` and `seconds`."""


class Records:
    """Records in memory and, if a file is given, on the disk after each of them.

    Args:
        file: where they are kept; what it holds already is not measured again.
        teacher: the model whose records are marked as the teacher's.
        say: told what is being measured.

    Raises:
        UserError: the file holds no evaluation, or cannot be in this place.
    """

    def __init__(self, file: Path | None, teacher: str | None, say: Callable[[str], None]) -> None:
        self.file, self.teacher, self.say = file, teacher, say
        self.known: list[Record] = _read(file) if file else []
        self.used: list[Record] = []

    def measure(
        self,
        model: str,
        measure: str,
        settings: Mapping[str, Any],
        compute: Callable[[], Mapping[str, float]],
        *,
        seed: int | None = None,
    ) -> dict[str, float]:
        """Measure once: take the values from the file if the same model was measured with the same settings."""
        key = {"model": _named(model), "identity": identity(model), "measure": measure, "seed": seed}
        key["settings"] = json.loads(json.dumps(settings))
        role = "teacher" if model == self.teacher else "model"
        found = next((r for r in self.known if all(r.get(k) == v for k, v in key.items())), None)
        if found is None:
            self.say(f"{Path(_named(model)).name}: {measure}" + ("" if seed is None else f", seed {seed}"))
            started = time.perf_counter()
            values = {k: float(v) for k, v in compute().items()}
            found = {**key, "values": values, "seconds": round(time.perf_counter() - started, 2), "role": role}
            self._keep(found)
        elif found.get("role") != role or any(_replaces(r, found) for r in self.known[self.known.index(found) :]):
            found["role"] = role
            self._keep(found)
        self.used.append(found)
        measured: dict[str, float] = found["values"]
        return measured

    def _keep(self, record: Record) -> None:
        """Put a record at the end: what was asked for last is what counts in a report."""
        self.known = [*(r for r in self.known if r is not record), record]
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_name(f".{self.file.name}.lock")):
                # what another evaluation has kept there meanwhile
                known = {_key(r) for r in self.known}
                self.known = [*(r for r in _read(self.file) if _key(r) not in known), *self.known]
                write_text(self.file, json.dumps({"machine": machine(), "records": self.known}, indent=1) + "\n")
        except OSError as error:
            raise disk_failure(self.file, error, "or give --json another place, and evaluate again") from error


def _key(record: Record) -> str:
    return json.dumps([record.get(name) for name in ("model", "identity", "measure", "seed", "settings")])


def _replaces(later: Record, record: Record) -> bool:
    """Whether another record is of the same measure and seed, with another model in its place or other settings."""
    return later is not record and all(later.get(k) == record.get(k) for k in ("model", "measure", "seed"))


def digest(rows: Iterable[object]) -> str:
    """What tells two data sets with one name apart."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(repr(row).encode())
    return whole.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Where numbers were measured."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


_READ = (
    *("*config*.json", "modules.json", "tokenizer.json", "vocab.*", "merges.txt", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "*.py"),
)
"""What else than weights makes a model's numbers: configurations, prompts, modules, tokenizer, processor, own code."""


def identity(model: str) -> str:
    """What tells two models with one name apart: a digest of all that is read of a folder; the name, from the hub."""
    folder = Path(local(model))
    places = {folder, *module_folders(model)}
    files = {
        file for place in places for file in (*weight_files(place), *(f for name in _READ for f in place.glob(name)))
    }
    digest = hashlib.sha256(b"" if files else model.encode())
    for file in sorted(files):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


def _named(model: str) -> str:
    """What a model is called in records: a folder alike from whichever folder it is evaluated."""
    path = local(model)
    return os.path.abspath(path) if os.path.exists(path) else model


def _read(file: Path) -> list[Record]:
    if not os.path.exists(file):
        above = next(place for place in file.absolute().parents if place.exists())
        if not above.is_dir():
            raise UserError(
                f"Cannot keep numbers in {file}: {above} is no folder.",
                "A file given with --json lies in a folder, which is made where there is none.",
                "Give another path.",
            )
        return []
    try:
        records: list[Record] = json.loads(file.read_text())["records"]
        if not all(isinstance(record["model"], str) for record in records):
            raise ValueError("its records are none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Cannot go on with {file}: it holds no evaluation.",
            "A file given with --json is new, or was written by `homodistil evaluate`, whose numbers are kept.",
            "Give it another name.",
        ) from error
    return records
