"""Evaluation records as tables: a row a measure, a column a model, the mean and deviation over seeds. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

Record = Mapping[str, Any]

_WORDS = {
    "parameters": ("parameters", "{:,.0f}", "ratio"),
    "file_bytes": ("MB on disk", "{:,.1f}", "ratio"),
    "flops_per_token": ("MFLOPs a token", "{:,.2f}", "ratio"),
    "latency_ms": ("ms, batch 1", "{:,.2f}", "ratio"),
    "sequences_per_second": ("sequences/s, batch {batch}", "{:,.1f}", "ratio"),
    "perplexity": ("perplexity", "{:,.2f}", "ratio"),
    "pseudo_perplexity": ("pseudo-perplexity", "{:,.2f}", "ratio"),
    "learning_rate": ("learning rate", "{:.0e}", "ratio"),
    "score": ("score", "{:.1f}", "difference"),
}
"""How a value is called and written, and what it is beside the teacher's; others have four digits."""
_DATA = ("data", "columns", "label", "split", "rows", "batch", "teacher", "beside", "digest")
"""Settings that say what was measured on, or with what in turns; others, such as a learning rate, say how."""
_BATCH = 32
"""Sequences that models are timed with where their records name no batch."""
_SCALE = {"file_bytes": 1e-6, "flops_per_token": 1e-6}


@dataclass(frozen=True)
class Cell:
    """A value over the seeds that it was measured with: mean, standard deviation (0 for one seed), how many."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Row:
    """One quantity of one measure, for each model that has it.

    Attributes:
        measure: such as `sst2` or `speed at 128 tokens`, with what tells its data apart where there are several.
        value: such as `accuracy`.
        cells: by model.
        comparable: whether all models read the same tokens, so that what one says of a token stands for another's.
        batch: sequences in a pass.
    """

    measure: str
    value: str
    cells: dict[str, Cell]
    comparable: bool = True
    batch: int = _BATCH


def rows(records: Iterable[Record]) -> list[Row]:
    """Gather records by measure, data and value, in the order in which they come.

    What was measured several times counts as it was last: of a model that was replaced what lies there now, of a
    measure the last settings, of a seed one record.
    """
    present = _present(list(records))
    called = {r["identity"]: r["model"] for r in present if "identity" in r}
    names = _names(dict.fromkeys(_measured(r) for r in present), called)
    gathered: dict[tuple[str, str], dict[str, list[float]]] = {}
    tokens: dict[str, set[object]] = {}
    batches: dict[str, int] = {}
    for record in present:
        measure = names[_measured(record)]
        settings = record.get("settings", {})
        # of other measures nothing is known of tokens, nor does it matter
        tokens.setdefault(measure, set()).update({settings.get("tokens")} - {None})
        batches[measure] = settings.get("batch", _BATCH)
        for value, number in record["values"].items():
            gathered.setdefault((measure, value), {}).setdefault(record["model"], []).append(number)
    return [
        Row(measure, value, {m: _cell(n) for m, n in models.items()}, len(tokens[measure]) < 2, batches[measure])
        for (measure, value), models in gathered.items()
    ]


def _present(records: Sequence[Record]) -> list[Record]:
    """The records that count, in order."""
    models = {r["model"]: r.get("identity") for r in records}
    current = [r for r in records if r.get("identity") == models[r["model"]]]
    settings = {(r["model"], _measured(r)): r.get("settings") for r in current}
    current = [r for r in current if r.get("settings") == settings[r["model"], _measured(r)]]
    # what was timed in turns counts as long as it is the last that one of its models was timed in
    turns = {(r["model"], r["measure"]): _beside(r) for r in current}
    current = [r for r in current if any(_beside(r) == turns.get((m, r["measure"])) for m in models)]
    return list({(r["model"], _measured(r), r.get("seed")): r for r in current}.values())


def _beside(record: Record) -> tuple[str, ...]:
    """The identities of the models that were timed together."""
    return tuple(record.get("settings", {}).get("beside", ()))


def _measured(record: Record) -> tuple[str, ...]:
    """A measure and each of `_DATA`, as text."""
    said = [record.get("settings", {}).get(name, "") for name in _DATA]
    return record["measure"], *(",".join(s) if isinstance(s, list) else str(s) for s in said)


def _names(measured: Iterable[tuple[str, ...]], called: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """What each is called: its measure, and what of its data others of that measure do not share.

    Args:
        measured: what `_measured` tells of each.
        called: models by their identities.
    """
    short = _short(list(called.values()))
    alike: dict[str, list[tuple[str, ...]]] = {}
    for one in measured:
        alike.setdefault(one[0], []).append(one)
    names = {}
    for measure, several in alike.items():
        values = dict(zip(_DATA, list(zip(*several, strict=True))[1:], strict=True))
        values["data"] = tuple(map(_short(list(dict.fromkeys(values["data"]))).__getitem__, values["data"]))
        values["beside"] = tuple(
            " and ".join(short[called[one]] if one in called else one for one in together.split(","))
            for together in values["beside"]
        )
        differing = [name for name in _DATA if len(set(values[name])) > 1]
        if len(set(zip(*(values[name] for name in differing[:-1]), strict=True))) == len(several):
            # a digest tells nobody anything, and comes last
            differing = differing[:-1]
        for k, one in enumerate(several):
            names[one] = ", ".join([measure, *(f"{name} {values[name][k]}" for name in differing if values[name][k])])
    return names


def roles(records: Iterable[Record]) -> dict[str, str]:
    """Whether each model is a teacher or not, as it was when it was last asked for."""
    return {r["model"]: r["role"] for r in records}


def written(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells as text: the models' values, teachers' last; of a model and its teacher how the one compares."""
    known = roles(records)
    models = sorted(known, key=lambda model: known[model] == "teacher")
    names = _short(models)
    two = [known[model] for model in models] == ["model", "teacher"]
    header = ["", "", *(names[m] for m in models), *(["against"] if two else [])]
    lines = []
    before = ""
    for row in rows(records):
        word, form, beside = _WORDS.get(row.value, (row.value.replace("_", " "), "{:.4f}", "difference"))
        scale = _SCALE.get(row.value, 1.0)
        line = ["" if row.measure == before else row.measure, word.replace("{batch}", str(row.batch))]
        line += [_text(row.cells.get(m), form, scale) for m in models]
        if two:
            line.append(_compared([row.cells.get(m) for m in models], form, beside) if row.comparable else "")
        lines.append(line)
        before = row.measure
    return header, lines


