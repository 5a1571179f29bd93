"""Pictures out of a run's folder and out of evaluations: where it went, what stayed, what it is worth. No torch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from homodistil.reports.tables import Record, roles, rows

Metrics = Sequence[Mapping[str, Any]]

INK = "#1b2a41"
SERIES = ("#1f6feb", "#d1495b", "#2a9d8f", "#8d6a9f", "#e09f3e", "#5c677d")
_TITLE = 40
"""Letters that fit above a panel."""
_COUNTED = ("parameters", "file_bytes", "flops_per_token", "latency_ms", "sequences_per_second", "learning_rate")


def path(metrics: Metrics, start: Mapping[str, int]) -> Figure:
    """Losses, discrepancy and held-out losses over the steps, and the widths beneath them.

    Args:
        metrics: a run's records.
        start: the widths that it started with.
    """
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = [r["step"] for r in metrics]
    above.plot(steps, [r["discrepancy"] for r in metrics], color=INK, linewidth=2, label="discrepancy, weighted")
    for name, color in zip(dict.fromkeys(t for r in metrics for t in r["terms"]), SERIES, strict=False):
        above.plot(steps, [r["terms"].get(name, math.nan) for r in metrics], color=color, linewidth=1, label=name)
        held = [(r["step"], r["heldout"][name]) for r in metrics if name in r.get("heldout", {})]
        if held:
            above.plot(*zip(*held, strict=True), "o", color=color, markersize=4, label=f"{name}, held out")
    above.set_yscale("log")
    above.set_ylabel("loss")
    above.legend(fontsize=8, ncols=2, frameon=False)
    for name, color in zip(start, SERIES, strict=False):
        shares = [1.0, *(r["widths"][name] / start[name] for r in metrics)]
        below.step([0, *steps], shares, where="post", color=color, label=f"{name}, of {start[name]}")
    below.set_ylim(0, 1.05)
    below.set_ylabel("width, share of the start's")
    below.legend(fontsize=8, ncols=4, frameon=False)
    below.set_xlabel("step")
    for record in metrics:
        if "target" in record:
            for axes in (above, below):
                axes.axvline(record["step"], color=INK, linewidth=0.7, linestyle=":")
            below.annotate(f" {record['target']}", (record["step"], 0.02), fontsize=8, ha="right", color=INK)
    return _plain(figure)


def units(kept: Mapping[str, Sequence[Any]], teacher: Mapping[str, int], parent: Mapping[str, str]) -> Figure:
    """Which of the teacher's units are left: a panel for each kind of axis, a row for each layer.

    Args:
        kept: for each axis the teacher's indices, (units,) or (parent units, units); under `layers` which of its
            layers are left, drawn if some left. Axes of layers that left are not named, and their rows are empty.
        teacher: for each axis how many units the teacher has, of a nested one in each parent unit.
        parent: for each nested axis the one that it is nested in; without it its units have no place, and are not
            drawn.
    """
    kinds: dict[str, list[str]] = {}
    for axis in kept:
        placed = axis in parent or np.ndim(kept[axis]) == 1
        if placed and (axis != "layers" or len(kept[axis]) < teacher[axis]):
            kinds.setdefault(axis.partition(".")[0], []).append(axis)
    heights = [max(1.0, 0.28 * len(axes)) for axes in kinds.values()]
    figure = Figure(figsize=(9, 0.9 * len(kinds) + sum(heights)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (kind, axes) in zip(panels, kinds.items(), strict=True):
        rows = {a.partition(".")[2]: _row(a, kept, teacher, parent) for a in axes}
        if "" not in rows:
            left = [int(layer) for layer in rows]
            empty = np.zeros_like(next(iter(rows.values())))
            rows = {str(k): rows.get(str(k), empty) for k in range(teacher.get("layers", max(left) + 1))}
        picture = np.array(list(rows.values()))
        panel.imshow(picture, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1)
        stay = picture.mean()
        nested = ", head after head" if axes[0] in parent else ""
        panel.set_title(f"{kind}: {stay:.0%} left{nested}", fontsize=9, loc="left")
        panel.set_yticks(range(len(rows)), [layer or "all" for layer in rows], fontsize=7)
        panel.set_ylabel("layer", fontsize=8)
        panel.tick_params(axis="x", labelsize=7)
    panels[-1].set_xlabel("units at the start; dark ones are left")
    return _plain(figure)


def quality(records: Sequence[Record]) -> Figure | None:
    """Each measure that compares against the number of parameters, the teacher as a line; None if there is none."""
    gathered = rows(records)
    sizes = next((r.cells for r in gathered if r.value == "parameters"), {})
    teachers = {model for model, role in roles(records).items() if role == "teacher"}
    measures = [r for r in gathered if r.comparable and r.value in _drawn(r.measure, gathered)]
    drawn = [r for r in measures if any(m in sizes for m in r.cells)]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, row in zip(panels, drawn, strict=False):
        for model, cell in row.cells.items():
            if model in teachers:
                panel.axhline(cell.mean, color=INK, linewidth=1, linestyle="--", label="teacher")
        points = [(sizes[m].mean / 1e6, c) for m, c in row.cells.items() if m in sizes and m not in teachers]
        if points:
            x, cells = zip(*sorted(points, key=lambda point: point[0]), strict=True)
            panel.errorbar(
                x,
                [c.mean for c in cells],
                yerr=[c.deviation for c in cells],
                fmt="o-",
                color=SERIES[0],
                capsize=3,
                markersize=5,
            )
        # a name may hold dollars, which would be read as formulas
        title = textwrap.fill(f"{row.measure}: {row.value.replace('_', ' ')}", _TITLE)
        panel.set_title(title, fontsize=9, parse_math=False)
        panel.set_xlabel("million parameters", fontsize=8)
        panel.tick_params(labelsize=7)
    for panel in list(figure.axes)[len(drawn) :]:
        panel.remove()
    return _plain(figure)


def _drawn(measure: str, gathered: Sequence[Any]) -> list[str]:
    """The values of a measure that are worth a picture: its score where it has one, otherwise all but sizes."""
    values = [r.value for r in gathered if r.measure == measure and r.value not in _COUNTED]
    return ["score"] if "score" in values else values


def _row(
    axis: str, kept: Mapping[str, Sequence[Any]], teacher: Mapping[str, int], parent: Mapping[str, str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 where a unit is left; of a nested axis those in each of the teacher's parent units, one after the other."""
    outer = parent.get(axis)
    picture = np.zeros((teacher[outer] if outer else 1, teacher[axis]))
    for place, ids in zip(kept[outer] if outer else [0], np.atleast_2d(kept[axis]), strict=True):
        picture[place, ids] = 1.0
    return picture.reshape(-1)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
