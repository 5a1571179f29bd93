"""Whole layers: what a model without them equals, which stay, and what follows when they leave."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from conftest import make
from homodistil.axes.layout import Layout
from homodistil.compress.compensate import InputMoments
from homodistil.compress.cut import cut, select
from homodistil.compress.depth import drop, ends, left_out, moved_up, stay, weigh
from homodistil.compress.importance import magnitude
from homodistil.compress.shrink import shrink
from zoo import EVERY, FAMILIES, deep, inputs, loses_layers

IDS = torch.arange(4, 25).reshape(3, 7)
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])
KEPT = torch.tensor([0, 2])
every = pytest.mark.parametrize("name", [n for n in EVERY if loses_layers(n)])
families = pytest.mark.parametrize("name", [n for n in FAMILIES if loses_layers(n)])


def _said(model: Any) -> list[Tensor]:
    with torch.no_grad():
        given, mask = inputs(model, padded=True)
        out = model(**given, output_hidden_states=True)
    return [h[mask == 1] for h in out.hidden_states]


def _remaining(model: Any, kept: list[int]) -> Any:
    """What transformers makes of a configuration with fewer layers, with the remaining layers' weights: by hand."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[k] for k in kept]
    weights = {}
    for name, value in model.state_dict().items():
        number = re.search(r"(?<=\.)\d+(?=\.)|^(?:layers|h)\.(\d+)(?=\.)", name)
        if number is None:
            weights[name] = value
            continue
        layer = int(number[0].rpartition(".")[2])
        if layer in kept:
            start = number.end() - len(str(layer))
            weights[f"{name[:start]}{kept.index(layer)}{name[number.end() :]}"] = value
    made = type(model)(config).eval()
    made.load_state_dict(weights)
    return made


@every
def test_leaving_out_layers_equals_a_model_of_the_remaining_layers(name: str) -> None:
    """The same states as a fresh model of so many layers with the others' weights, and the very same layout."""
    model = deep(name)
    layout = Layout.of(model)
    whole = _said(model)
    expected = _remaining(model, KEPT.tolist())
    cut(model, layout, {"layers": KEPT})
    for now, right in itertools.zip_longest(_said(model), _said(expected)):
        torch.testing.assert_close(now, right)
    assert not torch.allclose(_said(model)[-1], whole[-1], rtol=1e-2, atol=1e-2)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}
    after, shallower = Layout.of(model), layout.shallower(2)
    for field in ("dims", "fixed", "parent", "tied", "counts", "axes"):
        assert getattr(after, field) == getattr(shallower, field), field
    assert after.shape(model) == shallower.shape(model) == Layout.of(expected).shape(expected)
    assert layout.count(after.shape(model)) == sum(p.numel() for p in model.parameters())
    numbers = {m.layer_idx for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)}
    assert numbers in (set(), {0, 1})


@families
def test_a_layer_that_is_left_out_for_a_while_comes_back(name: str) -> None:
    """Inside the block the model is the one without the layer; afterwards nothing has changed."""
    model = deep(name)
    layout = Layout.of(model)
    before, config = _said(model), copy.deepcopy(model.config.to_dict())
    without = copy.deepcopy(model)
    drop(without, layout, torch.tensor([0, 1, 3]))
    with left_out(model, layout, 2):
        for now, right in zip(_said(model), _said(without), strict=True):
            torch.testing.assert_close(now, right, rtol=0, atol=0)
    for now, right in zip(_said(model), before, strict=True):
        torch.testing.assert_close(now, right, rtol=0, atol=0)
    assert model.config.to_dict() == config


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "GPT-NeoX", "Llama", "Mistral", "Qwen2", "Qwen3"])
def test_caches_of_keys_and_values_find_their_layers(name: str) -> None:
    """A decoder without layers generates the same with a cache as without one."""
    model = deep(name)
    cut(model, Layout.of(model), {"layers": torch.tensor([1, 3])})
    made = [model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=cached, eos_token_id=None)
            for cached in (True, False)]  # fmt: skip
    assert torch.equal(*made)


