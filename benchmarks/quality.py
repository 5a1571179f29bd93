"""Homotopic distillation against what else could be done with the same teacher, text and tokens.

    python benchmarks/quality.py --data-dir ../shared/data      # restartable; several processes share the work

    python benchmarks/quality_tables.py                         # what has been finished

A finished run is one line of --results, a fine-tuned task another; what is there is not run again, but for a student
whose folder is gone when a task asks for it. What was interrupted goes on from its last checkpoint. Nothing is chosen
on what is reported: settings are the package's defaults, the same for all arms but for what makes the arm, and for the
rates of random weights and of the paper's rule (`quality_arms.RATES`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from filelock import FileLock, Timeout
from transformers import AutoConfig

import homodistil
from atom_maps import agreement as atoms_agree
from atom_maps import mapped
from harness import RESULTS
from homodistil.assets import fetch
from homodistil.distill import defaults as left_open
from homodistil.evaluation.agreement import agreement
from homodistil.evaluation.finetune import defaults, finetune
from homodistil.evaluation.language import blocks, masked_predictions, usual
from homodistil.evaluation.models import open_model
from homodistil.evaluation.probe import probe
from homodistil.evaluation.records import machine
from homodistil.evaluation.similarity import judged_pairs
from homodistil.evaluation.tasks import TASKS, open_task
from homodistil.models.teacher import load_teacher
from homodistil.rundir import writing_folder
from quality_arms import ARMS, BEFORE, ENCODERS, ONLY, RATES, TEACHER, Run, budget, reactions, text_of

TARGETS = ("0.3", "0.5")
SEEDS = (0, 1, 2)
GLUE_TASKS = ("stsb", "mrpc", "rte", "cola", "sst2")


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """All runs, a seed after the other, so that what has been finished can always be compared."""
    for seed in options.seeds:
        for arm in options.arms:
            for teacher in options.teachers:
                if arm == TEACHER:
                    yield Run(seed=seed, teacher=teacher, target="1", arm=arm, tokens="0")
                    continue
                for target in options.targets:
                    if teacher in ONLY.get(arm, (teacher,)) and target not in BEFORE.get(arm, ()):
                        yield Run(seed=seed, teacher=teacher, target=target, arm=arm, tokens=options.tokens)


def folder_of(run: Run, work: Path) -> Path:
    """Where the model of a run lies, or will lie."""
    return fetch(run.teacher) if run.arm == TEACHER else work / f"{run.name}-student"


def one(run: Run, data: Path, work: Path) -> dict[str, Any]:
    """Distil, and measure without fine-tuning."""
    done: dict[str, Any] = {"values": {}, "seconds": 0.0, "tokens_seen": 0}
    if run.arm != TEACHER:
        done = distilled(run, data, work)
    values = measure(run, folder_of(run, work), fetch(run.teacher), text_of(run.teacher, data, work)[1], data)
    count = sum(p.numel() for p in open_model(str(folder_of(run, work))).model.parameters())
    return {**done, "values": values | done["values"], "parameters": count}


def distilled(
    run: Run, data: Path, work: Path, changes: Mapping[str, Any] | None = None, times: float | None = None
) -> dict[str, Any]:
    """Distil alone, or go on: the student's folder, and beside it the records of its steps. The run itself stays.

    Args:
        run: which.
        data: where evaluation data lie.
        work: where its folder is made, and its student's.
        changes: options that are other than the arm's, those of a section in a mapping of its own.
        times: how many times the default learning rate; the arm's own multiple (`RATES`) without it.
    """
    source = fetch(run.teacher)
    learn, _ = text_of(run.teacher, data, work)
    out = work / run.name
    options, start = ARMS[run.arm]
    times = RATES.get(run.arm, 1.0) if times is None else times
    for name, change in (changes or {}).items():
        options = {**options, name: {**options.get(name, {}), **change} if isinstance(change, Mapping) else change}
    target = run.target if start is None else "1.0"
    # a run that was interrupted does not know how long it took
    seconds: float | None = None
    if (out / "recipe.yaml").exists():
        result = homodistil.resume(out)
    else:
        if start is not None:
            options = {**options, "student": str(start(run, load_teacher(str(source)), work / f"{run.name}-start"))}
        targets = [*BEFORE.get(run.arm, ()), target]
        started = time.perf_counter()
        with patch.object(left_open, "RATE", times * left_open.RATE):
            result = homodistil.distil(
                source, learn, targets, out, tokens=str(len(targets) * budget(run.tokens)), seed=run.seed,
                checkpoint_minutes=15, **options,
            )  # fmt: skip
        seconds = round(time.perf_counter() - started, 1)
    with writing_folder(folder_of(run, work)) as folder:
        shutil.copytree(result.students[target], folder, dirs_exist_ok=True)
    shutil.copy(out / "metrics.jsonl", path_of(run, work))
    tokens = metrics_of(run, work)[-1]["tokens"]
    return {
        "values": _prefixed("heldout", result.heldout[target]),
        "seconds": seconds,
        "tokens_seen": tokens,
    }


def forget(run: Run, work: Path) -> None:
    """Remove a run whose student and line are kept; all of it at once, so that nobody goes on with what is left."""
    out, gone = work / run.name, work / f"{run.name}-gone"
    shutil.rmtree(gone, ignore_errors=True)
    if out.exists():
        shutil.rmtree(out.rename(gone))


def path_of(run: Run, work: Path) -> Path:
    """The records of a run's steps."""
    return work / f"{run.name}-metrics.jsonl"


