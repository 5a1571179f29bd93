"""How an option was chosen: what runs of several values of it have lost on their own held-out text.

    python benchmarks/scan.py rate 1 2 4 --data-dir ../shared/data --arms random,homotopic --targets 0.5
    python benchmarks/scan.py losses.prediction 0.1 0.25 0.5 1 --data-dir ../shared/data --tokens 300k
    python benchmarks/scan.py losses.cosine 1 3                 # restartable; several processes share the work

`rate` is in times of the default one; any other option is named as `homodistil distil` names it. Runs are those of the
comparison (`quality.py`) but for that option. Nothing is read of what the comparison reports: held-out text is a run's
own share of what it learns from, so that what is best here may be made a default. A run is one line of --results.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from harness import RESULTS
from homodistil.reports.tables import markdown
from quality import distilled, finished, forget, runs
from quality_arms import Run

RATE = "rate"
"""The option that is none of a recipe's: the learning rate, in times of the one that the run would choose."""


def scan(options: argparse.Namespace) -> None:
    """Run what has not been run, and is not being run by another process; then show all of it."""
    torch.set_num_threads(options.threads)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for run in runs(options):
        for value in options.values:
            key = {**asdict(run), "option": options.option, "value": value}
            work = options.work.resolve() / f"{options.option}-{value}"
            work.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(work / f"{run.name}.lock", timeout=0):
                    if any(key.items() <= line.items() for line in finished(options.results)):
                        continue
                    print(f"{run.name}: {options.option} {value} ...", flush=True)
                    line = {**key, **one(run, options.option, value, options.data_dir.resolve(), work)}
                    with FileLock(options.work / "results.lock"), options.results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    forget(run, work)
            except Timeout:
                continue
    print(table(options.results, options.option))


def one(run: Run, option: str, value: float | str, data: Path, work: Path) -> dict[str, Any]:
    """Distil with one value of an option: the run's own held-out measures, and seconds."""
    if option == RATE:
        done = distilled(run, data, work, times=float(value))
    else:
        section, _, name = option.partition(".")
        done = distilled(run, data, work, {section: {name: value} if name else value})
    return {"values": done["values"], "seconds": done["seconds"]}


def table(results: Path, option: str) -> str:
    """All that was measured of an option, a run a row."""
    lines = [line for line in finished(results) if line["option"] == option]
    who = ["teacher", "target", "arm", "tokens", "seed"]
    lines.sort(key=lambda x: ([str(x[name]) for name in who], isinstance(x["value"], str), x["value"]))
    measures = list(dict.fromkeys(name for line in lines for name in line["values"]))
    rows = [
        [*(str(x[name]) for name in who), str(x["value"])]
        + [f"{x['values'][name]:.4f}" if name in x["values"] else "" for name in measures]
        for x in lines
    ]
    return markdown([*who, option, *(name.removeprefix("heldout: ") for name in measures)], rows)


def _names(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("option", help=f"{RATE}, or any of distil, such as losses.prediction")
    parser.add_argument("values", nargs="+", type=yaml.safe_load)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/scan"))
    parser.add_argument("--results", type=Path, default=RESULTS / "scan.jsonl")
    parser.add_argument("--arms", type=_names, default=["homotopic"])
    parser.add_argument("--teachers", type=_names, default=["minilm"])
    parser.add_argument("--targets", nargs="+", default=["0.3"], help="several with spaces between them")
    parser.add_argument("--seeds", type=lambda t: [int(s) for s in t.split(",")], default=[0])
    parser.add_argument("--tokens", default="300k")
    parser.add_argument("--threads", type=int, default=1, help="of each process; start one process a core")
    scan(parser.parse_args())


if __name__ == "__main__":
    main()
