"""Each loss term equals its plain formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertForSequenceClassification,
    BertModel,
)

from homodistil.distill.heldout import _answer, agreement
from homodistil.distill.prepare import Run
from homodistil.losses import losses
from runs import batch_of, cut_narrow, terms_of


def test_the_similarity_loss_equals_a_plain_loop() -> None:
    """Each text's softmax over the others, Kullback-Leibler, mean over texts."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.nn.functional.normalize(torch.randn(5, w, generator=draw), dim=-1) for w in (3, 4))
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j != i]
        p, q = (torch.softmax(torch.stack([e[i] @ e[j] for j in others]) / 0.1, 0) for e in (teacher, student))
        expected += float((p * (p.log() - q.log())).sum()) / 5
    assert losses.similarity(student, teacher, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_the_prediction_loss_is_scaled_by_the_temperature_squared() -> None:
    """T² KL(softmax(z_t/T) || softmax(z_s/T)), mean over rows, by hand."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 9, generator=draw), torch.randn(6, 9, generator=draw)
    p, q = (torch.softmax(z / 3, -1) for z in (teacher, student))
    expected = 9 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(losses.prediction(student, teacher, 3.0), expected)


def test_labels_that_do_not_exclude_each_other_are_told_by_sigmoids(
    ready: Callable[..., Run], save_teacher: Callable[..., Path]
) -> None:
    """The loss is the divergence of each label's two outcomes, and agreement is of labels, of which many may hold."""
    many = save_teacher(BertForSequenceClassification, problem_type="multi_label_classification", num_labels=5)
    run = ready(BertForSequenceClassification, teacher=str(many))
    assert run.teacher.kind == run.objective.kind == "multi-label"
    assert terms_of(run, batch_of(run))["prediction"].item() == 0
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 5, generator=draw), torch.randn(6, 5, generator=draw)
    p, q = (torch.stack((x, 1 - x)) for x in ((teacher / 2).sigmoid(), (student / 2).sigmoid()))
    expected = 4 * (p * (p / q).log()).sum((0, 2)).mean()
    torch.testing.assert_close(losses.multi_label(student, teacher, 2.0), expected)
    assert losses.multi_label(teacher + 4, teacher, 1.0) > 1
    said = [_answer("multi-label", logits) for logits in (student, teacher)]
    assert agreement("multi-label", *said) == ((student > 0) == (teacher > 0)).float().mean()


def test_embeddings_are_compared_as_states_are(ready: Callable[..., Run], tmp_path: Path) -> None:
    """Relative to their size or not, as the weights say."""
    for distance in ("mse", "relative"):
        run = ready(BertModel, out=str(tmp_path / distance), losses={"hidden_kind": distance})
        cut_narrow(run)
        batch = batch_of(run)
        mine, theirs = (run.runner(model, batch).hidden[0] for model in (run.state.student, run.teacher.model))
        projection, relative = run.objective.projections[0], distance == "relative"
        expected = losses.hidden(mine, theirs, projection, batch["attention_mask"], relative=relative)
        torch.testing.assert_close(terms_of(run, batch)["embedding"], expected)


def test_relative_distances_do_not_see_the_scale_of_a_token() -> None:
    """A token a thousand times as loud counts like another, on either side; equal states have none."""
    torch.manual_seed(0)
    student, teacher, eye, mask = torch.randn(2, 5, 8), torch.randn(2, 5, 8), torch.eye(8), torch.ones(2, 5).long()
    loud = torch.ones(2, 5, 1).index_fill_(1, torch.tensor([0]), 1000.0)
    plain = losses.hidden(student, teacher, eye, mask, relative=True)
    torch.testing.assert_close(losses.hidden(student * loud, teacher * loud, eye, mask, relative=True), plain)
    assert losses.hidden(student * loud, teacher, eye, mask, relative=True) <= 4
    assert losses.hidden(-teacher, teacher, eye, mask, relative=True).item() == pytest.approx(4)
    assert losses.hidden(teacher, teacher, eye, mask, relative=True) == 0


def test_the_loss_of_embeddings_is_one_minus_their_cosine() -> None:
    """In the mean over texts, whatever their lengths."""
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = 1 - F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(losses.cosine(F.normalize(student), F.normalize(teacher)), expected)


def test_embeddings_are_led_to_the_teachers_and_back_by_one_matrix(ready: Callable[..., Run]) -> None:
    """Both ways are added up."""
    run = ready(BertModel, losses={"cosine": 1.0}, precision="fp32")
    cut_narrow(run)
    batch, matrix = batch_of(run), run.objective.projections.last
    mine, theirs = (run.runner(model, batch) for model in (run.state.student, run.teacher.model))
    assert mine.prediction is not None
    assert theirs.prediction is not None
    there = 1 - F.cosine_similarity(mine.prediction @ matrix, theirs.prediction).mean()
    back = 1 - F.cosine_similarity(mine.prediction, theirs.prediction @ matrix.T).mean()
    torch.testing.assert_close(terms_of(run, batch)["cosine"], there + back)


def test_what_embeddings_have_in_common_costs_even_where_the_matrix_takes_it_away(ready: Callable[..., Run]) -> None:
    """Users compare a student's embeddings without that matrix."""
    run = ready(BertModel, losses={"cosine": 1.0}, precision="fp32")
    batch = batch_of(run)
    copy, theirs = (run.runner(model, batch) for model in (run.state.student, run.teacher.model))
    assert copy.prediction is not None
    with torch.no_grad():
        run.objective.projections.last[0] = 0
    shifted = replace(copy, prediction=copy.prediction + 9 * F.one_hot(torch.tensor(0), copy.prediction.shape[1]))
    plain, apart = (run.objective.terms(mine, theirs, batch, run.descent)["cosine"] for mine in (copy, shifted))
    assert plain < 0.1
    assert apart > 0.3
