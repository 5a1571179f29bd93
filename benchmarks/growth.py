"""How cost grows: tokens a second against width, layers, vocabulary, length and batch; the data pipeline; start-up.

    python benchmarks/growth.py [--rounds 5]

MiniLM's shape with random weights and a masked-language-model head, bf16, student at full width, 16 x 128 tokens, one
size changed at a time. Text is read and batched on one thread; the command line is started afresh each time.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import steps
from harness import OURS, Action, Contender, in_turns, medians, parser, report
from homodistil.assets import fetch
from homodistil.data.collate import MEASURED, Collator, batches
from homodistil.data.corpus import tokenise
from homodistil.data.cutter import Cutter
from homodistil.data.sources import Shuffled
from homodistil.text import open_text

BASE = steps.MINILM | {"vocab_size": 30522}
CHANGES: dict[str, tuple[int, ...]] = {
    "hidden_size": (96, 192, 384, 768),
    "num_hidden_layers": (3, 6, 12),
    "vocab_size": (30522, 61044, 122088),
    "length": (64, 128, 256, 512, 1024),
    "batch": (4, 16, 64),
}


def settings() -> Iterator[tuple[str, int, dict[str, int], dict[str, Any]]]:
    """What is changed, to what, the sizes of the model, and the options of the run."""
    for name, values in CHANGES.items():
        for value in values:
            sizes, options = dict(BASE), {"batch": 16, "length": 128}
            if name == "hidden_size":
                sizes |= {"hidden_size": value, "intermediate_size": 4 * value}
            elif name in sizes:
                sizes[name] = value
            else:
                options[name] = value
            recipe = {"batch": options["batch"], "text": {"length": options["length"]}, "precision": "bf16"}
            yield name, value, sizes, recipe


def reading(lines: list[str]) -> dict[str, float]:
    """Tokens a second of tokenising on one core, and of making batches of what has been tokenised."""
    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm"))
    with tempfile.TemporaryDirectory() as scratch:
        # a new file each time: what has been tokenised before is remembered
        text = Path(scratch) / "text.txt"
        text.write_text("\n".join(lines))
        started = time.perf_counter()
        tokenised = tokenise(open_text(str(text), "text", stream=False), Cutter(tokenizer, "text", 128, True), 1)
        spent = time.perf_counter() - started
        made = batches(Shuffled(tokenised, 16, 0), Collator(tokenizer, MEASURED, 0), 16, start=0)
        count, started = 0, time.perf_counter()
        for _ in range(200):
            count += next(made)["input_ids"].numel()
        batched = time.perf_counter() - started
    return {"tokenising": 128 * len(tokenised) / spent, "batching": count / batched}


def starting(rounds: int) -> float:
    """Median seconds of `homodistil --help` in a process of its own."""
    command = shutil.which("homodistil") or str(Path(sys.executable).with_name("homodistil"))
    spent = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([command, "distil", "--help"], check=True, capture_output=True)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent)


def one(folder: Path, recipe: dict[str, Any]) -> Action:
    """A step of ours at full width."""
    return steps.ours(folder, "1.0", recipe)


def main() -> None:
    """Measure and print."""
    chosen = parser(__doc__, "growth", 5).parse_args()
    rows: list[dict[str, Any]] = []
    for name, value, sizes, recipe in settings():
        with tempfile.TemporaryDirectory() as scratch:
            folder = steps.teacher_of_shape(Path(scratch) / "teacher", **sizes)
            contender = Contender(one, folder, recipe, environment=OURS)
            seconds = medians(in_turns({"step": contender}, chosen.rounds))["step"]
            contender.close()
        tokens = recipe["batch"] * recipe["text"]["length"]
        rows.append({"changed": name, "to": value, "seconds a step": seconds, "tokens/s": tokens / seconds})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    read = reading(fetch("wiki-leads").read_text().splitlines())
    # of the steps, which the report tells
    torch.set_num_threads(threads)
    started = starting(chosen.rounds)
    report("How cost grows", rows, chosen.json, tokens_a_second=read, seconds_to_help=started)
    print(f"Tokens a second on one core: {read}. Seconds to `distil --help`: {started:.2f}")


if __name__ == "__main__":
    main()
