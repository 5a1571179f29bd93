"""Milliseconds of a step on one GPU, beside a plain reference, and its share of what the GPU's matrix products reach.

    python benchmarks/gpu.py [--shapes bert-base minilm] [--rounds 20]

BERT-base's shape, 32 x 512 tokens, and MiniLM's, 32 x 128, both with random weights and a masked-language-model head
over 30,522 tokens; bf16; student at 1, 1/2 and 1/3 of the width. `asked for` is ours without recordings: Python asks
for each kernel. `torch's kernels` is ours without those that are written in Triton, and `AdamW` ours by the optimizer
that the peers have. The peers are those of `step.py`: the reference (fp32, eager attention, all maps, all logits, masks
in place of cuts), and textbrewer where it is installed. All in one process, in turns.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import steps
from harness import Action, parser, products, report
from homodistil.distill import fused
from homodistil.distill.prepare import Run
from homodistil.distill.recorder import SETTLED

PRODUCT, PRODUCTS = 8192, 10
"""The size of a product, and how many are timed together."""
SHAPES: dict[str, tuple[dict[str, int], int, int]] = {"bert-base": ({}, 32, 512), "minilm": (steps.MINILM, 32, 128)}
"""Sizes, batch and length of each."""


def ours(run: Run) -> Action:
    """A step of ours, played back once it has been recorded."""
    batch = steps.batch_of(run)
    return lambda: steps.step(run, batch)


def asked_for(run: Run) -> Action:
    """A step of ours without recordings."""
    run.recorder.stop()
    return ours(run)


def without_triton(run: Run) -> Action:
    """A step of ours with torch's kernels alone."""
    action = ours(run)

    def patched() -> None:
        with _no_triton():
            action()

    return patched


@contextlib.contextmanager
def _no_triton() -> Iterator[None]:
    found, fused.kernels = fused.kernels, lambda *_: None
    try:
        yield
    finally:
        fused.kernels = found


def seconds(action: Action) -> float:
    """Of one action, to its end on the GPU."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(shape: str, rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """A row for each contender."""
    sizes, batch, length = SHAPES[shape]
    teacher = steps.teacher_of_shape(scratch / shape, **sizes)

    def run(target: str) -> Run:
        return steps.ready(teacher, target, batch=batch, precision="bf16", text={"length": length})

    product = products(PRODUCT, torch.bfloat16)
    contenders: dict[str, Action] = {"products": lambda: [product() for _ in range(PRODUCTS)]}
    counted: dict[str, float] = {}
    for name, target in steps.WIDTHS[shape].items():
        ready = run(target)
        contenders[f"ours, width {name}"] = ours(ready)
        counted[f"ours, width {name}"] = steps.operations(ready, steps.batch_of(ready))
    adamw = steps.ready(
        teacher, "1.0", batch=batch, precision="bf16", text={"length": length}, optim={"method": "adamw"}
    )
    contenders["ours, width 1, AdamW"] = ours(adamw)
    counted["ours, width 1, AdamW"] = counted["ours, width 1"]
    variants: dict[str, Callable[[Run], Action]] = {"asked for": asked_for, "torch's kernels": without_triton}
    for name, variant in variants.items():
        contenders[f"ours, width 1, {name}"] = variant(run("1.0"))
        counted[f"ours, width 1, {name}"] = counted["ours, width 1"]
    torch.save({n: t.cpu() for n, t in steps.batch_of(run("1.0")).items()}, scratch / "batch.pt")
    peers = ["reference"]
    contenders["reference"] = steps.reference(teacher, scratch / "batch.pt")
    if importlib.util.find_spec("textbrewer"):
        peers.append("textbrewer")
        contenders["textbrewer"] = steps.textbrewer(teacher, scratch / "batch.pt")
    for name, action in contenders.items():
        for _ in range(SETTLED + 4 if name.startswith("ours") else 3):
            action()
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, action in contenders.items():
            spent[name].append(seconds(action))
    median = {name: statistics.median(times) for name, times in spent.items()}
    peak = PRODUCTS * 2 * PRODUCT**3 / median["products"]
    rows = []
    for name, s in median.items():
        if name == "products":
            continue
        flops = counted.get(name)
        rows.append(
            {"shape": f"{shape}, {batch} x {length}", "step": name, "ms": 1000 * s, "tokens/s": batch * length / s,
             **{f"x {peer}": median[peer] / s for peer in peers}, "GFLOP": flops / 1e9 if flops else "",
             "share of products' rate": flops / s / peak if flops else "", "products' TFLOP/s": peak / 1e12,
             "spread": statistics.stdev(spent[name]) / s}
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, "gpu", 20)
    options.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This measures a GPU, and there is none.")
    rows = []
    for shape in chosen.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            rows += measured(shape, chosen.rounds, Path(scratch))
            torch.cuda.empty_cache()
            # what is measured so far is written, in case the next shape finds no memory
            report("A step on a GPU", rows, chosen.json)


if __name__ == "__main__":
    main()
