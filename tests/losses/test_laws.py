"""The laws of distillation: no loss before a cut, no loss from padding, gradients for every parameter after one."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    masking_utils,
)

from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude
from homodistil.data.collate import batches, draws, heldout_draws
from homodistil.distill.heldout import _answer, agreement
from homodistil.distill.learning import calibrate, learn
from homodistil.distill.prepare import Run, prepare
from homodistil.losses import losses, maps, outputs
from homodistil.losses.descent import opposite
from homodistil.models import attention
from homodistil.models.attention import IMPLEMENTATION, QueriesKeys, captured
from homodistil.reading import build
from zoo import tiny

CLASSES = [
    BertForMaskedLM,
    BertModel,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForQuestionAnswering,
]
NARROW = {"hidden": 24, "heads": 3, "head_dim": 8, "ffn": 40}


@pytest.fixture
def ready(save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run of a class, ready for its first step."""

    def make_run(model_class: type[PreTrainedModel], **options: object) -> Run:
        values = {"teacher": str(save_teacher(model_class)), "data": str(corpus), "target": "0.5", "steps": 10,
                  "out": str(tmp_path / "run"), "batch": 4, "precision": "fp32", "text": {"length": 32}}  # fmt: skip
        return prepare(build(values | options), resume=False, texts=None)

    return make_run


