"""A model in memory is cut to a target by scores or magnitudes, or refused and left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertForMultipleChoice,
    BertModel,
)

from conftest import HEAD_CLASSES, make, tiny_config
from homodistil.axes.layout import Layout, on_meta
from homodistil.compress import importance
from homodistil.compress.compensate import InputMoments
from homodistil.compress.shrink import shrink
from homodistil.errors import UserError

IDS = torch.arange(21).reshape(3, 7) % 27


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
def test_every_class_shrinks_to_half(model_class: Any) -> None:
    """Each class is cut to half in one call, and is then an ordinary model that computes."""
    model = make(model_class)
    planned = shrink(model, "0.5")
    assert planned.shape == {"hidden": 24, "heads": 4, "head_dim": 6, "ffn": 48, "layers": 2}
    assert sum(p.numel() for p in model.parameters()) == planned.parameters
    with torch.no_grad():
        made = model(IDS[None] if model_class is BertForMultipleChoice else IDS)
    assert all(bool(tensor.isfinite().all()) for tensor in made.to_tuple())


def test_a_refused_target_leaves_the_model_alone() -> None:
    """A target that cannot be made changes nothing in the model."""
    model = make(BertModel)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UserError):
        shrink(model, "hidden=30")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.config.hidden_size == 48


def test_scores_decide_what_is_cut() -> None:
    """The scores that are given decide, and magnitudes do when none are."""
    by_default, by_magnitude, by_others = (make(BertModel) for _ in range(3))
    layout = Layout.of(by_default)
    magnitudes = importance.magnitude(layout, by_default)
    shrink(by_default, "0.5")
    shrink(by_magnitude, "0.5", scores=magnitudes)
    shrink(by_others, "0.5", scores={axis: -s for axis, s in magnitudes.items()})
    first, second, third = (m.state_dict() for m in (by_default, by_magnitude, by_others))
    assert all(torch.equal(t, second[name]) for name, t in first.items())
    assert not any(torch.equal(t, third[name]) for name, t in first.items() if t.is_floating_point())


def test_scores_of_some_axes_leave_the_others_to_magnitudes() -> None:
    """As with those of layers alone."""
    by_all, by_some = make(BertModel), make(BertModel)
    layout = Layout.of(by_all)
    scores = importance.magnitude(layout, by_all)
    shrink(by_all, "0.5", scores=scores)
    shrink(by_some, "0.5", scores={"hidden": scores["hidden"]})
    assert all(torch.equal(a, b) for a, b in zip(by_all.parameters(), by_some.parameters(), strict=True))


@pytest.mark.parametrize("scores", [{"ffn.0": torch.ones(40)}, {"ffm.0": torch.ones(96)}, {"layers": torch.ones(5)}])
def test_scores_that_do_not_fit_are_refused(scores: dict[str, torch.Tensor]) -> None:
    """Of too few units, or of an axis that is none; the model stays as it is."""
    model = make(BertModel)
    with pytest.raises(UserError, match=f"by scores of {next(iter(scores))}"):
        shrink(model, "0.5", scores=scores)
    assert model.config.hidden_size == 48


@pytest.mark.parametrize("bad", [float("nan"), [float("nan")] * 48])
def test_scores_that_are_no_numbers_are_refused(bad: Any) -> None:
    """One or all of them; the model stays as it is."""
    model = make(BertModel)
    scores = bad if isinstance(bad, list) else [bad, *range(47)]
    with pytest.raises(UserError, match="scores of hidden: some of them are nan"):
        shrink(model, "0.5", scores={"hidden": scores})
    assert model.config.hidden_size == 48


def test_scores_may_be_lists_and_arrays() -> None:
    """As tensors of the same numbers."""
    made = [make(BertModel) for _ in range(3)]
    numbers = [float(k * 7 % 48) for k in range(48)]
    kinds: list[Any] = [torch.tensor(numbers), numbers, np.array(numbers)]
    half: Any = np.array(0.5)
    for model, scores in zip(made, kinds, strict=True):
        shrink(model, half, scores={"hidden": scores})
    first, *others = ([*model.parameters()] for model in made)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_what_layers_read_and_the_moments_of_an_optimizer_go_with_a_cut() -> None:
    """The layer that loses inputs takes over what they say; each moment is as large as its parameter."""
    model, bare = make(BertModel), make(BertModel)
    moments = InputMoments(model, Layout.of(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    with moments.listening(torch.ones(3, 7)):
        model(IDS).last_hidden_state.square().sum().backward()
    optimizer.step()
    shrink(model, "ffn=48", inputs=moments.inputs, optimizer=optimizer)
    shrink(bare, "ffn=48")
    ours, theirs = (m.encoder.layer[0].output.dense for m in (model, bare))
    assert ours.weight.shape == theirs.weight.shape
    assert not torch.allclose(ours.weight, theirs.weight, atol=1e-4)
    assert not torch.allclose(ours.bias, theirs.bias, atol=1e-4)
    assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimizer.state[ours.weight]["exp_avg"].shape == ours.weight.shape


def test_a_model_in_half_precision_takes_over_what_is_cut_as_one_in_float32_does() -> None:
    """Computed in float32, and rounded as its weights are."""
    made = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = make(BertModel)
        moments = InputMoments(model, Layout.of(model))
        with moments.listening(torch.ones(3, 7)), torch.no_grad():
            model(IDS)
        shrink(model.to(dtype), "0.5", inputs=moments.inputs)
        made.append(model.encoder.layer[0].output.dense.bias.detach())
    for half in made[1:]:
        torch.testing.assert_close(half.float(), made[0], rtol=0.05, atol=0.02)


def test_a_model_without_its_weights_is_refused() -> None:
    """What lies on the meta device cannot be cut."""
    with pytest.raises(UserError, match="is on the meta device"):
        shrink(on_meta(BertModel, tiny_config()), "0.5")