def test_an_optimizer_forgets_layers_that_leave() -> None:
    """Their parameters and moments are gone, those of the others are the very same."""
    model = make(BertModel, num_hidden_layers=4)
    layout = Layout.of(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(IDS).last_hidden_state.square().mean().backward()
    optimizer.step()
    third = {n: optimizer.state[p]["exp_avg"] for n, p in model.encoder.layer[2].named_parameters()}
    cut(model, layout, {"layers": KEPT}, optimizer=optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert set(optimizer.state) <= set(model.parameters())
    assert all(optimizer.state[p]["exp_avg"] is third[n] for n, p in model.encoder.layer[1].named_parameters())


def test_units_and_layers_leave_in_one_cut() -> None:
    """Both at once equal one after the other, in either order."""
    models = [make(BertModel, num_hidden_layers=4) for _ in range(3)]
    layout = Layout.of(models[0])
    shape = {"hidden": 24, "heads": 2, "head_dim": 12, "ffn": 40, "layers": 2}
    keep = select(layout, layout.sizes(models[0]), magnitude(layout, models[0]) | {"layers": torch.arange(4)}, shape)
    assert keep["layers"].tolist() == [2, 3]
    cut(models[0], layout, keep)
    cut(models[1], layout, {a: k for a, k in keep.items() if a != "layers"})
    cut(models[1], layout, {"layers": keep["layers"]})
    cut(models[2], layout, {"layers": keep["layers"]})
    cut(models[2], layout.shallower(2), moved_up(layout, {a: k for a, k in keep.items() if a != "layers"},
                                                 keep["layers"]))  # fmt: skip
    for other in models[1:]:
        for now, right in zip(_said(models[0]), _said(other), strict=True):
            torch.testing.assert_close(now, right)


def test_moments_follow_their_layers() -> None:
    """What a layer read is known by the name that the layer has now."""
    model = make(BertModel, num_hidden_layers=4)
    layout = Layout.of(model)
    moments = InputMoments(model, layout)
    with torch.no_grad(), moments.listening(MASK):
        model(IDS, attention_mask=MASK)
    before = moments.inputs
    cut(model, layout, {"layers": KEPT})
    moments.drop(KEPT)
    reader = "encoder.layer.{}.output.dense"
    assert moments.inputs[reader.format(1)].mean.equal(before[reader.format(2)].mean)
    assert reader.format(2) not in moments.inputs
    with torch.no_grad(), moments.listening(MASK):
        model(IDS, attention_mask=MASK)


def test_layers_stay_by_their_scores_or_evenly_spaced() -> None:
    """The highest scores in their order; without scores evenly spaced ones, the last among them."""
    layout = Layout.of(make(BertModel, num_hidden_layers=6))
    assert stay(layout, 3).tolist() == [1, 3, 5]
    assert stay(layout, 1).tolist() == [5]
    assert stay(layout, 5).tolist() == [0, 1, 3, 4, 5]
    assert stay(layout, 3, torch.tensor([0.0, 5, 4, 1, 9, 1])).tolist() == [1, 2, 4]
    assert stay(layout, 5, torch.ones(6)).tolist() == [0, 1, 2, 3, 4]


def test_a_first_layer_that_is_unlike_the_others_stays() -> None:
    """ModernBERT's has no norm before its attention, which no other layer can do without."""
    model = deep("ModernBERT")
    layout = Layout.of(model)
    assert layout.stack is not None
    assert layout.stack.first_stays
    assert stay(layout, 2).tolist() == [0, 3]
    assert stay(layout, 1).tolist() == [0]
    assert stay(layout, 2, torch.tensor([0.0, 1, 3, 2])).tolist() == [0, 2]
    assert shrink(model, "layers=3").shape["layers"] == 3
    assert model.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]


def test_a_layer_takes_over_what_those_after_it_did() -> None:
    """It ends where the next one that stays begins, and the last where the teacher ends."""
    assert ends([0, 1, 4], 6) == [0, 3, 5]
    assert ends([3], 6) == [5]
    assert ends([1, 2, 3], 4) == [1, 2, 3]
    assert ends(range(4), 4) == [0, 1, 2, 3]


def test_what_a_layer_is_worth_is_measured_without_it() -> None:
    """A layer that does nothing causes nothing when it is left out; every other one does."""
    model = deep("Llama")
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    layout, whole = Layout.of(model), _said(model)[-1]
    caused = weigh(model, layout, lambda: (_said(model)[-1] - whole).square().mean().item())
    assert caused[2] == 0
    assert all(caused[k] > 1e-3 for k in (0, 1, 3))
