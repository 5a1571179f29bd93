"""The comparison of `quality.py` as tables and pictures.

    python benchmarks/quality_tables.py                                     # mean and standard error over seeds
    python benchmarks/quality_tables.py --main                              # the main measures alone, an arm a row
    python benchmarks/quality_tables.py --figures docs/figures --work runs/quality

Pictures are the arms' measures, those against the budget where there are several, and, where --work still holds the
records of runs, the losses along their paths.
"""

from __future__ import annotations

import argparse
import io
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from PIL import Image

from harness import RESULTS
from homodistil.reports.curves import INK, SERIES
from homodistil.reports.tables import markdown
from quality import SEEDS, finished, metrics_of, path_of
from quality_arms import ARMS, TEACHER, Run, budget

COUNTED = ("seconds", "parameters")
DRAWN = {
    "minilm": ("stsb test: spearman", "held-out text: similarity"),
    "rxnfp": ("held-out text: masked accuracy", "held-out text: kl"),
    "rxnmapper": ("held-out text: products mapped",),
}
"""The measures that the pictures show, of each teacher."""
TASKS_MEAN = "GLUE, four tasks"
TASKS_OF_MEAN = ("stsb", "mrpc", "cola", "sst2")
"""Without RTE, which hangs on both texts at once: it has 277 rows to score, of which one class has 52.7 %."""
PROBE, _TUNED = " probe", ", fine-tuned"
"""What the names of scores end in: those of a linear model on frozen embeddings, and of the whole model."""
_TEXT = "held-out text: "
MAIN = {
    "minilm": {
        "similarities": f"{_TEXT}similarity",
        "error of them": f"{_TEXT}similarity_error",
        "CKA": f"{_TEXT}hidden_cka",
        "STS-B test": "stsb test: spearman",
        TASKS_MEAN: TASKS_MEAN,
        "RTE": f"rte{_TUNED}",
    },
    "rxnfp": {
        "KL": f"{_TEXT}kl",
        "teacher's token": f"{_TEXT}top1",
        "masked accuracy": f"{_TEXT}masked accuracy",
        "CKA": f"{_TEXT}hidden_cka",
        "yields, probe": f"yields{PROBE}",
        "yields, fine-tuned": f"yields{_TUNED}",
    },
    "rxnmapper": {
        "KL": f"{_TEXT}kl",
        "teacher's token": f"{_TEXT}top1",
        "masked accuracy": f"{_TEXT}masked accuracy",
        "CKA": f"{_TEXT}hidden_cka",
        "products mapped": f"{_TEXT}products mapped",
    },
}
"""The measures of each teacher that say most, by their short names."""
TERMS = ("hidden", "attention")
"""The losses whose paths are shown."""
Values = dict[str, dict[str, list[float]]]


def gathered(results: Path) -> dict[tuple[str, str, str], Values]:
    """For each teacher, target and budget the values of each measure, by arm; the teacher's own stand in each."""
    lines = finished(results)
    cells = dict.fromkeys((x["teacher"], x["target"], x["tokens"]) for x in lines if x["arm"] != TEACHER)
    tables: dict[tuple[str, str, str], Values] = {}
    for cell in sorted(cells):
        values = tables.setdefault(cell, {name: {} for name in COUNTED})
        for line in lines:
            if (line["teacher"], line["target"], line["tokens"]) != cell and (line["arm"], line["teacher"]) != (
                TEACHER,
                cell[0],
            ):
                continue
            distil = line["kind"] == "distil"
            shown = line["values"] if distil else {_task(line["kind"]): line["values"]["score"]}
            # a run that was interrupted or paused does not know how long it took
            counts = {name: line[name] for name in COUNTED if distil and line[name] is not None}
            for name, value in {**counts, **shown}.items():
                values.setdefault(name, {}).setdefault(line["arm"], []).append(value)
        if means := _means_of_tasks([x for x in lines if (x["teacher"], x["target"], x["tokens"]) == cell]):
            values[TASKS_MEAN] = means
    return tables


