"""A small language model, SmolLM2-135M from four bits, to 0.75: perplexity before, after the cut, and after some steps.

    python benchmarks/perplexity.py [--steps 100] [--work runs/perplexity]

Text: lead sections of Wikipedia; the last 300 are measured on and never learnt from. What is finished is not run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import homodistil
from harness import RESULTS, report
from homodistil.assets import fetch
from homodistil.evaluation.evaluation import evaluate

UNSEEN = 300
AT_ONCE = {"ramp_end": 0.0, "calibration": 16}


def main() -> None:
    """Make the students, measure them beside their teacher, print and write the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--steps", type=int, default=100)
    words.add_argument("--work", type=Path, default=Path("runs/perplexity"))
    chosen = words.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    lines = fetch("wiki-leads").read_text().splitlines(keepends=True)
    learn, unseen = chosen.work / "learn.txt", chosen.work / "unseen.txt"
    learn.write_text("".join(lines[:-UNSEEN]))
    unseen.write_text("".join(lines[-UNSEEN:]))

    # a run has at least two steps: those of the first are too short to learn from
    runs: dict[str, dict[str, Any]] = {
        "cut at once": {"steps": 2, "cutting": AT_ONCE, "optim": {"learning_rate": 1e-12}},
        f"cut at once, then {chosen.steps} steps": {"steps": chosen.steps, "cutting": AT_ONCE},
        f"cut along {chosen.steps} steps": {"steps": chosen.steps},
    }
    models = {"teacher": str(fetch("smollm2"))}
    for name, changes in runs.items():
        out = chosen.work / name.replace(", ", "-").replace(" ", "-")
        if out.exists():
            made = homodistil.resume(out)
        else:
            options = {"text": {"length": 128, "heldout": 0.002}, **changes}
            made = homodistil.distil(fetch("smollm2"), learn, "0.75", out, batch=4, evaluations=0, **options)
        models[name] = str(made.students["0.75"].absolute())
    rows = []
    for name, model in models.items():
        against = models["teacher"] if name != "teacher" else None
        found = evaluate(model, against=against, text=str(unseen), time=False, json=chosen.work / "measured.json")
        values = {k: v for r in found if r["model"] == model for k, v in r["values"].items() if k != "file_bytes"}
        rows.append({"model": name, **values})
    report("SmolLM2-135M to 0.75 of its width", rows, RESULTS / "perplexity.json")


if __name__ == "__main__":
    main()
