"""The model card of a student: what it is, out of what it was made, and what it lost. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import exists
from pathlib import Path
from typing import Any, Literal

import yaml

from homodistil.recipe import IN_MEMORY, Recipe
from homodistil.reports.tables import markdown

_MEANING = {
    "lm": "own language modelling",
    "prediction": "divergence from the teacher's predictions",
    "hidden": "hidden states",
    "attention": "attention",
    "embedding": "embeddings",
    "cosine": "one minus the cosine of embeddings",
    "agreement": "agreement with the teacher",
    "similarity_error": "error of similarities",
    "accuracy": "tokens found",
    "teacher_accuracy": "tokens found by the teacher",
}
_PLAIN = {"text": "plain text", "images": "images without labels"}
_VERB = {"text": "was", "images": "were"}


def card(
    recipe: Recipe,
    teacher: Mapping[str, Any],
    made: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    *,
    tokens: tuple[int, int] | None = None,
    reads: Literal["text", "images"] = "text",
) -> str:
    """A README.md with the metadata that the hub reads.

    Args:
        recipe: the run's.
        teacher: `Planned` of the teacher, as a mapping.
        made: `Planned` of the student, as a mapping.
        metrics: the run's records so far.
        tokens: of the teacher's vocabulary and of the student's, where it was trimmed.
        reads: what the models read.
    """
    name = known_as(recipe.teacher)
    head = {"library_name": "transformers", "tags": ["homodistil", "distillation", "pruning"]}
    if name == recipe.teacher:
        head["base_model"] = name
    measured = [r for r in metrics if "heldout" in r]
    # a student that was given may be of another family, which has other widths
    widths = dict.fromkeys([*teacher["shape"], *made["shape"]])
    rows = [
        *((width, *(str(m["shape"].get(width, "")) for m in (teacher, made))) for width in widths),
        *([("tokens in the vocabulary", *(f"{count:,}" for count in tokens))] if tokens else []),
        ("parameters", *(f"{m['parameters']:,}" for m in (teacher, made))),
        (
            f"MFLOPs a token, {made['sequence']} tokens a sequence",
            *(f"{m['flops_per_token'] / 1e6:.1f}" for m in (teacher, made)),
        ),
    ]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {name}, {made['target']}",
        f"A smaller {name}, made with HomoDistil: it began as {_start(recipe)} and was distilled on "
        f"{_PLAIN[reads]} while its least important units were cut away. It opens with plain transformers.",
        *(
            ["It embeds in its teacher's space: embeddings of both can be compared."]
            if recipe.space == "teacher"
            else []
        ),
        markdown(("", "teacher", "this model"), rows),
        f"Teacher: `{name}`. {reads.capitalize()}: `{known_as(recipe.data)}`. "
        f"Learnt from {metrics[-1]['tokens'] if metrics else 0:,} tokens in {metrics[-1]['step'] if metrics else 0} "
        "steps.",
        f"## On {reads} that {_VERB[reads]} not learnt from",
        "Losses compare with the teacher and are 0 for an exact copy, but for its own language modelling.",
        _along(measured),
        "## How it was made",
        "With this recipe, in a file `recipe.yaml`, and the places of teacher, data and out in it:",
        "```\nhomodistil distil --config recipe.yaml\n```",
        f"```yaml\n{_portable(recipe).to_yaml()}```",
    ]
    return "\n\n".join(parts) + "\n"


def _portable(recipe: Recipe) -> Recipe:
    """The recipe with what it reads named alone, which lies elsewhere where the card is read."""
    return replace(
        recipe,
        teacher=known_as(recipe.teacher),
        # texts that were in memory lie in no file
        data="texts.txt" if recipe.data == IN_MEMORY else known_as(recipe.data),
        student=known_as(recipe.student) if recipe.student else None,
        family=known_as(recipe.family) if recipe.family else None,
        out=known_as(recipe.out),
    )


def _start(recipe: Recipe) -> str:
    return f"the student `{known_as(recipe.student)}`" if recipe.student else "a copy of its teacher"


def known_as(source: str) -> str:
    """A hub name as it is; of a path the last part, because a card is read elsewhere."""
    path = Path(source)
    return path.name if path.is_absolute() or exists(path) else source


def _along(measured: Sequence[Mapping[str, Any]]) -> str:
    names = [n for n in _MEANING if any(n in r["heldout"] for r in measured)]
    rows = [
        (
            str(r["step"]),
            str(r["widths"]["hidden"]),
            *(f"{r['heldout'][n]:.4f}" if n in r["heldout"] else "" for n in names),
        )
        for r in measured
    ]
    return markdown(("step", "hidden", *(_MEANING[n] for n in names)), rows)
