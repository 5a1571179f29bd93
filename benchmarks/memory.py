"""Peak memory of a step over what a run cannot do without: both models' weights, gradients, optimizer state.

    python benchmarks/memory.py

MiniLM's shape with positions for 2,048 tokens, bf16, student at full width; a process for each row. On a CPU the peak
is that of the process over what it held before the run was made, on a GPU torch's own count.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

import steps
from harness import parser, report
from homodistil.distill.recorder import SETTLED

SIZES = ((16, 128), (64, 128), (4, 512), (16, 512), (1, 2048), (2, 2048))
LOSSES: dict[str, dict[str, Any]] = {
    "scores": {},
    "probabilities": {"attention_kind": "probabilities"},
    "none": {"attention": 0},
}


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(teacher: Path, batch: int, length: int, losses: dict[str, Any]) -> tuple[int, int]:
    """Bytes at the peak of two steps, or of as many as make a recording, and bytes of what must be there."""
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else _peak()
    run = steps.ready(teacher, "1.0", batch=batch, precision="bf16", losses=losses, text={"length": length})
    inputs = steps.batch_of(run)
    for _ in range(SETTLED + 2 if torch.cuda.is_available() else 2):
        steps.step(run, inputs)
    state = run.state
    weights = {p: p.numel() * p.element_size() for p in run.teacher.model.parameters()}
    learnt = [p for group in state.optimizer.param_groups for p in group["params"]]
    moments = [t for kept in state.optimizer.state.values() for t in kept.values()]
    # gradients are as large as what is learnt
    needed = sum(weights.values()) + sum(t.numel() * t.element_size() for t in [*learnt, *learnt, *moments])
    return _peak() - before, needed


def main() -> None:
    """Measure and print."""
    chosen = parser(__doc__, "memory-gpu" if torch.cuda.is_available() else "memory", 1).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        teacher = steps.teacher_of_shape(Path(scratch) / "teacher", **steps.MINILM)
        for batch, length in SIZES:
            row: dict[str, Any] = {"batch": batch, "length": length}
            for name, losses in LOSSES.items():
                if torch.cuda.is_available():
                    # counted by torch, which starts anew
                    torch.cuda.reset_peak_memory_stats()
                    peak, needed = measured(teacher, batch, length, losses)
                    gc.collect()
                else:
                    with multiprocessing.get_context("spawn").Pool(1) as alone:
                        peak, needed = alone.apply(measured, (teacher, batch, length, losses))
                row |= {f"attention {name}: MB": round(peak / 2**20), f"x needed, {name}": peak / needed}
            rows.append(row | {"needed MB": round(needed / 2**20)})
            # what is measured so far is written, in case the next size finds no memory
            report("Peak memory of a step", rows, chosen.json)


if __name__ == "__main__":
    main()
