"""Milliseconds of a step on one GPU, beside a plain reference, and its share of what the GPU's matrix products reach.

    python benchmarks/gpu.py [--shapes bert-base minilm] [--rounds 20] [--kernels 40]

BERT-base's shape, 32 x 512 tokens, and MiniLM's, 32 x 128, both with random weights and a masked-language-model head
over 30,522 tokens; bf16; student at 1, 1/2 and 1/3 of the width. `asked for` is ours without recordings: Python asks
for each kernel. `torch's kernels` is ours without those that are written in Triton, `torch's Muon` without the one that
moves matrices, and `AdamW` ours by the optimizer that the peers have. `--kernels` tells what a step of ours at full
width asks the GPU for, and how long each kind of kernel takes in all. The peers are those of `step.py`: the reference
(fp32, eager attention, all maps, all logits, masks in place of cuts), and textbrewer where it is installed. All in one
process, in turns.
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
from harness import Action, parser, print_table, products, report
from homodistil import fused
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
    return _without(ours(run), lambda name: True)


def without_muon(run: Run) -> Action:
    """A step of ours whose matrices are moved by torch's kernels."""
    return _without(ours(run), lambda name: name == "muon")


def _without(action: Action, left_out: Callable[[str], bool]) -> Action:
    def patched() -> None:
        with _leaving_out(left_out):
            action()

    return patched


@contextlib.contextmanager
def _leaving_out(left_out: Callable[[str], bool]) -> Iterator[None]:
    found = fused.kernels
    fused.kernels = lambda name, *tensors: None if left_out(name) else found(name, *tensors)
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


def kernels_of(action: Action, most: int, times: int = 3) -> list[dict[str, Any]]:
    """The kernels of an action, those that take longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            action()
        torch.cuda.synchronize()
    found = [(event.self_device_time_total / times, event) for event in profile.key_averages()]
    found = sorted(found, key=lambda pair: pair[0], reverse=True)[:most]
    return [{"kernel": event.key, "calls": event.count / times, "ms": spent / 1000} for spent, event in found]


def measured(shape: str, rounds: int, kernels: int, scratch: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each contender, and one for each kind of kernel of a step of ours, if they are asked for."""
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
    variants: dict[str, Callable[[Run], Action]] = {
        "asked for": asked_for, "torch's kernels": without_triton, "torch's Muon": without_muon,
    }  # fmt: skip
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
    of_step = [{"shape": shape, **row} for row in kernels_of(contenders["ours, width 1"], kernels)] if kernels else []
    return rows, of_step


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, "gpu", 20)
    options.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options.add_argument("--kernels", type=int, default=0, help="kinds of kernels of a step that are told")
    chosen = options.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This measures a GPU, and there is none.")
    rows: list[dict[str, Any]] = []
    of_step: list[dict[str, Any]] = []
    for shape in chosen.shapes:
        with tempfile.TemporaryDirectory() as scratch:
            more = measured(shape, chosen.rounds, chosen.kernels, Path(scratch))
            rows, of_step = rows + more[0], of_step + more[1]
            torch.cuda.empty_cache()
            # what is measured so far is written, in case the next shape finds no memory
            report("A step on a GPU", rows, chosen.json, kernels=of_step)
    if of_step:
        print_table("Kernels of a step of ours at full width", of_step)


if __name__ == "__main__":
    main()
