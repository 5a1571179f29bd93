"""Importance: what a unit's score is, and how scores are smoothed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel

from conftest import make
from homodistil.axes.layout import Layout
from homodistil.compress import importance
from homodistil.compress.importance import Importance, Scores

HEADS, HEAD_DIM, HIDDEN, FFN = 2, 4, 8, 12
SMALL = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": FFN, "num_hidden_layers": 2}


def _small(model_class: Any = BertForMaskedLM) -> Any:
    # doubles, so that a small change of the loss is not lost in rounding
    return make(model_class, **SMALL).double()


def _loss(model: Any) -> Tensor:
    ids = torch.arange(24).reshape(3, 8) % 27
    labels = {"labels": ids.flip(0)} if isinstance(model, BertForMaskedLM) else {}
    outputs = model(ids, **labels)
    loss: Tensor = outputs.loss if labels else outputs[0].square().sum()
    return loss


def _weights_of(model: Any, axis: str, unit: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    """Every parameter that has a unit of an axis, with the place of the unit in it: BERT, said by hand."""
    kind, _, layer = axis.partition(".")
    for name, tensor in model.named_parameters():
        if kind == "hidden":
            u = unit[0]
            vector = tensor.dim() == 1
            if name.endswith(("output.dense.weight", "transform.dense.weight", "pooler.dense.weight")):
                yield tensor, (u,)
            if vector and name.endswith(
                ("LayerNorm.weight", "LayerNorm.bias", "output.dense.bias", "transform.dense.bias", "pooler.dense.bias")
            ):
                yield tensor, (u,)
            if not vector and not name.endswith("output.dense.weight"):
                yield tensor, (slice(None), u)
            continue
        head = unit[0] if kind != "ffn" else 0
        inside = slice(None) if kind == "ffn" else slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        place: Any = unit[0] if kind == "ffn" else inside if kind == "heads" else head * HEAD_DIM + unit[1]
        rows = {
            "ffn": ("intermediate.dense",),
            "heads": ("self.query", "self.key", "self.value"),
            "qk": ("self.query", "self.key"),
            "vo": ("self.value",),
        }[kind]
        columns = {"ffn": f"{layer}.output.dense", "heads": "attention.output.dense", "vo": "attention.output.dense"}
        if f"layer.{layer}." in name:
            if any(f"{row}." in name for row in rows):
                yield tensor, (place,)
            if kind in columns and name.endswith(f"{columns[kind]}.weight"):
                yield tensor, (slice(None), place)


def _units(axis: str) -> list[tuple[int, ...]]:
    kind = axis.partition(".")[0]
    if kind in ("qk", "vo"):
        return [(h, d) for h in range(HEADS) for d in range(HEAD_DIM)]
    return [(u,) for u in range({"hidden": HIDDEN, "ffn": FFN, "heads": HEADS}[kind])]


AXES = ["hidden", *(f"{kind}.{k}" for k in (0, 1) for kind in ("heads", "qk", "vo", "ffn"))]


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel, BertForSequenceClassification])
def test_importance_is_the_sum_of_weights_times_gradients(model_class: Any) -> None:
    """A unit's score is the sum of |weight x gradient| over its row or column of each tensor, tied ones once."""
    model = _small(model_class)
    torch.autograd.backward(_loss(model))
    scores = importance.sensitivity(Layout.of(model), model)
    assert set(scores) == set(AXES)
    for axis in AXES:
        for unit in _units(axis):
            by_hand = sum(
                float((tensor.detach()[place] * tensor.grad[place]).abs().sum())
                for tensor, place in _weights_of(model, axis, unit)
                if tensor.grad is not None
            )
            assert float(scores[axis][unit]) == pytest.approx(by_hand, rel=1e-5), (axis, unit)


def test_magnitude_is_the_sum_of_absolute_weights() -> None:
    """Without a gradient a unit's score is the sum of its weights' magnitudes."""
    model = _small()
    scores = importance.magnitude(Layout.of(model), model)
    for axis in AXES:
        for unit in _units(axis):
            by_hand = sum(float(t[place].detach().abs().sum()) for t, place in _weights_of(model, axis, unit))
            assert float(scores[axis][unit]) == pytest.approx(by_hand, rel=1e-5), (axis, unit)


def test_scores_of_weights_in_bf16_are_sums_in_float32() -> None:
    """Or units would rank as coarsely as bf16 can tell large numbers apart."""
    half = _small().bfloat16()
    layout, whole = Layout.of(half), copy.deepcopy(half).float()
    for axis, scores in importance.magnitude(layout, half).items():
        torch.testing.assert_close(scores, importance.magnitude(layout, whole)[axis], rtol=1e-5, atol=1e-5)


