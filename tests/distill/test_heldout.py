"""What held-out text says of a student is the same in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.data.collate import heldout_draws
from homodistil.distill.heldout import agreement, measure, similarity_error
from homodistil.distill.prepare import Run, prepare
from homodistil.evaluation.agreement import pairs_error
from homodistil.recipe import Recipe
from homodistil.settings import Losses, Text

NARROW = {"hidden": 24, "heads": 4, "head_dim": 6, "ffn": 48}


@pytest.fixture
def cut_run(save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run whose student has lost half of its units, of texts that are not packed."""

    def made(model_class: type[PreTrainedModel], **weights: Any) -> Run:
        recipe = Recipe(
            teacher=str(save_teacher(model_class)), data=str(corpus), target=["0.5"], out=str(tmp_path / "run"),
            steps=4, batch=8, precision="fp32", losses=Losses(**weights), text=Text(length=32, packing="texts"),
        )  # fmt: skip
        run = prepare(recipe.resolved(), resume=False, texts=None)
        layout, student = run.state.layout, run.state.student
        run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), NARROW), compensate=False)
        return run

    return made


def _held(run: Run, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    return measure(run.runner, run.state.student, run.teacher.model, run.objective, batches, run.descent, run.precision)


def _texts(run: Run) -> list[Any]:
    return [sequence for _, sequence in zip(range(37), run.corpus.train.sequences(0), strict=False)]


OF_EMBEDDINGS: dict[type[PreTrainedModel], set[str]] = {BertModel: {"similarity_error"}}
KINDS = pytest.mark.parametrize(
    ("model_class", "weights"),
    [(BertForSequenceClassification, {}), (BertForTokenClassification, {}), (BertModel, {"cosine": 1.0})],
    ids=["classes", "classes of tokens", "similarities"],
)


@KINDS
def test_each_figure_is_the_same_in_batches_of_any_size(
    model_class: type[PreTrainedModel], weights: dict[str, float], cut_run: Callable[..., Run]
) -> None:
    """Of texts of other lengths, and where the last batches are smaller; similarities are those in groups of texts."""
    run = cut_run(model_class, **weights)
    whole, *others = (
        _held(run, [run.batch(draw) for draw in heldout_draws(_texts(run), size)]) for size in (37, 1, 5, 16)
    )
    known = {"prediction", "hidden", "attention", "embedding", "agreement"}
    assert known | weights.keys() | OF_EMBEDDINGS.get(model_class, set()) == whole.keys()
    assert all(value > 0 for value in whole.values())
    for other in others:
        # its pooler is once a text in the mean over tokens
        assert other.pop("hidden") == pytest.approx(whole["hidden"], rel=5e-3)
        assert other == pytest.approx({name: value for name, value in whole.items() if name != "hidden"}, rel=1e-4)


@KINDS
@torch.no_grad()
def test_of_a_single_batch_each_figure_is_the_loss_itself(
    model_class: type[PreTrainedModel], weights: dict[str, float], cut_run: Callable[..., Run]
) -> None:
    """Of as many texts as are compared with each other; no fewer losses are told than are learnt from."""
    run = cut_run(model_class, **weights)
    batch = run.collate(_texts(run)[:20], -1)
    batch["tokens"] = batch["attention_mask"].sum()
    mine, theirs = (run.runner(model, batch) for model in (run.state.student, run.teacher.model))
    terms = run.objective.terms(mine, theirs, batch, run.descent)
    found = _held(run, [batch])
    assert found.keys() == {*terms, "agreement"} | OF_EMBEDDINGS.get(model_class, set())
    assert {name: found[name] for name in terms} == pytest.approx({n: t.item() for n, t in terms.items()}, rel=1e-5)


@pytest.mark.parametrize("kind", ["similarity", "labels"])
def test_what_is_constant_agrees_with_nothing_that_varies(kind: Any) -> None:
    """With a constant it does: texts that are all alike to a teacher should be so to its student."""
    varied = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    constant = varied[:1].expand(6, -1)
    ours, others = (constant, varied) if kind == "similarity" else (constant[:, 0], varied[:, 0])
    assert agreement(kind, ours, others) == agreement(kind, others, ours) == 0
    assert agreement(kind, ours, ours) == 1
    assert agreement(kind, others, others) == pytest.approx(1)


def test_similarities_in_the_right_order_may_be_wrong_and_are_told_so(cut_run: Callable[..., Run]) -> None:
    """What all embeddings share raises each of their cosines, and agreement does not see it."""
    drawn = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    shared = torch.nn.functional.normalize(torch.cat([drawn, torch.ones(9, 1)], -1), dim=-1)
    assert agreement("similarity", shared, drawn) == pytest.approx(1)
    # a cosine c becomes (c + 1) / 2
    pairs = [float(drawn[i] @ drawn[j]) for i in range(9) for j in range(i)]
    expected = (sum((1 - c) ** 2 / 4 for c in pairs) / len(pairs)) ** 0.5
    assert similarity_error(shared, drawn) == pytest.approx(expected, rel=1e-5)
    assert similarity_error(drawn, drawn) == 0
    run = cut_run(BertModel, cosine=1.0)
    batches = [run.batch(draw) for draw in heldout_draws(_texts(run), 16)]
    models = (run.state.student, run.teacher.model)
    answers = [run.objective.answers(*(run.runner(model, batch) for model in models)) for batch in batches]
    said = [torch.cat(side).detach() for side in zip(*filter(None, answers), strict=True)]
    assert _held(run, batches)["similarity_error"] == pytest.approx(pairs_error(*said), rel=1e-5)


def test_what_is_predicted_counts_alike_wherever_it_stands(cut_run: Callable[..., Run]) -> None:
    """A batch of few masked tokens weighs as many as it has."""
    run = cut_run(BertForMaskedLM)
    few, many = run.collate(_texts(run)[:2], -1), run.collate(_texts(run)[2:32], -2)
    both = [batch | {"tokens": batch["attention_mask"].sum()} for batch in (few, many)]
    parts = [_held(run, [batch]) for batch in both]
    made = _held(run, both)
    shares = torch.tensor([float(len(batch["labels"])) for batch in both])
    for name in ("lm", "prediction", "accuracy", "teacher_accuracy", "agreement"):
        expected = (shares * torch.tensor([part[name] for part in parts])).sum() / shares.sum()
        assert made[name] == pytest.approx(float(expected), rel=1e-5), name
    assert made["lm"] != pytest.approx(sum(part["lm"] for part in parts) / 2, rel=1e-3)
