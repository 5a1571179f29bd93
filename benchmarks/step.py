"""Seconds of one distillation step, beside textbrewer's and beside a plain reference, and its share of what the
machine's matrix products reach.

    pip install textbrewer==0.2.1.post1
    python benchmarks/step.py [--shape bert-base] [--precisions bf16] [--rounds 7]

Teacher: MiniLM with a masked-language-model head over its vocabulary of 30,522 tokens, or the shape of BERT-base.
Batch 16 x 128 tokens, student at 1, 1/2 and 1/3 of the width. The reference is the step as one would write it at
first: fp32, eager attention with all maps returned, logits at all positions, and 0/1 masks in place of cuts, so that
its cost is the same at every width. Batches have 15 % masks, as BERT's, but for one row with the default of a run.
Everyone has a process of their own and takes turns with the others; all of them
at once take 24 GB and more for the shape of BERT-base, and one precision without the peers half of that.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import steps
from harness import OURS, Contender, in_turns, medians, parser, products, report
from homodistil.settings import Losses

PRODUCT = 2048


def main() -> None:
    """Measure and print."""
    options = parser(__doc__, "step", 7)
    options.add_argument("--shape", choices=list(steps.WIDTHS), default="minilm")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--length", type=int, default=128)
    options.add_argument("--precisions", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    options.add_argument("--alone", action="store_true", help="without the peers")
    chosen = options.parse_args()
    if chosen.shape != "minilm":
        chosen.json = chosen.json.with_stem(f"{chosen.json.stem}-{chosen.shape}")
    settings: dict[str, Any] = {"batch": chosen.batch, "text": {"length": chosen.length}}
    widths = steps.WIDTHS[chosen.shape]
    with tempfile.TemporaryDirectory() as scratch:
        teacher = steps.teacher_with_head(chosen.shape, Path(scratch) / "teacher")
        contenders, counted = {}, {}
        for precision in chosen.precisions:
            for name, target in widths.items():
                key, recipe = f"ours, {precision}, width {name}", settings | {"precision": precision}
                run = steps.ready(teacher, target, **recipe)
                batch = steps.batch_of(run)
                torch.save(batch, Path(scratch) / "batch.pt")
                counted[key] = steps.operations(run, batch)
                del run
                contenders[key] = Contender(steps.ours, teacher, target, recipe, environment=OURS)
            # the optimizer that the peers have
            contenders[f"ours, {precision}, width 1, AdamW"] = Contender(
                steps.ours, teacher, "1.0", settings | {"precision": precision, "optim": {"method": "adamw"}},
                environment=OURS,
            )  # fmt: skip
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            contenders[f"products, {precision}"] = Contender(products, PRODUCT, dtype)
        precision = chosen.precisions[0]
        contenders[f"ours, {precision}, width 1, scored"] = Contender(
            steps.ours, teacher, "1.0", settings | {"precision": precision}, True, environment=OURS
        )
        # what a run does when nobody says how much is masked
        masked, (name, target) = Losses().masked, list(widths.items())[-1]
        contenders[f"ours, {precision}, width {name}, {masked} masked"] = Contender(
            steps.ours, teacher, target, settings | {"precision": precision, "losses": {"masked": masked}},
            environment=OURS,
        )  # fmt: skip
        if not chosen.alone:
            contenders["reference"] = Contender(steps.reference, teacher, Path(scratch) / "batch.pt")
            if importlib.util.find_spec("textbrewer"):
                contenders["textbrewer"] = Contender(steps.textbrewer, teacher, Path(scratch) / "batch.pt")
        spent = in_turns(contenders, chosen.rounds)
        for contender in contenders.values():
            contender.close()
    seconds = medians(spent)
    tokens = chosen.batch * chosen.length
    rows = []
    for name, s in seconds.items():
        if name.startswith("products"):
            continue
        peak = 2 * PRODUCT**3 / seconds[f"products, {'bf16' if 'bf16' in name else 'fp32'}"]
        flops = counted.get(name)
        row = {"step": name, "seconds": s, "spread": statistics.stdev(spent[name]) / s, "tokens/s": tokens / s}
        for peer in ("textbrewer", "reference"):
            row[f"x {peer}"] = seconds[peer] / s if peer in seconds else ""
        row |= {"GFLOP": flops / 1e9 if flops else "", "share of products' rate": flops / s / peak if flops else ""}
        rows.append(row)
    rates = {name: 2 * PRODUCT**3 / seconds[name] / 1e9 for name in seconds if name.startswith("products")}
    report(f"A step: {chosen.shape}, {chosen.batch} x {chosen.length} tokens", rows, chosen.json, GFLOPs_a_second=rates)
    print(", ".join(f"{name}: {rate:,.0f} GFLOP/s" for name, rate in rates.items()))


if __name__ == "__main__":
    main()
