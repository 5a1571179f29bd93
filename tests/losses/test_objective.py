"""The laws of distillation: no loss before a cut, no loss from padding, gradients for every parameter after one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.data.collate import draws, heldout_draws
from homodistil.distill.prepare import Run
from homodistil.losses import losses
from runs import batch_of, cut_narrow, terms_of

CLASSES = [
    BertForMaskedLM,
    BertModel,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForQuestionAnswering,
]


COSINE = {"cosine": 1.0}
"""Of encoders alone, and by default of those that somebody has made sentence encoders of."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["scores", "probabilities"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_an_uncut_student_has_exactly_zero_distillation_loss(
    model_class: type[PreTrainedModel], kind: str, precision: str, ready: Callable[..., Run]
) -> None:
    """Every term but the student's own language modelling is 0.0, in both precisions, and so is its gradient: an
    optimizer that evens gradients out would make steps of rounding.
    """
    cosine = COSINE if model_class is BertModel else {}
    run = ready(model_class, precision=precision, losses={"attention_kind": kind} | cosine)
    terms = terms_of(run, batch_of(run))
    own = terms.pop("lm", None)
    assert (own is not None) == (model_class is BertForMaskedLM)
    nothing = {"prediction": 0.0, "hidden": 0.0, "attention": 0.0, "embedding": 0.0} | dict.fromkeys(cosine, 0.0)
    assert {name: term.item() for name, term in terms.items()} == nothing
    run.objective.total(terms).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in run.state.student.parameters() if p.grad is not None]
    assert gradients
    assert not any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("distance", ["mse", "relative"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_padding_changes_no_loss(model_class: type[PreTrainedModel], distance: str, ready: Callable[..., Run]) -> None:
    """The same texts in a longer batch have the same losses."""
    weights = {"hidden_kind": distance} | (COSINE if model_class is BertModel else {})
    run = ready(model_class, text={"length": 32, "packing": "texts"}, losses=weights)
    cut_narrow(run)
    short = batch_of(run)
    rows, width = short["input_ids"].shape
    longer = {k: torch.nn.functional.pad(v, (0, 16)) for k, v in short.items() if v.shape == (rows, width)}
    if "positions" in short:
        at = short["positions"]
        longer |= {"positions": at // width * (width + 16) + at % width, "labels": short["labels"]}
    before, after = terms_of(run, short), terms_of(run, longer)
    for name, term in before.items():
        assert term.item() > 1e-4, name
        torch.testing.assert_close(after[name], term, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_class", CLASSES)
def test_after_a_cut_every_parameter_gets_a_gradient_and_is_stepped(
    model_class: type[PreTrainedModel], ready: Callable[..., Run]
) -> None:
    """Cut after a first step, with moments to move: the next step reaches every parameter, and ties hold."""
    run = ready(model_class)
    state = run.state
    for cutting in (False, True):
        if cutting:
            cut_narrow(run)
        before = {n: p.detach().clone() for n, p in state.student.named_parameters()}
        run.objective.total(terms_of(run, batch_of(run))).backward()  # type: ignore[no-untyped-call]
        for name, parameter in state.student.named_parameters():
            assert parameter.grad is not None, name
        state.optimizer.step()
        state.optimizer.zero_grad()
    assert {id(p) for p in state.student.parameters()} <= {
        id(p) for group in state.optimizer.param_groups for p in group["params"]
    }
    # keys' biases move no softmax, so their gradients may be zero; everything else must have moved
    still = [n for n, p in state.student.named_parameters() if torch.equal(p, before[n])]
    assert all(name.endswith("key.bias") for name in still)
    if model_class is BertForMaskedLM:
        assert state.student.cls.predictions.decoder.weight is state.student.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_as_many_tokens_are_predicted_as_the_recipe_says(share: float, ready: Callable[..., Run]) -> None:
    """Of those that are no special ones; held-out text has its 15 % whatever it says."""
    run = ready(BertForMaskedLM, losses={"masked": share})
    measured = next(heldout_draws(run.corpus.heldout, 4))
    for draw, expected in ((next(draws(run.corpus.train, 4, start=0)), share), (measured, 0.15)):
        batch = run.batch(draw)
        assert len(batch["positions"]) == max(1, int(expected * int(batch["ordinary"].sum())))


def test_the_discrepancy_is_the_weighted_sum_without_the_students_own_language_model(ready: Callable[..., Run]) -> None:
    """Which is no comparison with the teacher."""
    objective = ready(BertForMaskedLM, losses={"hidden": 0.5, "embedding": 3.0}).objective
    assert objective.discrepancy({"hidden": 1.0, "embedding": 0.5, "lm": 9.0}) == 0.5 + 1.5


def test_a_term_of_weight_zero_is_not_computed(ready: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without their weights no loss function is called, no attention is kept, and no logits are made."""
    run = ready(BertForMaskedLM, losses={"lm": 0, "prediction": 0, "attention": 0, "embedding": 0, "hidden": 1})

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed")

    for name in ("tokens", "prediction", "attention_scores", "similarity", "cosine"):
        monkeypatch.setattr(losses, name, never)
    run.state.student.cls.register_forward_hook(never)
    run.teacher.model.cls.register_forward_hook(never)
    outputs = run.runner(run.state.student, batch_of(run))
    assert outputs.attention == ()
    assert outputs.tokens is None
    assert list(terms_of(run, batch_of(run))) == ["hidden"]


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_answers_are_compared_at_any_temperature(temperature: float, ready: Callable[..., Run]) -> None:
    """Padding, which is no place of an answer, has no share at any of them."""
    run = ready(BertForQuestionAnswering, losses={"temperature": temperature})
    batch = batch_of(run)
    assert (batch["attention_mask"] == 0).any()
    assert terms_of(run, batch)["prediction"].item() == 0
    cut_narrow(run)
    terms = terms_of(run, batch)
    assert 0 < terms["prediction"].item() < math.inf
    run.objective.total(terms).backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in run.state.student.parameters() if p.grad is not None)


def test_a_head_of_one_number_learns_by_the_squared_difference(
    ready: Callable[..., Run], save_teacher: Callable[..., Path]
) -> None:
    """The softmax of one number is 1 whatever it is."""
    run = ready(BertForSequenceClassification, teacher=str(save_teacher(BertForSequenceClassification, num_labels=1)))
    cut_narrow(run)
    batch = batch_of(run)
    mine, theirs = (run.runner(model, batch).prediction for model in (run.state.student, run.teacher.model))
    assert mine is not None
    assert theirs is not None
    expected = (mine - theirs).square().mean()
    assert expected > 1e-4
    torch.testing.assert_close(terms_of(run, batch)["prediction"], expected)


def test_a_batch_without_a_token_to_predict_has_no_loss(ready: Callable[..., Run]) -> None:
    """As of texts of one token each for a model of next tokens; its gradients are nothing, and no division by it."""
    run = ready(BertForMaskedLM)
    cut_narrow(run)
    nothing = torch.zeros(0, dtype=torch.long)
    terms = terms_of(run, batch_of(run) | {"positions": nothing, "labels": nothing})
    assert (terms["lm"].item(), terms["prediction"].item()) == (0.0, 0.0)
    run.objective.total(terms).backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in run.state.student.parameters() if p.grad is not None)


def test_lost_heads_are_left_out_of_the_comparison(ready: Callable[..., Run]) -> None:
    """A student that lost a head and nothing else has the teacher's scores in the first layer's other heads."""
    run = ready(BertModel, losses={"hidden": 0, "prediction": 0, "embedding": 0, "attention": 1})
    layout, student = run.state.layout, run.state.student
    shape = {"hidden": 48, "heads": 3, "head_dim": 12, "ffn": 96}
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), shape), compensate=False)
    assert set(run.descent.heads) == {0, 1}
    batch = batch_of(run)
    mine, theirs = run.runner(student, batch), run.runner(run.teacher.model, batch)
    kept = run.descent.heads[0]
    torch.testing.assert_close(mine.attention[0].queries, theirs.attention[0].queries[:, kept], rtol=1e-5, atol=1e-5)
    distances = []
    for k, (student_s, teacher_s) in enumerate(zip(mine.attention, theirs.attention, strict=True)):
        scores = student_s.queries @ student_s.keys.mT * student_s.scaling
        others = (teacher_s.queries @ teacher_s.keys.mT * teacher_s.scaling)[:, run.descent.heads[k]]
        pairs = (batch["attention_mask"][:, :, None] * batch["attention_mask"][:, None, :])[:, None].expand_as(scores)
        distances.append((scores - others)[pairs > 0].square().mean())
    assert distances[0] < 1e-8 < distances[1]
    made = run.objective.terms(mine, theirs, batch, run.descent)["attention"]
    torch.testing.assert_close(made, torch.stack(distances).mean(), rtol=1e-4, atol=1e-6)
