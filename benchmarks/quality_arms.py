"""The arms of the comparison (`quality.py`), and the text that they all learn from and are measured on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homodistil.assets import fetch
from homodistil.compress.plan import plan
from homodistil.compress.shrink import shrink
from homodistil.models.student import save_student
from homodistil.models.teacher import Teacher, copy_of
from homodistil.recipe import Recipe

HELDOUT_REACTIONS = 0.2
"""Reactions that no model is distilled or fine-tuned on."""
ONE_SHOT = {"calibration": 64, "ramp_start": 0.0, "ramp_end": 0.0}
"""All at once after a long measurement: four times the batches that the homotopic arm measures before its first cut."""


@dataclass(frozen=True, order=True)
class Run:
    """One run of the comparison."""

    seed: int
    teacher: str
    target: str
    arm: str
    tokens: str

    @property
    def name(self) -> str:
        """A folder's name."""
        return f"{self.teacher}-{self.target}-{self.arm}-{self.tokens}-{self.seed}"


def budget(tokens: str) -> int:
    """A budget of tokens as a number."""
    return Recipe(teacher="", data="", out="", target=[], tokens=tokens).token_budget()


def _random(run: Run, teacher: Teacher, folder: Path) -> Path:
    """The target's shape with random weights."""
    shaped = copy_of(teacher)
    shrink(shaped, run.target)
    torch.manual_seed(run.seed)
    save_student(folder, type(shaped)(shaped.config), teacher, "")
    return folder


def _layers(run: Run, teacher: Teacher, folder: Path) -> Path:
    """Evenly spaced layers of the teacher in their full width, with as many parameters as the target has in its own."""
    student = copy_of(teacher)
    layers = student.base_model.encoder.layer
    shape = teacher.layout.shape(teacher.model)
    target = plan(teacher.layout, shape, [run.target])[0].shape
    products = [w["hidden"] * (4 * w["heads"] * w["head_dim"] + 2 * w["ffn"]) for w in (target, shape)]
    count = max(1, round(len(layers) * products[0] / products[1]))
    kept = [layers[round((k + 1) * len(layers) / count) - 1] for k in range(count)]
    student.base_model.encoder.layer = torch.nn.ModuleList(kept)
    student.config.num_hidden_layers = count
    save_student(folder, student, teacher, "")
    return folder


Options = Mapping[str, Any]
ARMS: dict[str, tuple[Options, Callable[[Run, Teacher, Path], Path] | None]] = {
    "homotopic": ({}, None),
    "one-shot": ({"cutting": ONE_SHOT}, None),
    "random": ({}, _random),
    "layers": ({}, _layers),
    "magnitude": ({"cutting": {"importance": "magnitude"}}, None),
    "no-distillation": (
        {"losses": {"prediction": 0.0, "hidden": 0.0, "attention": 0.0, "embedding": 0.0}},
        None,
    ),
    "paper": ({"preset": "paper"}, None),
    "one-rate": ({"optim": {"width_power": 0.0}}, None),
    "adamw": ({"optim": {"method": "adamw"}}, None),
    "no-cosine": ({"losses": {"cosine": 0.0}}, None),
    "after-half": ({}, None),
}
"""For each arm what it changes of the recipe, and what makes its first student if that is no copy of the teacher."""
BEFORE = {"after-half": ("0.5",)}
"""Arms that reach other targets first, in the same run and with as many tokens for each of them."""
ENCODERS, REACTIONS = ("minilm", "mpnet"), ("rxnfp", "rxnmapper")
"""The teachers: sentence encoders, and masked language models of chemical reactions."""
ONLY = {"no-distillation": REACTIONS, "paper": REACTIONS, "no-cosine": ENCODERS, "layers": (*ENCODERS, "rxnfp")}
"""Arms of some teachers: the others have no language model, no embeddings, or one set of weights for all layers."""
RATES = {"random": 2.0, "paper": 4.0}
"""Arms that learn at another rate than the default one, and how many times it."""
TEACHER = "teacher"
"""The arm that is not distilled, so that there is something to compare with."""


def text_of(teacher: str, data: Path, work: Path) -> tuple[Path, Path]:
    """Text to learn from, and text that is only measured on."""
    learn, held = work / f"{teacher}-learn.txt", work / f"{teacher}-held.txt"
    if not held.exists():
        draw = random.Random(0)
        if teacher in ENCODERS:
            books = [b for b in sorted((data / "text" / "openstax").glob("*.txt")) if b.stem != "psychology"]
            lines = fetch("wiki-leads").read_text().splitlines()
            lines += [line for book in books for line in book.read_text().splitlines() if len(line.split()) > 3]
            others = (data / "text" / "openstax" / "psychology.txt").read_text().splitlines()
            others = [line for line in others if len(line.split()) > 3]
        else:
            rows = reactions(data)
            lines, others = ([rxn for rxn, _ in part] for part in rows)
        draw.shuffle(lines)
        draw.shuffle(others)
        learn.write_text("\n".join(lines) + "\n")
        held.write_text("\n".join(others) + "\n")
    return learn, held


def reactions(data: Path) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Reactions with their yields: to learn from, and held out."""
    lines = (data / "reactions" / "suzuki_5760.tsv").read_text().splitlines()[1:]
    rows = [(cells[1], float(cells[2])) for line in lines if (cells := line.split("\t"))]
    random.Random(1).shuffle(rows)
    count = round(HELDOUT_REACTIONS * len(rows))
    return rows[count:], rows[:count]
