"""One self-contained HTML page out of run folders, and its pictures as files. No torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from homodistil.errors import UserError
from homodistil.kinds import Names, several
from homodistil.reports import curves
from homodistil.reports.tables import Record, written
from homodistil.rundir import RunDir, disk_failure

_FIELDS = {"model": str, "role": str, "measure": str, "values": dict}
"""What a record has, for it to be shown."""


@dataclass
class _Section:
    """A run on the page."""

    name: str
    facts: list[tuple[str, str]]
    header: list[str]
    lines: list[list[str]]
    pictures: dict[str, str] = field(default_factory=dict)


def report(runs: Names, evaluations: Names = (), out: str | PathLike[str] = "report") -> Path:
    """Write `out/index.html`, which needs no other file, and each of its pictures as a PNG beside it.

    Args:
        runs: the folder of a run, or several; `evaluation.json` inside is read as well.
        evaluations: a file, or several, that `homodistil evaluate --json` wrote.
        out: a folder; what it holds of an earlier report is replaced.

    Returns:
        The page.

    Raises:
        UserError: a folder holds no run, a file no evaluation or no units, or `out` cannot be written to.
    """
    runs, evaluations = ([Path(expanduser(path)) for path in several(given)] for given in (runs, evaluations))
    out = Path(expanduser(out))
    names = _names(runs)
    sections = [_section(run, names[run], out) for run in runs]
    files = [*evaluations, *(f for run in runs if (f := run / "evaluation.json").exists())]
    records = [record for file in files for record in _records(file)]
    figure = curves.quality(records) if records else None
    quality = _saved(figure, out / "quality.png") if figure else None
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = pages.get_template("page.html")
    header, lines = written(records) if records else ([], [])
    page = template.render(sections=sections, quality=quality, header=header, lines=lines)
    return _write(out / "index.html", page.encode())


def _section(run: Path, name: str, out: Path) -> _Section:
    folder = RunDir(run)
    metrics = [r for r in folder.read_metrics() if "discrepancy" in r]
    if not metrics:
        raise UserError(
            f"Cannot report on {run}: it holds no metrics of a run.",
            "A run's folder holds metrics.jsonl, which `homodistil distil` writes from its first steps on.",
            "Check the path, or wait until the run has logged its first steps.",
        )
    last = metrics[-1]
    facts = [("steps", f"{last['step']:,}"), ("tokens", f"{last['tokens']:,}")]
    start = metrics[0]["start"]
    facts += [(width, f"{start[width]} to {now}") for width, now in last["widths"].items()]
    held = [r for r in metrics if "heldout" in r]
    measures = list(dict.fromkeys(k for r in held for k in r["heldout"]))
    lines = [
        [str(r["step"]), r.get("target", ""), str(r["widths"]["hidden"])]
        + [f"{r['heldout'][m]:.4f}" if m in r["heldout"] else "" for m in measures]
        for r in held
    ]
    section = _Section(name, facts, ["step", "target", "hidden", *measures], lines)
    section.pictures["Losses, discrepancy and widths"] = _saved(curves.path(metrics, start), out / f"{name}-path.png")
    for file in sorted((run / "units").glob("*.json")):
        caption, picture = _units(file)
        section.pictures[caption] = _saved(picture, out / f"{name}-units-{file.stem}.png")
    return section


def _units(file: Path) -> tuple[str, Figure]:
    """Which units a target kept: a line, and the picture."""
    try:
        said = json.loads(file.read_text())
        picture = curves.units(said["kept"], said["teacher"], said["parent"])
        left, of = said["kept"].get("layers", []), said["teacher"].get("layers", 0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"Cannot report on {file}: it does not say which units are left.",
            "It must be as the run wrote it when it reached the target.",
            "Delete it, and make the report without its picture.",
        ) from error
    caption = f"Units that are left at {file.stem}"
    if len(left) < of:
        caption += f", in layer{'s' * (len(left) > 1)} {', '.join(map(str, left))} of 0 to {of - 1}"
    return caption, picture


def _records(file: Path) -> list[Record]:
    try:
        records: list[Record] = json.loads(file.read_text())["records"]
        for record in records:
            held: list[tuple[Any, Any]] = [(record[name], kind) for name, kind in _FIELDS.items()]
            held += [(record.get("settings", {}), dict), *((value, int | float) for value in record["values"].values())]
            if not all(isinstance(value, kind) for value, kind in held):
                raise ValueError("its records are none")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Cannot report on {file}: it holds no evaluation.",
            "An evaluation is a file that `homodistil evaluate --json` wrote.",
            "Check the path.",
        ) from error
    return records


def _saved(figure: Figure, file: Path) -> str:
    """Save a picture, and return it as an address that holds the picture itself."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    _write(file, content.getvalue())
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _write(file: Path, content: bytes) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise disk_failure(file, error, "or give --out another place, and make the report again") from error
    return file


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """A file name for each run, of as many of its folders as tell it apart."""
    parts = 1
    while True:
        names = {run: "-".join(run.resolve().parts[1:][-parts:]) for run in runs}
        if len(set(names.values())) == len(set(runs)):
            return names
        if parts > 50:
            # as of a-b/c and a/b-c
            return {run: f"{name}-{k + 1}" for k, (run, name) in enumerate(names.items())}
        parts += 1