def terminal(records: Sequence[Record]) -> Table:
    """A table for the terminal."""
    header, lines = written(records)
    table = Table(box=box.SIMPLE_HEAD)
    for k, name in enumerate(header):
        # a narrow terminal breaks words, and no number
        table.add_column(escape(name), justify="left" if k < 2 else "right", no_wrap=k > 1, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line))
    return table


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The same for a Markdown file."""
    every = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def _cell(numbers: Sequence[float]) -> Cell:
    return Cell(statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0, len(numbers))


def _text(cell: Cell | None, form: str, scale: float) -> str:
    if cell is None:
        return ""
    text = form.format(scale * cell.mean)
    return text if cell.count == 1 else f"{text} ± {form.format(scale * cell.deviation)}"


def _compared(cells: Sequence[Cell | None], form: str, beside: str) -> str:
    ours, teachers = cells
    if ours is None or teachers is None:
        return ""
    if beside == "ratio":
        return f"x {ours.mean / teachers.mean:.2f}" if teachers.mean else ""
    difference = form.format(ours.mean - teachers.mean)
    return difference if difference.startswith("-") else f"+{difference}"


def _short(models: Sequence[str]) -> dict[str, str]:
    """A model's last name, with as much before it as tells it apart from the others."""
    parts = {m: Path(m).parts for m in models}
    names = {}
    for model, own in parts.items():
        others = [other for m, other in parts.items() if m != model]
        told = (own[-k:] for k in range(1, len(own) + 1) if all(other[-k:] != own[-k:] for other in others))
        # the first part of an absolute path is its slash
        names[model] = "/".join(next(told, (model,))).replace("//", "/")
    return names
