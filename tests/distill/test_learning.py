"""A batch: what is measured before the first step, what each loss leaves in gradients, and where heads are turned."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertModel,
)

from homodistil.data.collate import draws
from homodistil.distill.learning import calibrate, learn
from homodistil.distill.prepare import Run
from runs import batch_of, cut_narrow, terms_of


def test_calibration_is_measured_like_whole_steps(ready: Callable[..., Run]) -> None:
    """However many batches a step is made of: what is measured on the way is averaged with it."""
    scores = []
    for accumulate in (1, 4):
        run = ready(BertForMaskedLM, accumulate=accumulate, cutting={"calibration": 4})
        calibrate(run, draws(run.corpus.train, 4, start=0))
        scores.append(run.state.importance.ranking()["hidden"])
        shutil.rmtree(run.dir.path)
    torch.testing.assert_close(scores[0], scores[1])


def test_the_gradients_of_a_step_are_the_mean_of_those_of_its_batches(ready: Callable[..., Run]) -> None:
    """However the batches are learnt from: with units scored or not."""
    run = ready(BertForMaskedLM, accumulate=2)
    cut_narrow(run)
    both = [run.batch(draw) for draw in itertools.islice(draws(run.corpus.train, 4, start=0), 2)]

    def gradients() -> list[Tensor]:
        made = [p.grad.clone() for p in run.state.learnt if p.grad is not None]
        run.state.optimizer.zero_grad()
        return made

    alone = []
    for batch in both:
        learn(run, batch, 1, scored=True, batches=1)
        alone.append(gradients())
    for scored in (True, False):
        for batch in both:
            learn(run, batch, 1, scored=scored)
        for made, one, other in zip(gradients(), *alone, strict=True):
            torch.testing.assert_close(made, (one + other) / 2, rtol=1e-4, atol=1e-6)


def test_the_head_of_a_language_model_is_listened_to(ready: Callable[..., Run], tmp_path: Path) -> None:
    """It reads the residual stream, and takes over the mean of what a cut takes from it, as all layers do."""
    for importance in ("sensitivity", "output"):
        run = ready(
            BertForMaskedLM, out=str(tmp_path / importance), cutting={"calibration": 2, "importance": importance}
        )
        calibrate(run, draws(run.corpus.train, 4, start=0))
        heard = {name for name in run.state.moments.inputs if name.startswith("cls.")}
        assert heard == {"cls.predictions.transform.dense", "cls.predictions.decoder"}


def test_calibration_measures_and_changes_nothing(ready: Callable[..., Run]) -> None:
    """It leaves scores and moments of the uncut student, and no gradient, no weight; the batches come again."""
    run = ready(BertForMaskedLM, cutting={"calibration": 3, "basis": "teacher"})
    before = {name: p.clone() for name, p in run.state.student.named_parameters()}
    first = batch_of(run)["input_ids"]
    feed = calibrate(run, draws(run.corpus.train, 4, start=0))
    assert torch.equal(run.batch(next(feed))["input_ids"], first)
    assert set(run.state.importance.ranking()) == set(run.state.layout.axes)
    assert all(bool((scores > 0).any()) for scores in run.state.importance.ranking().values())
    assert run.state.moments.inputs
    for name, parameter in run.state.student.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


@torch.no_grad()
def test_heads_turn_before_they_lose_dimensions_and_the_student_says_the_same(
    ready: Callable[..., Run], tmp_path: Path
) -> None:
    """Losses stay at nothing up to rounding, in another basis; where heads keep their dimensions, so does it."""
    for target, turned in (("0.5", True), ("hidden=48,heads=4,head_dim=12,ffn=40", False)):
        text = {"length": 32, "packing": "blocks"}
        run = ready(BertForMaskedLM, target=target, out=str(tmp_path / target), cutting={"calibration": 3}, text=text)
        before = {name: p.clone() for name, p in run.state.student.named_parameters()}
        with torch.enable_grad():
            feed = calibrate(run, draws(run.corpus.train, 4, start=0))
        changed = [n for n, p in run.state.student.named_parameters() if not torch.equal(p, before[n])]
        # queries, keys and values with weight and bias, and what reads them, in two layers
        assert len(changed) == (2 * 7 if turned else 0)
        batch = run.batch(next(feed))
        terms = terms_of(run, batch)
        # its kernel subtracts sums of squares that are not small, so that by it nothing is no less than rounding
        assert abs(float(terms.pop("attention"))) < 1e-5
        assert all(float(term) < 1e-8 for name, term in terms.items() if name != "lm")
        layers = [run.runner(model, batch).attention for model in (run.state.student, run.teacher.model)]
        for pair in zip(*layers, strict=True):
            mine, theirs = (layer.queries @ layer.keys.mT * layer.scaling for layer in pair)
            assert (mine - theirs).square().mean() < 1e-8


def test_heads_of_texts_that_are_all_alike_stay_as_they_are(ready: Callable[..., Run], tmp_path: Path) -> None:
    """Rounding is all by which their tokens differ, and is no basis; the run goes on."""
    (tmp_path / "alike.txt").write_text("a cat\nthe dog\n")
    run = ready(BertModel, data=str(tmp_path / "alike.txt"), cutting={"calibration": 16}, batch=8)
    calibrate(run, draws(run.corpus.train, 8, start=0))
    assert all(bool(p.isfinite().all()) for p in run.state.student.parameters())
    assert all(term.item() < 1e-6 for term in terms_of(run, batch_of(run)).values())


def test_calibration_is_left_out_where_nothing_is_cut(ready: Callable[..., Run]) -> None:
    """At the teacher's own shape there is nothing to rank."""
    run = ready(BertForMaskedLM, target="1.0")
    calibrate(run, draws(run.corpus.train, 4, start=0))
    assert run.state.importance.ranking() == {}
