"""One self-contained HTML page out of run folders, and its pictures as files. No torch."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from homodistil.errors import UserError
from homodistil.report import curves
from homodistil.report.tables import written
from homodistil.rundir import RunDir, write_text


@dataclass
class _Section:
    """A run on the page."""

    name: str
    facts: list[tuple[str, str]]
    header: list[str]
    lines: list[list[str]]
    pictures: dict[str, str] = field(default_factory=dict)


def report(runs: Sequence[Path], evaluations: Sequence[Path], out: Path) -> Path:
    """Write `out/index.html`, which needs no other file, and each of its pictures as a PNG beside it.

    Args:
        runs: folders of runs; `evaluation.json` inside is read as well.
        evaluations: files that `homodistil evaluate --json` wrote.
        out: a folder; what it holds of an earlier report is replaced.

    Returns:
        The page.

    Raises:
        UserError: a folder holds no run, or a file no evaluation.
    """
    names = _names(runs)
    sections = [_section(run, names[run], out) for run in runs]
    files = [*evaluations, *(f for run in runs if (f := run / "evaluation.json").exists())]
    records = [record for file in files for record in _records(file)]
    figure = curves.quality(records) if records else None
    quality = _saved(figure, out / "quality.png") if figure else None
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)
    header, lines = written(records) if records else ([], [])
    page = template.render(sections=sections, quality=quality, header=header, lines=lines)
    write_text(out / "index.html", page)
    return out / "index.html"


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
    facts += [(width, f"{metrics[0]['widths'][width]} to {now}") for width, now in last["widths"].items()]
    held = [r for r in metrics if "heldout" in r]
    measures = list(dict.fromkeys(k for r in held for k in r["heldout"]))
    lines = [
        [str(r["step"]), r.get("target", ""), str(r["widths"]["hidden"])]
        + [f"{r['heldout'][m]:.4f}" if m in r["heldout"] else "" for m in measures]
        for r in held
    ]
    section = _Section(name, facts, ["step", "target", "hidden", *measures], lines)
    section.pictures["Losses, discrepancy and widths"] = _saved(curves.path(metrics), out / f"{name}-path.png")
    for file in sorted((run / "units").glob("*.json")):
        said: Mapping[str, Any] = json.loads(file.read_text())
        picture = curves.units(said["kept"], said["teacher"])
        section.pictures[f"Units that are left at {file.stem}"] = _saved(picture, out / f"{name}-units-{file.stem}.png")
    return section


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        records: list[dict[str, Any]] = json.loads(file.read_text())["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Cannot report on {file}: it holds no evaluation.",
            "An evaluation is a file that `homodistil evaluate --json` wrote.",
            "Check the path.",
        ) from error
    return records


def _saved(figure: Figure, file: Path) -> str:
    """Save a picture, and return it as an address that holds the picture itself."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    file.write_bytes(content.getvalue())
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """A file name for each run, of as many of its folders as tell it apart."""
    parts = 1
    while True:
        names = {run: "-".join(run.resolve().parts[1:][-parts:]) for run in runs}
        if len(set(names.values())) == len(set(runs)) or parts > 50:
            return names
        parts += 1


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>HomoDistil: {{ sections | map(attribute="name") | join(", ") }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1b2a41; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #d8dee9; padding-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e9f0; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.2rem 0; } figcaption { font-weight: 600; } img { max-width: 100%; }
dl { display: flex; flex-wrap: wrap; gap: .3rem 2rem; } dt { font-weight: 600; } dd { margin: 0 0 0 .5rem; } dl div { display: flex; }
</style>
</head>
<body>
<h1>HomoDistil</h1>
{% if lines %}
<h2>Evaluation</h2>
<table>
<thead><tr>{% for cell in header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in lines %}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% if quality %}
<figure><figcaption>Quality against size; the dashed line is the teacher</figcaption><img alt="Quality against size" src="{{ quality }}"></figure>
{% endif %}
{% for section in sections %}
<h2>{{ section.name }}</h2>
<dl>{% for name, fact in section.facts %}<div><dt>{{ name }}</dt><dd>{{ fact }}</dd></div>{% endfor %}</dl>
{% for caption, picture in section.pictures.items() %}
<figure><figcaption>{{ caption }}</figcaption><img alt="{{ caption }}" src="{{ picture }}"></figure>
{% endfor %}
{% if section.lines %}
<p>On held-out text:</p>
<table>
<thead><tr>{% for cell in section.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in section.lines %}
<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% endfor %}
</body>
</html>
"""
