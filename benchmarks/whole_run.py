"""A whole run, teacher to a third of its width, beside the same run with masks in place of cuts.

    python benchmarks/whole_run.py [--rounds 5] [--steps 60] [--precisions bf16,fp32]

MiniLM with a masked-language-model head, 16 x 128 tokens a step, a ramp of a tenth. Masked runs keep all tensors in the
teacher's size, as papers of this kind do: `masked, bf16` is our own loop without cuts, whose time is a lower bound of a
masked run's, because the masks themselves are left out; `reference` is the plain masked step of `steps.py`, whose
cost is the same at each step, so that a tenth of the steps is run and counted ten times. All of a run counts, from
reading the text to the saved student.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

import homodistil
import steps
from harness import OURS, Action, Contender, in_turns, medians, parser, report
from homodistil.assets import fetch
from homodistil.data.collate import MEASURED

TARGET = "0.3333"
SAMPLED = 10
CALIBRATION = 4
"""Batches measured before the first step: as small a part of so short a run as 16 are of one of some hundred steps."""


def whole(teacher: Path, target: str, count: int, precision: str) -> Action:
    """A run of ours, from its first file to its last."""
    out = Path(tempfile.mkdtemp()) / "run"

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        homodistil.distil(
            teacher, fetch("wiki-leads"), target, out, steps=count, batch=16, precision=precision,
            cutting={"calibration": CALIBRATION, "ramp_end": 0.1}, losses={"masked": MEASURED}, evaluations=1,
            text={"length": 128, "packing": "blocks"},
        )  # fmt: skip

    return run


def sampled(teacher: Path, batch: Path, count: int) -> Action:
    """Some steps of the reference."""
    step = steps.reference(teacher, batch)

    def run() -> None:
        for _ in range(count):
            step()

    return run


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, "whole_run", 5)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--precisions", default="bf16")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        teacher = steps.teacher_with_head("minilm", Path(scratch) / "teacher")
        run = steps.ready(teacher, "1.0", batch=16)
        torch.save(steps.batch_of(run), Path(scratch) / "batch.pt")
        contenders = {
            f"{name}, {precision}": Contender(whole, teacher, target, chosen.steps, precision, environment=OURS)
            for precision in chosen.precisions.split(",")
            for name, target in (("cut", TARGET), ("masked", "1.0"))
        }
        contenders["reference"] = Contender(sampled, teacher, Path(scratch) / "batch.pt", chosen.steps // SAMPLED)
        spent = in_turns(contenders, chosen.rounds, warm=0)
        for contender in contenders.values():
            contender.close()
    seconds = medians(spent)
    seconds["reference"] *= SAMPLED
    rows: list[dict[str, Any]] = [
        {
            "run": name,
            "seconds": s,
            "x masked, same precision": seconds[f"masked, {name[-4:]}"] / s if name != "reference" else "",
            "x reference": seconds["reference"] / s,
        }
        for name, s in seconds.items()
    ]
    report(f"A whole run of {chosen.steps} steps to a third of the width", rows, chosen.json)


if __name__ == "__main__":
    main()