def metrics_of(run: Run, work: Path) -> list[dict[str, Any]]:
    """Those records, read."""
    return [json.loads(line) for line in path_of(run, work).read_text().splitlines()]


def measure(run: Run, folder: Path, source: Path, held: Path, data: Path) -> dict[str, float]:
    """What a student can do before it is fine-tuned."""
    student, teacher = open_model(str(folder)), open_model(str(source))
    texts = held.read_text().splitlines()
    ids = blocks(student, texts, usual(student, texts), 128)
    values: dict[str, float] = {}
    if run.arm != TEACHER:
        values |= _prefixed("held-out text", agreement(student, teacher, ids, texts[:400]))
    if student.head == "masked":
        hits = [said.argmax(-1) == right for said, right in masked_predictions(student, ids)]
        values["held-out text: masked accuracy"] = torch.cat(hits).float().mean().item()
    if run.teacher == "rxnmapper" and run.arm != TEACHER:
        maps = (mapped(place, texts[:400]) for place in (folder, source))
        values |= _prefixed("held-out text", atoms_agree(*maps))
    if run.teacher in ENCODERS:
        for split in ("validation", "test"):
            rows = datasets_of(data, split)
            values[f"stsb {split}: spearman"] = judged_pairs(folder, TASKS["stsb"], rows)
    return values


def datasets_of(data: Path, split: str) -> Any:
    """A split of the STS benchmark."""
    import datasets

    return datasets.load_dataset("json", data_files=str(data / "glue" / "stsb" / f"{split}.jsonl"), split="train")


def tasks_of(run: Run, data: Path, work: Path) -> dict[str, str]:
    """The labelled tasks of a teacher's field: the name, and what `open_task` opens."""
    if run.teacher in ENCODERS:
        return {name: name for name in GLUE_TASKS}
    folder = work / "yields"
    for split, rows in zip(("train", "validation"), reactions(data), strict=True):
        folder.mkdir(exist_ok=True)
        file = folder / f"{split}.jsonl"
        if not file.exists():
            file.write_text("".join(json.dumps({"text": r, "label": y}) + "\n" for r, y in rows))
    return {"yields": str(folder)}


def fine_tuned(run: Run, task: str, data: Path, work: Path, limit: int) -> dict[str, Any]:
    """One task learnt by one student, seeded by the run's seed."""
    folder = folder_of(run, work)
    splits = open_task(task, data, limit=limit)
    settings = defaults(splits.task, len(splits.train), AutoConfig.from_pretrained(folder).hidden_size)
    started = time.perf_counter()
    values = finetune(folder, splits, settings, seed=run.seed)
    return {"values": values, "seconds": round(time.perf_counter() - started, 1), "settings": asdict(settings)}


def probed(run: Run, task: str, data: Path, work: Path, limit: int) -> dict[str, Any]:
    """One task learnt by a linear model on the frozen embeddings of one student."""
    started = time.perf_counter()
    values = probe(folder_of(run, work), open_task(task, data, limit=limit))
    return {"values": values, "seconds": round(time.perf_counter() - started, 1)}


def work_through(options: argparse.Namespace) -> None:
    """Do what has not been done, and is not being done by another process."""
    data, work, results = options.data_dir.resolve(), options.work.resolve(), options.results
    work.mkdir(parents=True, exist_ok=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    for run in runs(options):
        jobs: dict[str, Callable[[], dict[str, Any]]] = {"distil": lambda run=run: one(run, data, work)}  # type: ignore[misc]
        if options.probes:
            for name, task in tasks_of(run, data, work).items():
                jobs[f"{name} probe"] = lambda run=run, task=task: probed(run, task, data, work, options.limit)  # type: ignore[misc]
        if options.tasks:
            for name, task in tasks_of(run, data, work).items():
                jobs[name] = lambda run=run, task=task: fine_tuned(run, task, data, work, options.limit)  # type: ignore[misc]
        try:
            with FileLock(work / f"{run.name}.lock", timeout=0):
                for kind, job in jobs.items():
                    key = {**asdict(run), "kind": kind}
                    if any(key.items() <= line.items() for line in finished(results)):
                        continue
                    print(f"{run.name}: {kind} ...", flush=True)
                    if kind != "distil" and not folder_of(run, work).exists():
                        distilled(run, data, work)
                    line = {**key, **job(), "threads": options.threads, "machine": machine()}
                    with FileLock(work / "results.lock"), results.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    forget(run, work)
        except Timeout:
            continue


def finished(results: Path) -> list[dict[str, Any]]:
    """The lines of all finished jobs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}: {name}": value for name, value in values.items()}


def _names(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=RESULTS / "quality.jsonl")
    parser.add_argument("--arms", type=_names, default=[TEACHER, *ARMS])
    parser.add_argument("--teachers", type=_names, default=["minilm", "rxnfp"])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="several with spaces between them")
    parser.add_argument("--seeds", type=lambda t: [int(s) for s in t.split(",")], default=list(SEEDS))
    parser.add_argument("--tokens", default="1M")
    parser.add_argument("--threads", type=int, default=1, help="of each process; start one process a core")
    parser.add_argument("--tasks", action="store_true", help="fine-tune as well")
    parser.add_argument("--probes", action="store_true", help="fit linear models on frozen embeddings as well")
    parser.add_argument("--limit", type=int, default=10_000, help="rows that a task is learnt from at most")
    work_through(parser.parse_args())


if __name__ == "__main__":
    main()