def _terms(run: Run, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    with run.precision:
        with torch.no_grad():
            theirs = run.runner(run.teacher.model, batch)
        mine = run.runner(run.state.student, batch)
        return run.objective.terms(mine, theirs, batch, run.descent)


COSINE = {"cosine": 1.0}
"""Of encoders alone, and by default of those that somebody has made sentence encoders of."""


def _batch(run: Run) -> dict[str, Tensor]:
    return next(batches(run.corpus.train, run.collate, 4, start=0))


def _cut(run: Run) -> None:
    layout, student = run.state.layout, run.state.student
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), NARROW), compensate=True)


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
    terms = _terms(run, _batch(run))
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
    _cut(run)
    short = _batch(run)
    rows, width = short["input_ids"].shape
    longer = {k: torch.nn.functional.pad(v, (0, 16)) for k, v in short.items() if v.shape == (rows, width)}
    if "positions" in short:
        at = short["positions"]
        longer |= {"positions": at // width * (width + 16) + at % width, "labels": short["labels"]}
    before, after = _terms(run, short), _terms(run, longer)
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
            _cut(run)
        before = {n: p.detach().clone() for n, p in state.student.named_parameters()}
        run.objective.total(_terms(run, _batch(run))).backward()  # type: ignore[no-untyped-call]
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


@pytest.mark.parametrize(
    ("model_class", "given", "used"),
    [
        (BertForMaskedLM, {}, {"prediction": 1.0, "hidden": 120.0, "attention": 0.25}),
        (BertModel, {}, {"prediction": 0.5, "hidden": 120.0, "attention": 0.25}),
        (BertModel, {"hidden_kind": "relative"}, {"prediction": 0.5, "hidden": 20.0, "attention": 0.1}),
        (BertModel, {"prediction": 3.0, "hidden": 0.0}, {"prediction": 3.0, "hidden": 0.0, "attention": 0.25}),
    ],
)
def test_weights_that_are_left_open_are_decided_by_the_teacher(
    model_class: type[PreTrainedModel], given: dict[str, object], used: dict[str, float], ready: Callable[..., Run]
) -> None:
    """Those that are given are used as they are, 0 as well."""
    weights = ready(model_class, losses=given).objective.weights
    assert {name: getattr(weights, name) for name in used} == used


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_as_many_tokens_are_predicted_as_the_recipe_says(share: float, ready: Callable[..., Run]) -> None:
    """Of those that are no special ones; held-out text has its 15 % whatever it says."""
    run = ready(BertForMaskedLM, losses={"masked": share})
    measured = next(heldout_draws(run.corpus.heldout, 4))
    for draw, expected in ((next(draws(run.corpus.train, 4, start=0)), share), (measured, 0.15)):
        batch = run.batch(draw)
        assert len(batch["positions"]) == max(1, int(expected * int(batch["ordinary"].sum())))


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
    _cut(run)
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
    outputs = run.runner(run.state.student, _batch(run))
    assert outputs.attention == ()
    assert outputs.tokens is None
    assert list(_terms(run, _batch(run))) == ["hidden"]


def test_logits_at_predicted_positions_are_the_models_own(ready: Callable[..., Run]) -> None:
    """Making few logits changes none of them."""
    run = ready(BertForMaskedLM)
    batch = _batch(run)
    whole = run.teacher.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    tokens = run.runner(run.teacher.model, batch).tokens
    assert tokens is not None
    made = tokens.head(tokens.states)
    torch.testing.assert_close(made, whole.flatten(0, 1)[batch["positions"]])


def test_captured_attention_computes_what_sdpa_computes(
    ready: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padding, for short sequences and long ones; and nothing is kept outside the block."""
    run = ready(BertModel)
    model, batch = run.teacher.model, _batch(run)
    assert (batch["attention_mask"] == 0).any()
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    model.set_attn_implementation("sdpa")
    expected = model(**inputs).last_hidden_state
    model.set_attn_implementation(IMPLEMENTATION)
    for short in (256, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        with captured() as layers:
            made = model(**inputs).last_hidden_state
        torch.testing.assert_close(made[real], expected[real], rtol=1e-5, atol=1e-5)
        assert [tuple(layer.queries.shape[:2]) for layer in layers] == [(4, 4), (4, 4)]
        model(**inputs)
        assert len(layers) == 2


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "ModernBERT"])
def test_a_mask_that_masks_nothing_is_not_made_also_while_a_gpu_is_recorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention without a mask is several times as fast there. Windows, which look at a part, need theirs."""
    model = tiny(name)
    model.set_attn_implementation(IMPLEMENTATION)
    inputs = {"input_ids": torch.randint(5, 20, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    made: list[int | None] = []

    def spied(**kwargs: Any) -> Any:
        made.append(kwargs.get("local_size"))
        return masking_utils.sdpa_mask(**kwargs)

    with torch.no_grad():
        plain = model(**inputs).logits
        monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
        monkeypatch.setattr(attention, "sdpa_mask", spied)
        with attention.without_padding():
            torch.testing.assert_close(model(**inputs).logits, plain)
        assert made == ([3] if name == "ModernBERT" else [])
        torch.testing.assert_close(model(**inputs).logits, plain)
    assert made == ([3, None, 3] if name == "ModernBERT" else [None])


def test_a_batch_is_known_to_be_unpadded_where_its_tokens_are_as_many_as_its_rows(
    ready: Callable[..., Run], tmp_path: Path
) -> None:
    """The number lies on the CPU; a batch without it is not known to be."""
    runs = [ready(BertForMaskedLM, out=str(tmp_path / "packed")), ready(BertModel, out=str(tmp_path / "padded"))]
    packed, padded = (run.batch(next(draws(run.corpus.train, 4, start=0))) for run in runs)
    assert [int(b["tokens"]) for b in (packed, padded)] == [int(b["attention_mask"].sum()) for b in (packed, padded)]
    assert [outputs.unpadded(b) for b in (packed, padded)] == [True, False]
    assert not outputs.unpadded({"attention_mask": packed["attention_mask"]})


def _layers(width: int, seed: int) -> QueriesKeys:
    draw = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(2, 3, 7, width, generator=draw, requires_grad=True) for _ in range(2))
    return QueriesKeys(queries, keys, width**-0.5)


@pytest.mark.parametrize("size", [1 << 24, 1])
def test_the_attention_loss_without_maps_equals_the_one_with_maps(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with padding, for students with narrower heads, however many texts at a time."""
    monkeypatch.setattr(maps, "CACHED", size)
    student, teacher = _layers(4, 0), _layers(6, 1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    scores = [x.queries @ x.keys.transpose(-1, -2) * x.scaling for x in (student, teacher)]
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None].expand(2, 3, 7, 7).bool()
    plain = (scores[0] - scores[1])[pairs].square().mean()
    made = losses.attention_scores(student, teacher, mask)
    torch.testing.assert_close(made, plain)
    for ours, theirs in zip(
        torch.autograd.grad(made, [student.queries, student.keys]),
        torch.autograd.grad(plain, [student.queries, student.keys]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1 << 24, 3 * 7 * 7, 3 * 7 * 2, 1])
def test_attention_probabilities_in_blocks_equal_the_whole_map(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients, with padding, however many texts or few rows are compared at a time."""
    monkeypatch.setattr(maps, "CACHED", size)
    student, teacher = _layers(4, 0), _layers(6, 1)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    hidden = (mask == 0)[:, None, None]
    whole = [
        (x.queries @ x.keys.transpose(-1, -2) * x.scaling).masked_fill(hidden, -1e9).softmax(-1)
        for x in (student, teacher)
    ]
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None].expand(2, 3, 7, 7).bool()
    plain = (whole[0] - whole[1])[pairs].square().mean()
    made = losses.attention_probabilities(student, teacher, mask)
    torch.testing.assert_close(made, plain)
    inputs = [student.queries, student.keys]
    torch.testing.assert_close(torch.autograd.grad(made, inputs), torch.autograd.grad(plain, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [losses.attention_scores, losses.attention_probabilities])
def test_equal_attention_has_no_loss_and_no_gradient(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """Exactly: an uncut student stays its teacher's copy."""
    drawn = _layers(12, 0)
    student = QueriesKeys(drawn.queries.to(dtype), drawn.keys.to(dtype), drawn.scaling)
    teacher = QueriesKeys(student.queries.detach(), student.keys.detach(), student.scaling)
    made = loss(student, teacher, torch.tensor([[1] * 7, [1] * 4 + [0] * 3]))
    assert made.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(made, [student.queries, student.keys]))


@pytest.mark.parametrize("loss", [losses.attention_scores, losses.attention_probabilities])
def test_no_attention_loss_keeps_a_map_for_its_backward_pass(loss: Callable[..., Tensor]) -> None:
    """What autograd holds on to grows with the length, not with its square."""
    draw = torch.Generator().manual_seed(0)
    q_s, k_s, q_t, k_t = (torch.randn(1, 2, 512, 4, generator=draw, requires_grad=True) for _ in range(4))
    student, teacher = QueriesKeys(q_s, k_s, 0.5), QueriesKeys(q_t, k_t, 0.5)
    kept: list[int] = []

    def noted(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda x: x):
        loss(student, teacher, torch.ones(1, 512, dtype=torch.long))
    assert 0 < max(kept) <= student.queries.numel()


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


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_answers_are_compared_at_any_temperature(temperature: float, ready: Callable[..., Run]) -> None:
    """Padding, which is no place of an answer, has no share at any of them."""
    run = ready(BertForQuestionAnswering, losses={"temperature": temperature})
    batch = _batch(run)
    assert (batch["attention_mask"] == 0).any()
    assert _terms(run, batch)["prediction"].item() == 0
    _cut(run)
    terms = _terms(run, batch)
    assert 0 < terms["prediction"].item() < math.inf
    run.objective.total(terms).backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in run.state.student.parameters() if p.grad is not None)


def test_a_head_of_one_number_learns_by_the_squared_difference(
    ready: Callable[..., Run], save_teacher: Callable[..., Path]
) -> None:
    """The softmax of one number is 1 whatever it is."""
    run = ready(BertForSequenceClassification, teacher=str(save_teacher(BertForSequenceClassification, num_labels=1)))
    _cut(run)
    batch = _batch(run)
    mine, theirs = (run.runner(model, batch).prediction for model in (run.state.student, run.teacher.model))
    assert mine is not None
    assert theirs is not None
    expected = (mine - theirs).square().mean()
    assert expected > 1e-4
    torch.testing.assert_close(_terms(run, batch)["prediction"], expected)


def test_labels_that_do_not_exclude_each_other_are_told_by_sigmoids(
    ready: Callable[..., Run], save_teacher: Callable[..., Path]
) -> None:
    """The loss is the divergence of each label's two outcomes, and agreement is of labels, of which many may hold."""
    many = save_teacher(BertForSequenceClassification, problem_type="multi_label_classification", num_labels=5)
    run = ready(BertForSequenceClassification, teacher=str(many))
    assert run.teacher.kind == run.objective.kind == "multi-label"
    assert _terms(run, _batch(run))["prediction"].item() == 0
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(6, 5, generator=draw), torch.randn(6, 5, generator=draw)
    p, q = (torch.stack((x, 1 - x)) for x in ((teacher / 2).sigmoid(), (student / 2).sigmoid()))
    expected = 4 * (p * (p / q).log()).sum((0, 2)).mean()
    torch.testing.assert_close(losses.multi_label(student, teacher, 2.0), expected)
    assert losses.multi_label(teacher + 4, teacher, 1.0) > 1
    said = [_answer("multi-label", logits) for logits in (student, teacher)]
    assert agreement("multi-label", *said) == ((student > 0) == (teacher > 0)).float().mean()


def test_a_batch_without_a_token_to_predict_has_no_loss(ready: Callable[..., Run]) -> None:
    """As of texts of one token each for a model of next tokens; its gradients are nothing, and no division by it."""
    run = ready(BertForMaskedLM)
    _cut(run)
    nothing = torch.zeros(0, dtype=torch.long)
    terms = _terms(run, _batch(run) | {"positions": nothing, "labels": nothing})
    assert (terms["lm"].item(), terms["prediction"].item()) == (0.0, 0.0)
    run.objective.total(terms).backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in run.state.student.parameters() if p.grad is not None)


def test_the_head_of_a_language_model_is_listened_to(ready: Callable[..., Run], tmp_path: Path) -> None:
    """It reads the residual stream, and takes over the mean of what a cut takes from it, as all layers do."""
    for importance in ("sensitivity", "output"):
        run = ready(
            BertForMaskedLM, out=str(tmp_path / importance), cutting={"calibration": 2, "importance": importance}
        )
        calibrate(run, draws(run.corpus.train, 4, start=0))
        heard = {name for name in run.state.moments.inputs if name.startswith("cls.")}
        assert heard == {"cls.predictions.transform.dense", "cls.predictions.decoder"}


def test_lost_heads_are_left_out_of_the_comparison(ready: Callable[..., Run]) -> None:
    """A student that lost a head and nothing else has the teacher's scores in the first layer's other heads."""
    run = ready(BertModel, losses={"hidden": 0, "prediction": 0, "embedding": 0, "attention": 1})
    layout, student = run.state.layout, run.state.student
    shape = {"hidden": 48, "heads": 3, "head_dim": 12, "ffn": 96}
    run.state.shrink(select(layout, layout.sizes(student), magnitude(layout, student), shape), compensate=False)
    assert set(run.descent.heads) == {0, 1}
    batch = _batch(run)
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


def test_calibration_measures_and_changes_nothing(ready: Callable[..., Run]) -> None:
    """It leaves scores and moments of the uncut student, and no gradient, no weight; the batches come again."""
    run = ready(BertForMaskedLM, cutting={"calibration": 3, "basis": "teacher"})
    before = {name: p.clone() for name, p in run.state.student.named_parameters()}
    first = _batch(run)["input_ids"]
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
        run = ready(BertForMaskedLM, target=target, out=str(tmp_path / target), cutting={"calibration": 3})
        before = {name: p.clone() for name, p in run.state.student.named_parameters()}
        with torch.enable_grad():
            feed = calibrate(run, draws(run.corpus.train, 4, start=0))
        changed = [n for n, p in run.state.student.named_parameters() if not torch.equal(p, before[n])]
        # queries, keys and values with weight and bias, and what reads them, in two layers
        assert len(changed) == (2 * 7 if turned else 0)
        batch = run.batch(next(feed))
        terms = _terms(run, batch)
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
    assert all(term.item() < 1e-6 for term in _terms(run, _batch(run)).values())


def test_calibration_is_left_out_where_nothing_is_cut(ready: Callable[..., Run]) -> None:
    """At the teacher's own shape there is nothing to rank."""
    run = ready(BertForMaskedLM, target="1.0")
    calibrate(run, draws(run.corpus.train, 4, start=0))
    assert run.state.importance.ranking() == {}


def test_a_shallow_student_is_compared_with_evenly_spaced_layers() -> None:
    """The last layer with the last, the others evenly between; a student of equal depth with each."""
    assert opposite(3, range(6)) == [1, 3, 5]
    assert opposite(2, range(6)) == [2, 5]
    assert opposite(1, range(4)) == [3]
    assert opposite(4, range(4)) == [0, 1, 2, 3]


def test_predictions_of_tokens_in_chunks_equal_all_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a language model are the same however few positions are predicted at a time."""
    torch.manual_seed(0)
    states, weight = torch.randn(13, 6), torch.randn(9, 6)
    labels, theirs = torch.randint(9, (13,)), torch.randn(13, 9)
    gradients, values = [], []
    for size in (1 << 20, 4 * 9, 1):
        monkeypatch.setattr(outputs, "CHUNK", size)
        mine, head = states.clone().requires_grad_(), weight.clone().requires_grad_()
        student = outputs.TokenPredictions(mine, lambda x, head=head: x @ head.T, 9)  # type: ignore[misc]
        teacher = outputs.TokenPredictions(theirs, lambda x: x, 9)
        both = losses.tokens(student, teacher, labels, 2.0)
        (both[0] + 3 * both[1]).backward()  # type: ignore[no-untyped-call]
        values.append(torch.stack(both).detach())
        gradients.append((mine.grad, head.grad))
    logits = states @ weight.T
    expected = torch.stack((torch.nn.functional.cross_entropy(logits, labels), losses.prediction(logits, theirs, 2.0)))
    for value, gradient in zip(values, gradients, strict=True):
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient, gradients[0])


def test_embeddings_are_compared_as_states_are(ready: Callable[..., Run], tmp_path: Path) -> None:
    """Relative to their size or not, as the weights say."""
    for distance in ("mse", "relative"):
        run = ready(BertModel, out=str(tmp_path / distance), losses={"hidden_kind": distance})
        _cut(run)
        batch = _batch(run)
        mine, theirs = (run.runner(model, batch).hidden[0] for model in (run.state.student, run.teacher.model))
        projection, relative = run.objective.projections[0], distance == "relative"
        expected = losses.hidden(mine, theirs, projection, batch["attention_mask"], relative=relative)
        torch.testing.assert_close(_terms(run, batch)["embedding"], expected)


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
