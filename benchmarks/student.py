"""A student's own speed: how much of the operations that a narrower width saves are saved in time.

    python benchmarks/student.py [--rounds 7]

The encoder of MiniLM's shape with 12 heads at every width that heads allow, ffn four times hidden, random weights, as
transformers opens it (fp32). 1 is time in proportion to operations; all widths of a batch take turns in one process.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from transformers import BertConfig, BertModel

from harness import parser, report
from homodistil.axes.layout import Layout
from homodistil.evaluation.speed import in_turns

HEADS, LAYERS, WHOLE = 12, 6, 384
BATCHES = {"32 x 128": (32, 128), "1 x 128": (1, 128)}


def model_of(hidden: int) -> BertModel:
    """An encoder of a width."""
    return BertModel(
        BertConfig(
            hidden_size=hidden, num_attention_heads=HEADS, num_hidden_layers=LAYERS, intermediate_size=4 * hidden,
            vocab_size=1000,
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip


def grain(hidden: int) -> int:
    """The largest of 32, 16, 8 that the width is a multiple of, otherwise 4 or less."""
    return next((g for g in (32, 16, 8, 4) if hidden % g == 0), 1)


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    chosen = parser(__doc__, "student", 7).parse_args()
    widths = list(range(WHOLE, 8 * HEADS - 1, -HEADS))
    models = [model_of(h) for h in widths]
    layouts = [Layout.of(m) for m in models]
    flops = [layout.flops_per_token(layout.shape(m), 128) for layout, m in zip(layouts, models, strict=True)]
    rows: list[dict[str, Any]] = [
        {"hidden": h, "head_dim": h // HEADS, "multiple of": grain(h), "x fewer operations": flops[0] / f}
        for h, f in zip(widths, flops, strict=True)
    ]
    for name, size in BATCHES.items():
        ids = torch.randint(1000, size, generator=torch.Generator().manual_seed(0))
        spent = in_turns([functools.partial(m, input_ids=ids) for m in models], chosen.rounds)
        seconds = [statistics.median(s) for s in spent]
        for row, s, before in zip(rows, seconds, [seconds[0], *seconds], strict=False):
            row[f"{name}: ms"] = 1000 * s
            row[f"{name}: x faster"] = seconds[0] / s
            row[f"{name}: share"] = seconds[0] / s / row["x fewer operations"]
            row[f"{name}: slower than the next wider"] = "yes" if s > before else ""
    shares = {
        name: {
            g: statistics.median([row[f"{name}: share"] for row in rows[1:] if row["multiple of"] % g == 0])
            for g in (4, 8, 16, 32)
        }
        for name in BATCHES
    }
    report("A student's own speed", rows, chosen.json, median_share_by_grain=shares)
    print("Median share, by what the width is a multiple of:", shares)


if __name__ == "__main__":
    main()
