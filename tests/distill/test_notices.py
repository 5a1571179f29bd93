"""What a run has chosen by itself is said before its first step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from transformers import BertForMaskedLM, BertModel

from conftest import WORDS
from homodistil.distill.notices import notices
from homodistil.distill.prepare import Run


def _said(run: Run, **asked: Any) -> list[str]:
    return list(notices(run, replace(run.recipe, **asked)))


def _texts(words: int, long: int) -> str:
    draw = random.Random(0)
    return "\n".join(" ".join(draw.choices(WORDS, k=60 if k < long else words)) for k in range(200))


@pytest.mark.parametrize("stream", [False, True])
def test_that_the_ends_of_texts_are_not_read_is_said(stream: bool, ready: Callable[..., Run], tmp_path: Any) -> None:
    """With the share of the texts, and not where it is a hundredth at most."""
    seen = []
    for long in (30, 2):
        (tmp_path / "texts.txt").write_text(_texts(9, long))
        options = {"data": str(tmp_path / "texts.txt"), "out": str(tmp_path / f"run-{long}")}
        seen.append(_said(ready(BertModel, text={"length": 32, "stream": stream}, **options)))
    assert seen == [["15% of the texts are read to their token 32 and no further (--text.length)"], []]


def test_a_length_and_a_batch_that_nobody_has_asked_for_are_said(ready: Callable[..., Run]) -> None:
    """Those that were are not."""
    run = ready(BertForMaskedLM)
    run = replace(run, recipe=replace(run.recipe, text=replace(run.recipe.text, length=64)))
    asked = {"text": replace(run.recipe.text, length=None), "batch": 0, "tokens": "2k"}
    said = ["sequences of up to 64 tokens", "batch: 4, so that 2k tokens are 10 steps"]
    assert _said(run, **asked, steps=None) == said
    assert _said(run, **asked, steps=10) == [said[0], "batch: 4"]
    assert _said(run) == []


def test_prompts_and_missed_budgets_are_said(ready: Callable[..., Run]) -> None:
    """With what came of them."""
    run = ready(BertModel, text={"length": 32, "prompts": ["the ", "a "]})
    missed = replace(run.planned[0], target="2k", parameters=2500, missed=0.25)
    said = _said(replace(run, planned=[missed]))
    assert said[0] == "before each text one of ['the ', 'a ']"
    assert said[1].startswith("2k: 2,500 parameters, +25.0% off the budget")
    assert len(said) == 2


@pytest.mark.parametrize(
    ("teacher", "options", "without_effect"),
    [
        (BertModel, {"losses": {"lm": 2.0, "masked": 0.5, "temperature": 3.0}},
         ["losses.lm = 2.0", "losses.masked = 0.5", "losses.temperature = 3.0"]),
        (BertModel, {"losses": {"similarity_temperature": 0.5}, "text": {"length": 16, "crops": 0.1}}, []),
        (BertModel, {"optim": {"method": "adamw", "momentum": 0.9, "beta1": 0.8, "scale": 1.0}},
         ["optim.momentum = 0.9", "optim.scale = 1.0"]),
        (BertForMaskedLM, {"losses": {"similarity_temperature": 0.5}, "text": {"length": 16, "crops": 0.1}},
         ["losses.similarity_temperature = 0.5", "text.crops = 0.1"]),
        (BertForMaskedLM, {"losses": {"lm": 2.0, "masked": 0.5, "temperature": 3.0}, "optim": {"momentum": 0.9}}, []),
    ],
)  # fmt: skip
def test_an_option_that_this_run_does_not_read_is_said(
    teacher: Any, options: dict[str, Any], without_effect: list[str], ready: Callable[..., Run]
) -> None:
    """What another teacher, or another optimizer, would make of it; and none that is read."""
    said = _said(ready(teacher, **options))
    assert [line for line in said if "effect" in line] == [f"{o} has no effect in this run" for o in without_effect]
