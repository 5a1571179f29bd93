"""The main job on a real teacher and real text: all-MiniLM-L6-v2 to half its width, and what came out."""

from __future__ import annotations

import random
import time
from os.path import abspath, expanduser
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from homodistil import api
from homodistil.assets import fetch
from homodistil.compress import importance
from homodistil.compress.compensate import InputMoments
from homodistil.compress.importance import Importance
from homodistil.compress.shrink import shrink
from homodistil.data.collate import Collator, batches
from homodistil.data.corpus import load_corpus
from homodistil.evaluation.similarity import embed, follows
from homodistil.evaluation.speed import sentences_per_second
from homodistil.losses.outputs import Runner
from homodistil.models.student import save_student
from homodistil.models.teacher import copy_of, load_teacher
from homodistil.pinned import ASSETS
from homodistil.recipe import Recipe
from homodistil.reports.live import Display
from homodistil.rundir import RunDir, disk_failure

TARGET = "0.5"
HELDOUT = 400
"""Texts on which the models are compared, from which nobody learns."""
CALIBRATION = 8
"""Batches on which one-shot cutting measures importance and means."""


def demo(out: str, tokens: str) -> None:
    """Distil, then print a table of teacher, student, and a student that was only cut.

    Args:
        out: the run's folder; a number is added if it is taken.
        tokens: how long to train.

    Raises:
        UserError: the number of tokens cannot be read, or the folder cannot be written.
    """
    # before anything is fetched or written
    Recipe(teacher="minilm", data="wiki-leads", target=[TARGET], out=out, tokens=tokens).token_budget()
    console = Console()
    started = time.monotonic()
    say = Display(console).say
    licences = [ASSETS[name].licence for name in ("minilm", "wiki-leads")]
    say(f"Fetching, once: all-MiniLM-L6-v2 ({licences[0]}), and the lead sections of 10,033 articles of Wikipedia")
    say(f"({licences[1]}) ...")
    teacher, text = fetch("minilm"), fetch("wiki-leads")
    # names of folders beside it are made of its own, which `.` has not
    folder = _free(Path(abspath(expanduser(out))))
    learn, held = _split(text, folder.with_name(f"{folder.name}-text"))
    say(f"Distilling to {TARGET} of the width, with {tokens} tokens, into {folder}")
    result = api.distil(teacher, learn, TARGET, folder, tokens=tokens, evaluations=4, display=Display(console))
    student = result.students[TARGET]
    say("Cutting the teacher in one step, without distillation, for comparison ...")
    cut = folder / "one-shot"
    _one_shot(teacher, learn, cut)
    say("Measuring ...")
    names = {"teacher": teacher, f"student {TARGET}": student, f"one-shot {TARGET}, no distillation": cut}
    speeds = sentences_per_second(list(names.values()), held[:200], rounds=3)
    reference = embed(teacher, held)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for header in ("parameters", "MB on disk", "sentences/s", "Spearman"):
        table.add_column(header, justify="right", no_wrap=True)
    for (name, path), speed in zip(names.items(), speeds, strict=True):
        planned = api.plan(path, "1.0")[0]
        size = sum(f.stat().st_size for f in path.rglob("*.safetensors")) / 1e6
        same = follows(embed(path, held), reference)
        table.add_row(name, f"{planned.parameters:,}", f"{size:.1f}", f"{speed:,.0f}", f"{same:.3f}")
    # a pipe counts as 80 columns, which would cut figures off
    Console(width=max(100, console.width)).print(table)
    say(f"Spearman: how closely similarities follow the teacher's, over all pairs of {len(held)} lead sections that")
    say("nobody learnt from; 1 is the same order.")
    say(f"Took {(time.monotonic() - started) / 60:.1f} minutes. Open it with")
    say(f'    SentenceTransformer("{student}")   or   AutoModel.from_pretrained("{student}")')


def _free(wanted: Path) -> Path:
    """The folder, or with the first number behind it that is free."""
    numbered = (wanted.with_name(f"{wanted.name}-{k}") for k in range(2, 10_000))
    return wanted if not RunDir(wanted).recipe.exists() else next(p for p in numbered if not p.exists())


def _split(text: Path, folder: Path) -> tuple[Path, list[str]]:
    """A file of the texts to learn from, and the texts that are held out."""
    lines = text.read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "learn.txt").write_text("\n".join(lines[HELDOUT:]) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_failure(folder, error, "or give --out another place, and run the demo again") from error
    return folder / "learn.txt", lines[:HELDOUT]


def _one_shot(source: Path, text: Path, out: Path) -> None:
    """The same importance and compensation as in the run, all cut at once, and nothing learnt afterwards."""
    teacher = load_teacher(str(source))
    student, layout = copy_of(teacher), teacher.layout
    corpus = load_corpus(str(text), teacher.tokenizer, packed=False)
    run = Runner(kind=teacher.kind, layout=layout, pooling=teacher.pooling, attention=False, prediction=False)
    scores, moments = Importance("output", window=CALIBRATION, decay=0.0), InputMoments(student, layout)
    feed = batches(corpus.train, Collator(teacher.tokenizer, 0.0, 0), 32, start=0)
    for index, batch in zip(range(CALIBRATION), feed, strict=False):
        moments.fade()
        with moments.listening(batch["ordinary"]), torch.enable_grad():
            made = run(student, batch)
        scores.update(importance.output(layout, student, made.hidden[-1], batch["attention_mask"], index))
    shrink(student, TARGET, scores=scores.ranking(), inputs=moments.inputs)
    card = f"all-MiniLM-L6-v2 cut to {TARGET} in one step, not distilled.\n"
    save_student(out, student, teacher, card, then="and run the demo again")
