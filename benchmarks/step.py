"""Tokens a second of one distillation step, beside a plain reference, in turns; and what scoring and cutting cost.

    python benchmarks/step.py [--rounds 7] [--json FILE]

Teacher: MiniLM with a masked-language-model head over its vocabulary of 30,522 tokens (head untrained: a step's time
does not depend on what was learnt). Batch 16 x 128 tokens, student at 1, 1/2 and 1/3 of the width.

The reference is the same step as one would write it at first: fp32, eager attention with all maps returned, logits at
all positions, and 0/1 masks in place of cuts, so that its cost is the same at every width. It runs in a process of
its own, because a run of ours sets the allocator up for itself, and takes its turn with the others.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedModel

from homodistil.assets import fetch
from homodistil.compress.importance import magnitude, sensitivity
from homodistil.compress.plan import plan
from homodistil.compress.shrink import select
from homodistil.distill.data import batches
from homodistil.distill.prepare import Run, prepare
from homodistil.reading import build

BATCH, LENGTH = 16, 128
WIDTHS = {"1": "1.0", "1/2": "0.5", "1/3": "hidden=132,ffn=512"}


def teacher_with_head(folder: Path) -> Path:
    """MiniLM with a language-model head, saved."""
    torch.manual_seed(0)
    logging.getLogger("transformers").setLevel(logging.CRITICAL)  # it tells at length that the head is new
    model = BertForMaskedLM.from_pretrained(fetch("minilm"))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(fetch("minilm")).save_pretrained(folder)
    return folder


def ready(teacher: Path, out: Path, precision: str, target: str) -> Run:
    """A run whose student has been cut to a target, ready for its next step."""
    recipe = build(
        {"teacher": str(teacher), "data": str(fetch("wiki-leads")), "target": ["1.0"], "out": str(out), "steps": 100,
         "batch": BATCH, "precision": precision, "text": {"length": LENGTH}}
    )  # fmt: skip
    run = prepare(recipe, resume=False, texts=None)
    layout, student = run.state.layout, run.state.student
    shape = plan(layout, layout.shape(student), [target])[0].shape
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), shape), compensate=False)
    return run


def our_step(run: Run, batch: dict[str, Tensor], *, scored: bool) -> None:
    """One step of the loop: both forwards, losses, backward, clipping, AdamW, and a score if asked for."""
    state = run.state
    with run.precision:
        with torch.no_grad():
            theirs = run.runner(run.teacher.model, batch)
        with state.moments.listening(batch["ordinary"]) if scored else contextlib.nullcontext():
            mine = run.runner(state.student, batch)
        terms = run.objective.terms(mine, theirs, batch, {})
    run.accelerator.backward(run.objective.total(terms))
    if scored:
        state.importance.update(sensitivity(state.layout, state.student))
    nn.utils.clip_grad_norm_([p for g in state.optimizer.param_groups for p in g["params"]], 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


class Reference:
    """The step as one would write it at first. Units are masked by multiplying weights, never cut."""

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = copy.deepcopy(teacher)
        self.student = copy.deepcopy(teacher).requires_grad_(True)
        for model in (self.teacher, self.student):
            model.set_attn_implementation("eager")
        hidden, states = teacher.config.hidden_size, teacher.config.num_hidden_layers + 1
        self.maps = nn.ParameterList(nn.Parameter(torch.eye(hidden)) for _ in range(states))
        self.masks = {p: torch.ones_like(p) for p in self.student.parameters()}
        self.optimizer = torch.optim.AdamW([*self.student.parameters(), *self.maps], lr=1e-4)

    def step(self, batch: dict[str, Tensor]) -> None:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        with torch.no_grad():
            for parameter, mask in self.masks.items():
                parameter.mul_(mask)
            t = self.teacher(**inputs, output_hidden_states=True, output_attentions=True)
        s = self.student(**inputs, output_hidden_states=True, output_attentions=True)
        at = batch["positions"]
        loss = F.cross_entropy(s.logits.flatten(0, 1)[at], batch["labels"])
        loss = loss + F.kl_div(
            F.log_softmax(s.logits, -1).flatten(0, 1), F.softmax(t.logits, -1).flatten(0, 1), reduction="batchmean"
        )
        pairs = zip(s.hidden_states, t.hidden_states, self.maps, strict=True)
        loss = loss + sum(F.mse_loss(a @ w, b) for a, b, w in pairs)
        loss = loss + sum(F.mse_loss(a, b) for a, b in zip(s.attentions, t.attentions, strict=True))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        # importance at every step, of every weight
        scores = [(p.detach() * p.grad).abs().sum() for p in self.student.parameters() if p.grad is not None]
        assert scores
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()


def answer_with_reference(teacher: Path, batch: dict[str, Tensor], pipe: Connection) -> None:
    """In a process of its own: one reference step for each word that comes, and its seconds back."""
    model = BertForMaskedLM.from_pretrained(teacher).eval().requires_grad_(False)
    reference = Reference(model)
    while pipe.recv():
        started = time.perf_counter()
        reference.step(batch)
        pipe.send(time.perf_counter() - started)


def timed(step: Callable[[], None]) -> Callable[[], float]:
    """The step, answering with its seconds."""

    def run() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    return run


def in_turns(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds of each, measured in turns after two rounds that are not counted."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            spent[name].append(step())
    return {name: statistics.median(seconds[2:]) for name, seconds in spent.items()}


def score_seconds(run: Run, batch: dict[str, Tensor], rounds: int) -> float:
    """Median seconds of scoring every unit from the gradients of a step."""
    state = run.state
    with run.precision:
        mine, theirs = run.runner(state.student, batch), run.runner(run.teacher.model, batch)
        run.accelerator.backward(run.objective.total(run.objective.terms(mine, theirs, batch, {})))
    score = timed(lambda: state.importance.update(sensitivity(state.layout, state.student)))
    return statistics.median([score() for _ in range(rounds + 1)][1:])


def cut_seconds(run: Run) -> float:
    """Selecting and cutting one grain of hidden and ffn and one dimension of each head, on a copy of the state."""
    layout, state = run.state.layout, copy.deepcopy(run.state)
    shape = layout.shape(state.student)
    smaller = {**shape, "hidden": shape["hidden"] - 8, "ffn": shape["ffn"] - 8, "head_dim": shape["head_dim"] - 1}
    started = time.perf_counter()
    keep = select(layout, layout.sizes(state.student), state.importance.ranking(), smaller)
    state.shrink(keep, compensate=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        teacher = teacher_with_head(Path(scratch) / "teacher")
        runs = {
            f"{precision} {name}": ready(teacher, Path(scratch) / f"{precision}{k}", precision, target)
            for precision in ("bf16", "fp32")
            for k, (name, target) in enumerate(WIDTHS.items())
        }
        first = next(iter(runs.values()))
        batch = next(batches(first.corpus.train, first.collate, BATCH, start=0))
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(
            target=answer_with_reference, args=(teacher, batch, theirs), daemon=True
        )
        child.start()

        def reference() -> float:
            ours.send(True)
            seconds: float = ours.recv()
            return seconds

        steps: dict[str, Callable[[], float]] = {"reference": reference}
        for name, run in runs.items():
            steps[name] = timed(lambda run=run: our_step(run, batch, scored=False))  # type: ignore[misc]
        steps["bf16 1, scored"] = timed(lambda: our_step(runs["bf16 1"], batch, scored=True))
        seconds = in_turns(steps, options.rounds)
        ours.send(False)
        child.join()
        score = score_seconds(runs["bf16 1"], batch, options.rounds)
        cutting = cut_seconds(runs["bf16 1"])
    tokens = BATCH * LENGTH
    rows: list[dict[str, Any]] = [
        {"step": name, "seconds": s, "tokens_per_second": tokens / s, "times_reference": seconds["reference"] / s}
        for name, s in seconds.items()
    ]
    table = Table("step", "seconds", "tokens/s", "x reference")
    for row in rows:
        table.add_row(
            row["step"], f"{row['seconds']:.3f}", f"{row['tokens_per_second']:,.0f}", f"{row['times_reference']:.1f}"
        )
    console = Console()
    console.print(table)
    # as in a run of 1,000 steps with the default ramp to half the width: a score every 8 steps, 80 cuts
    share = (400 / 8 * score + 80 * cutting) / (1000 * seconds["bf16 1/2"] + 400 / 8 * score + 80 * cutting)
    console.print(f"A score costs {score:.3f} s, a cut {cutting:.3f} s.")
    console.print(f"Together at most {share:.1%} of a run of 1,000 steps to half the width.")
    if options.json:
        extra = {"score_seconds": score, "cut_seconds": cutting, "share_of_run": share}
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows, **extra}, indent=2))


if __name__ == "__main__":
    main()