def test_tied_weights_count_once() -> None:
    """The vocabulary's matrix, tied or not, adds to a hidden unit's score what it weighs, and once if it is tied."""
    tied, untied = make(BertForMaskedLM, **SMALL), make(BertForMaskedLM, **SMALL, tie_word_embeddings=False)
    table = tied.bert.embeddings.word_embeddings.weight.detach().clone()
    untied.load_state_dict(tied.state_dict())
    assert torch.equal(untied.cls.predictions.decoder.weight, table)
    once, twice = (importance.magnitude(Layout.of(m), m)["hidden"] for m in (tied, untied))
    torch.testing.assert_close(twice - once, table.abs().sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cached", [1, 100, 1 << 18])
def test_scores_do_not_depend_on_how_many_rows_are_folded_at_once(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, some, or all: the sums are the same."""
    model = _small()
    torch.autograd.backward(_loss(model))
    layout = Layout.of(model)
    expected = importance.sensitivity(layout, model)
    monkeypatch.setattr(importance, "CACHED", cached)
    torch.testing.assert_close(importance.sensitivity(layout, model), expected)


@pytest.mark.parametrize("axis", AXES)
def test_importance_predicts_the_change_of_the_loss(axis: str) -> None:
    """Scaling a unit's weights by 1 - e changes the loss by -e times their signed sum, at most e times the score."""
    model = _small()
    loss = _loss(model)
    torch.autograd.backward(loss)
    layout = Layout.of(model)
    bound = importance.sensitivity(layout, model)[axis]
    products = {n: (p * p.grad).detach() for n, p in model.named_parameters() if p.grad is not None}
    up, down = (
        importance.fold(layout, layout.sizes(model), ((n, ((sign * p).clamp(min=0),)) for n, p in products.items()))
        for sign in (1, -1)
    )
    signed = up[axis] - down[axis]
    scale = float(bound.max())
    e = 1e-5
    for unit in _units(axis)[::3]:
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for tensor, place in _weights_of(scaled, axis, unit):
                tensor[place] *= 1 - e
            change = float(_loss(scaled) - loss)
        assert change / -e == pytest.approx(float(signed[unit]), rel=1e-3, abs=1e-3 * scale), unit
        assert abs(change) <= e * (float(bound[unit]) + 1e-3 * scale), unit


def test_units_without_gradients_score_zero() -> None:
    """Before any backward pass every unit scores zero, in the shape of its axis."""
    model = _small()
    scores = importance.sensitivity(Layout.of(model), model)
    assert scores["hidden"].shape == (HIDDEN,)
    assert scores["qk.1"].shape == (HEADS, HEAD_DIM)
    assert not any(bool(s.any()) for s in scores.values())


def _output_scores(model: Any, ids: Tensor, mask: Tensor, seed: int) -> Scores:
    hidden = model(ids, attention_mask=mask).last_hidden_state
    return importance.output(Layout.of(model), model, hidden, mask, seed)


def test_output_scores_are_those_of_normal_noise_on_the_states() -> None:
    """The sum of |weight x gradient| of the states at tokens, times what is drawn from the seed."""
    model = _small(BertModel)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    ids = torch.arange(12).reshape(2, 6)
    scores = _output_scores(model, ids, mask, 3)
    noise = torch.randn(2, 6, HIDDEN, generator=torch.Generator().manual_seed(3)) * mask[..., None]
    torch.autograd.backward((model(ids, attention_mask=mask).last_hidden_state * noise).sum())
    by_hand = importance.sensitivity(Layout.of(model), model)
    for axis in AXES:
        torch.testing.assert_close(scores[axis], by_hand[axis], rtol=1e-5, atol=1e-7)


def test_output_scores_do_not_depend_on_padding() -> None:
    """What stands in padded places changes no score."""
    model = _small(BertModel)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
    ids = torch.arange(12).reshape(2, 6)
    first = _output_scores(model, ids, mask, 0)
    second = _output_scores(model, torch.where(mask == 1, ids, 26), mask, 0)
    for axis, scores in first.items():
        torch.testing.assert_close(second[axis], scores, rtol=1e-6, atol=0)
        assert bool(scores.any()), axis


def test_output_scores_follow_the_seed_and_leave_the_graph() -> None:
    """Scores are a function of the seed; the graph is still there, and no gradient was left behind."""
    model = _small(BertModel)
    ids, mask = torch.arange(12).reshape(2, 6), torch.ones(2, 6, dtype=torch.long)
    first, again, other = (_output_scores(model, ids, mask, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[axis], again[axis]) for axis in first)
    assert not torch.allclose(first["hidden"], other["hidden"])
    hidden = model(ids).last_hidden_state
    importance.output(Layout.of(model), model, hidden, mask, 0)
    assert all(p.grad is None for p in model.parameters())
    hidden.sum().backward()


def _by_hand(values: list[float], window: int, decay: float) -> tuple[float, float]:
    """The smoothed mean and its variation after whole windows of single numbers."""
    mean, varies = 0.0, 0.0
    for k in range(len(values) // window):
        now = sum(values[k * window : (k + 1) * window]) / window
        before = now if k == 0 else mean
        mean = decay * before + (1 - decay) * now
        varies = decay * varies + (1 - decay) * abs(now - before)
    return mean, varies


VALUES = [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0, 5.0, 3.5]


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_smoothing_is_an_average_of_windows_means(window: int, decay: float) -> None:
    """A ranking is the exponential average of the windows' means; a window that is not full does not count."""
    smoothed = Importance("sensitivity", window=window, decay=decay)
    for value in VALUES:
        smoothed.update({"hidden": torch.tensor([value, 2 * value])})
    mean, _ = _by_hand(VALUES, window, decay)
    torch.testing.assert_close(smoothed.ranking()["hidden"], torch.tensor([mean, 2 * mean]))


def test_before_the_first_window_the_ranking_is_the_mean_so_far() -> None:
    """Nothing ranks before the first measurement; then what has been seen does."""
    smoothed = Importance("sensitivity", window=10, decay=0.9)
    assert smoothed.ranking() == {}
    for value in (2.0, 5.0):
        smoothed.update({"hidden": torch.tensor([value])})
    torch.testing.assert_close(smoothed.ranking()["hidden"], torch.tensor([3.5]))


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_platon_ranks_by_mean_times_variation(decay: float) -> None:
    """Of two units with one mean, platon prefers the one whose score varies; its score is their product."""
    smoothed = Importance("platon", window=2, decay=decay)
    calm = [4.0] * 8
    restless = [4.0, 4.0, 6.0, 6.0, 1.0, 1.0, 5.0, 5.0]
    for still, moving in zip(calm, restless, strict=True):
        smoothed.update({"hidden": torch.tensor([still, moving])})
    products = [mean * varies for mean, varies in (_by_hand(v, 2, decay) for v in (calm, restless))]
    torch.testing.assert_close(smoothed.ranking()["hidden"], torch.tensor(products))
    assert products[1] > products[0] == 0


def test_platon_ranks_by_the_mean_before_anything_varied() -> None:
    """After a single window nothing has varied, and the mean alone ranks."""
    smoothed = Importance("platon", window=1, decay=0.9)
    smoothed.update({"hidden": torch.tensor([1.0, 3.0])})
    torch.testing.assert_close(smoothed.ranking()["hidden"], torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("method", ["sensitivity", "platon"])
@pytest.mark.parametrize("seen", [1, 3, 6, 7])
def test_state_goes_round(method: importance.Method, seen: int) -> None:
    """What is read back goes on exactly as what was written, inside a window and between two."""
    draw = torch.Generator().manual_seed(0)
    measured = [{"hidden": torch.rand(5, generator=draw), "qk.0": torch.rand(2, 3, generator=draw)} for _ in range(11)]
    written, read = (Importance(method, window=3, decay=0.8) for _ in range(2))
    # what the reader knew before must not stay
    for _ in range(4):
        read.update({"stale": torch.ones(2)})
    for scores in measured[:seen]:
        written.update(scores)
    read.load_state(written.state())
    for scores in measured[seen:]:
        written.update(scores)
        read.update(scores)
    expected, ranking = written.ranking(), read.ranking()
    assert set(ranking) == set(expected) == {"hidden", "qk.0"}
    assert all(torch.equal(ranking[axis], expected[axis]) for axis in expected)


@pytest.mark.parametrize("method", ["sensitivity", "platon"])
def test_smoothing_what_stays_equals_keeping_what_was_smoothed(method: importance.Method) -> None:
    """A cut in the middle changes nothing for the units that stay."""
    draw = torch.Generator().manual_seed(1)
    measured = [torch.rand(6, generator=draw) for _ in range(9)]
    keep = torch.tensor([0, 2, 5])
    whole, cut = (Importance(method, window=2, decay=0.7) for _ in range(2))
    for step, scores in enumerate(measured):
        whole.update({"ffn.0": scores})
        cut.update({"ffn.0": scores if step < 5 else scores[keep]})
        if step == 4:
            cut.apply(lambda scores: {axis: vector[keep] for axis, vector in scores.items()})
    assert torch.equal(cut.ranking()["ffn.0"], whole.ranking()["ffn.0"][keep])