def _means_of_tasks(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """For each arm the mean over `TASKS_OF_MEAN` of each seed that has learnt all of them."""
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for line in lines:
        if line["kind"] in TASKS_OF_MEAN:
            scores.setdefault((line["arm"], line["seed"]), {})[line["kind"]] = line["values"]["score"]
    means: dict[str, list[float]] = {}
    for (arm, _), by_task in sorted(scores.items()):
        if len(by_task) == len(TASKS_OF_MEAN):
            means.setdefault(arm, []).append(statistics.mean(by_task.values()))
    return means


def main_table(results: Path) -> None:
    """The main measures of each teacher, an arm a row."""
    tables = gathered(results)
    for teacher, measures in MAIN.items():
        rows = []
        cells = sorted((c for c in tables if c[0] == teacher), key=lambda c: (c[1], budget(c[2])))
        for _, target, tokens in cells:
            values = tables[teacher, target, tokens]
            for arm in (arm for arm in ARMS if arm in values["parameters"]):
                shown = [_short(name, values.get(name, {}).get(arm, [])) for name in measures.values()]
                rows.append([target, tokens, arm, _cell("seconds", values["seconds"].get(arm, [])), *shown])
        if rows:
            print(f"\n### {teacher}\n\n{markdown(['to', 'tokens', 'arm', 'seconds', *measures], rows)}")


def _short(name: str, numbers: list[float]) -> str:
    """Mean and standard error, and the number of seeds unless there are `SEEDS`."""
    if not numbers:
        return ""
    error, digits = _error(numbers), 1 if _is_score(name) else 3
    text = f"{statistics.mean(numbers):.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
    return text if len(numbers) == len(SEEDS) else f"{text} ({len(numbers)})"


def table(results: Path) -> None:
    """Mean and standard error over seeds, an arm a column."""
    for (teacher, target, tokens), values in gathered(results).items():
        # what only the teacher was measured on belongs to another target or budget
        values = {name: by_arm for name, by_arm in values.items() if set(by_arm) - {TEACHER}}
        arms = [arm for arm in (TEACHER, *ARMS) if any(arm in by_arm for by_arm in values.values())]
        rows = [[name, *(_cell(name, by_arm.get(arm, [])) for arm in arms)] for name, by_arm in values.items()]
        print(f"\n### {teacher} to {target}, {tokens} tokens\n\n{markdown(['', *arms], rows)}")


def _task(kind: str) -> str:
    """What the score of a task is called."""
    return kind if kind.endswith(PROBE) else f"{kind}{_TUNED}"


def _is_score(name: str) -> bool:
    """Whether it is out of a hundred."""
    return name.endswith((PROBE, _TUNED)) or name == TASKS_MEAN


def _cell(name: str, numbers: list[float]) -> str:
    if not numbers:
        return ""
    if name in COUNTED:
        return f"{statistics.mean(numbers):,.0f}"
    error = _error(numbers)
    digits = 1 if _is_score(name) else 4
    text = f"{statistics.mean(numbers):.{digits}f}"
    return text + (f" ± {error:.{digits}f} ({len(numbers)})" if error is not None else " (1)")


def arms_figure(tables: dict[tuple[str, str, str], Values], target: str, tokens: str) -> Figure:
    """The drawn measures of all arms: seeds as points, their mean as a bar, the teacher as a line."""
    panels = [(teacher, name) for teacher, names in DRAWN.items() for name in names]
    figure = Figure(figsize=(2.75 * len(panels), 3.4), layout="constrained")
    for axes, (teacher, name) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        by_arm = tables[teacher, target, tokens][name]
        arms = [arm for arm in reversed(ARMS) if arm in by_arm]
        for height, arm in enumerate(arms):
            color = SERIES[0] if arm == "homotopic" else INK
            axes.plot(by_arm[arm], [height] * len(by_arm[arm]), "o", color=color, alpha=0.5, markersize=4, mew=0)
            axes.plot([statistics.mean(by_arm[arm])], [height], "|", color=color, markersize=14)
        for value in by_arm.get(TEACHER, []):
            axes.axvline(value, color=INK, linewidth=0.8, linestyle="--")
            axes.text(value, -0.4, "teacher ", fontsize=7, ha="right", rotation=90, color=INK)
        axes.set_yticks(range(len(arms)), arms, fontsize=8)
        axes.set_ylim(-0.6, len(arms) - 0.2)
        if max(map(max, by_arm.values())) > 3 * min(map(min, by_arm.values())) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{teacher}, {name.removeprefix('held-out text: ')}", fontsize=8, loc="left")
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def budgets_figure(tables: dict[tuple[str, str, str], Values], target: str) -> Figure:
    """The drawn measures against the budget: means with standard errors, of arms with several budgets."""
    panels = [(teacher, name) for teacher, names in DRAWN.items() for name in names]
    figure = Figure(figsize=(2.75 * len(panels), 3.4), layout="constrained")
    for axes, (teacher, name) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        by_tokens = {c[2]: values[name] for c, values in tables.items() if c[:2] == (teacher, target)}
        budgets = {tokens: budget(tokens) for tokens in sorted(by_tokens, key=budget)}
        for place, arm in enumerate(ARMS):
            points = [(count, by_tokens[tokens][arm]) for tokens, count in budgets.items() if arm in by_tokens[tokens]]
            if len(points) > 1:
                lap, color = divmod(place, len(SERIES))
                axes.errorbar(
                    [count for count, _ in points],
                    [statistics.mean(numbers) for _, numbers in points],
                    [_error(numbers) or 0.0 for _, numbers in points],
                    color=SERIES[color], linestyle="-:"[lap], marker="o", markersize=3, linewidth=1, label=arm,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(list(budgets.values()), list(budgets))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{teacher}, {name.removeprefix('held-out text: ')}", fontsize=8, loc="left")
        axes.set_xlabel("tokens", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    return figure


def path_figure(runs: list[Run], work: Path) -> Figure:
    """Losses of the runs, smoothed over their last steps, against the tokens that they have seen."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    teachers = sorted({run.teacher for run in runs})
    panels = figure.subplots(1, len(teachers) * len(TERMS))
    for axes, (teacher, term) in zip(panels, ((t, name) for t in teachers for name in TERMS), strict=True):
        here = sorted((r for r in runs if r.teacher == teacher), key=lambda r: list(ARMS).index(r.arm))
        for run in here:
            lap, place = divmod(list(ARMS).index(run.arm), len(SERIES))
            look = {"color": SERIES[place], "linestyle": "-:"[lap], "linewidth": 1, "label": run.arm}
            records = [r for r in metrics_of(run, work) if term in r["terms"]]
            points = list(
                zip([r["tokens"] / 1e6 for r in records], _smooth([r["terms"][term] for r in records]), strict=True)
            )
            if points:
                axes.plot(*zip(*points, strict=True), **look)
        axes.set_yscale("log")
        axes.set_title(f"{teacher}, {term} loss", fontsize=8, loc="left")
        axes.set_xlabel("million tokens", fontsize=8)
        axes.tick_params(labelsize=7, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure)
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels."""
    drawn = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn, fontsize=8, frameon=False, loc="outside lower center", ncols=len(drawn))


def _error(numbers: list[float]) -> float | None:
    """The standard error of a mean; None of one number."""
    return statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else None


def _smooth(values: list[float], decay: float = 0.95) -> list[float]:
    """A running mean, started without bias."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def figures(results: Path, folder: Path, work: Path) -> None:
    """Write the pictures of each target, and budget that all teachers have."""
    tables = gathered(results)
    folder.mkdir(parents=True, exist_ok=True)
    for target in sorted({cell[1] for cell in tables}):
        budgets = [{cell[2] for cell in tables if cell[:2] == (teacher, target)} for teacher in DRAWN]
        if len(shared := set.intersection(*budgets)) > 1:
            _write(budgets_figure(tables, target), folder / f"budgets-{target}.png")
        for tokens in shared:
            name = f"{target}-{tokens}"
            _write(arms_figure(tables, target, tokens), folder / f"arms-{name}.png")
            runs = [Run(0, teacher, target, arm, tokens) for teacher in DRAWN for arm in ARMS]
            runs = [run for run in runs if path_of(run, work).exists()]
            if runs:
                _write(path_figure(runs, work), folder / f"paths-{name}.png")


def _write(figure: Figure, file: Path) -> None:
    """In a few colours, so that the file is small."""
    raw = io.BytesIO()
    figure.savefig(raw, dpi=90)
    Image.open(raw).convert("RGB").quantize(160).save(file, optimize=True)
    print(file)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "quality.jsonl")
    parser.add_argument("--main", action="store_true", help="the main measures alone")
    parser.add_argument("--figures", type=Path, help="write pictures into this folder in place of the tables")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="where the runs were made")
    options = parser.parse_args()
    if options.figures:
        figures(options.results, options.figures, options.work)
    else:
        (main_table if options.main else table)(options.results)


if __name__ == "__main__":
    main()
