"""What all benchmarks share: contenders that take turns, each in a process of its own, and what is written down."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from homodistil.evaluation.records import machine

Action = Callable[[], object]
RESULTS = Path(__file__).parent / "results"


class Contender:
    """A process that waits for its turn.

    A process of its own, because runs of ours set the allocator up for themselves, and others should neither gain nor
    lose by it.

    Args:
        make: builds the action in the process; a function of a module.
        arguments: what it is built from.
        environment: variables that the process starts with.
    """

    def __init__(
        self, make: Callable[..., Action], *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        before = {name: os.environ.get(name) for name in environment or {}}
        os.environ.update(environment or {})
        self._process = context.Process(target=_answer, args=(make, arguments, theirs), daemon=True)
        self._process.start()
        # held open here, it would keep us waiting for a process that has died
        theirs.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        self._pipe.recv()

    def seconds(self) -> float:
        """Let it act once."""
        self._pipe.send(True)
        spent: float = self._pipe.recv()
        return spent

    def close(self) -> None:
        """End the process."""
        self._pipe.send(False)
        self._process.join()


def _answer(make: Callable[..., Action], arguments: tuple[Any, ...], pipe: Connection) -> None:
    action = make(*arguments)
    pipe.send(True)
    while pipe.recv():
        started = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - started)


OURS = {"THP_MEM_ALLOC_ENABLE": "1"}
"""What the command line sets before torch is imported."""


def in_turns(contenders: Mapping[str, Contender], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each in each round, after rounds that are not counted."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + warm):
        for name, contender in contenders.items():
            seconds = contender.seconds()
            if turn >= warm:
                spent[name].append(seconds)
    return spent


def medians(spent: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each, over its rounds."""
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def products(size: int, dtype: torch.dtype) -> Action:
    """A large matrix product: what the machine can do at best. One action is `2·size³` operations."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    if torch.cuda.is_available():
        a, b = a.cuda(), b.cuda()
    return lambda: a @ b


def parser(description: str | None, name: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="turns of each contender that count")
    made.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", help="where the numbers are written")
    return made


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, under the names of the first one's values."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(said(value) for value in row.values()))
    Console(width=160).print(table)


def report(title: str, rows: Sequence[Mapping[str, Any]], file: Path, **more: Any) -> None:
    """Print the rows as a table and write them as JSON, with the machine they were measured on."""
    print_table(title, rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = {"title": title, "machine": machine(), "threads": torch.get_num_threads(), **more, "rows": list(rows)}
    file.write_text(json.dumps(written, indent=1) + "\n")


def said(value: Any) -> str:
    """As it stands in a table."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
