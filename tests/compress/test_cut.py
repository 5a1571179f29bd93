"""The cut: what it equals, what it keeps, and what it leaves behind."""

from __future__ import annotations

import copy
import functools
import math
import random
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

from conftest import HEAD_CLASSES, make
from homodistil.axes.families.encoders import BERT
from homodistil.axes.layout import Layout
from homodistil.compress import cut as cut_module
from homodistil.compress.compensate import InputMoments, Inputs
from homodistil.compress.cut import Keep, cut, flat_index, narrowed, select
from homodistil.compress.shrink import shrink

HEADS, HEAD_DIM, HIDDEN, FFN, LAYERS = 4, 12, 48, 96, 2
seeds = pytest.mark.parametrize("seed", [0, 1, 2])
classes = pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForSequenceClassification])

IDS = torch.arange(21).reshape(3, 7) % 27
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])


def _forward(model: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits and the hidden states of all layers, of ordinary tokens only."""
    with torch.no_grad():
        outputs = model(IDS, attention_mask=MASK, output_hidden_states=True)
    return outputs.logits, tuple(h[MASK == 1] for h in outputs.hidden_states)


def _draw(kinds: set[str], seed: int) -> Keep:
    """Random units that stay, of some kinds of axes; other ones in each layer and in each head."""
    draw = torch.Generator().manual_seed(seed)
    head_dim = 5 + seed

    def some(of: int, kept: int) -> Tensor:
        return torch.randperm(of, generator=draw)[:kept].sort().values

    keep: Keep = {}
    if "hidden" in kinds:
        keep["hidden"] = some(HIDDEN, 29 + seed)
    for k in range(LAYERS):
        if "heads" in kinds:
            keep[f"heads.{k}"] = some(HEADS, 3 - seed % 2)
        for axis in kinds & {"qk", "vo"}:
            # the configuration has one head_dim, so both keep the same number
            keep[f"{axis}.{k}"] = torch.stack([some(HEAD_DIM, head_dim) for _ in range(HEADS)])
        if "ffn" in kinds:
            keep[f"ffn.{k}"] = some(FFN, 40 + seed)
    return keep


class _LivingNorm(nn.Module):
    """A LayerNorm of the full width that sees living units only and leaves zeros in the others' places."""

    def __init__(self, norm: nn.LayerNorm, living: Tensor) -> None:
        super().__init__()
        self.norm, self.living = norm, living

    def forward(self, x: Tensor) -> Tensor:
        made = torch.zeros_like(x)
        seen = x[..., self.living]
        variance, mean = torch.var_mean(seen, -1, keepdim=True, correction=0)
        normal = (seen - mean) / (variance + self.norm.eps).sqrt()
        made[..., self.living] = normal * self.norm.weight[self.living] + self.norm.bias[self.living]
        return made


@torch.no_grad()
def _zeroed(model: Any, keep: Keep) -> Any:
    """The uncut model with every unit that leaves silenced: BERT, said by hand."""
    masked = copy.deepcopy(model)

    def silence(layer: Any, head: int, dim: int, *, scores: bool) -> None:
        place = head * HEAD_DIM + dim
        attention = layer.attention
        for linear in (attention.self.query, attention.self.key) if scores else (attention.self.value,):
            linear.weight[place] = 0
            linear.bias[place] = 0
        if not scores:
            attention.output.dense.weight[:, place] = 0

    for k, layer in enumerate(masked.bert.encoder.layer):
        for unit in range(FFN):
            if f"ffn.{k}" in keep and unit not in keep[f"ffn.{k}"]:
                layer.intermediate.dense.weight[unit] = 0
                layer.intermediate.dense.bias[unit] = 0
                layer.output.dense.weight[:, unit] = 0
        for head in range(HEADS):
            gone = f"heads.{k}" in keep and head not in keep[f"heads.{k}"]
            for dim in range(HEAD_DIM):
                if gone or (f"qk.{k}" in keep and dim not in keep[f"qk.{k}"][head]):
                    silence(layer, head, dim, scores=True)
                if gone or (f"vo.{k}" in keep and dim not in keep[f"vo.{k}"][head]):
                    silence(layer, head, dim, scores=False)
    if "hidden" in keep:
        living = keep["hidden"]
        for name, module in list(masked.named_modules()):
            if isinstance(module, nn.LayerNorm):
                parent, _, last = name.rpartition(".")
                setattr(masked.get_submodule(parent), last, _LivingNorm(module, living))
        # only norms stand between a layer and the next, but the pooler has none
        if masked.bert.pooler is not None:
            dead = torch.ones(HIDDEN, dtype=torch.bool).index_fill(0, living, False)
            masked.bert.pooler.dense.weight[dead] = 0
            masked.bert.pooler.dense.bias[dead] = 0
    return masked


def _check_equals_zeroing(model_class: Any, kinds: set[str], seed: int) -> None:
    model = make(model_class)
    layout = Layout.of(model)
    keep = _draw(kinds, seed)
    whole, _ = _forward(model)
    logits, hidden = _forward(_zeroed(model, keep))
    cut(model, layout, keep)
    cut_logits, cut_hidden = _forward(model)
    living = keep.get("hidden", torch.arange(HIDDEN))
    torch.testing.assert_close(cut_logits, logits, rtol=1e-5, atol=1e-5)
    for now, before in zip(cut_hidden, hidden, strict=True):
        torch.testing.assert_close(now, before[..., living], rtol=1e-5, atol=1e-5)
    # equal to the reference because both did nothing would be no proof
    assert not torch.allclose(logits, whole, rtol=1e-2, atol=1e-2)


@seeds
@classes
def test_cutting_ffn_units_equals_zeroing_them(model_class: Any, seed: int) -> None:
    """Without an intermediate unit the model says what it says with the unit's weights at zero."""
    _check_equals_zeroing(model_class, {"ffn"}, seed)


@seeds
@classes
def test_cutting_dims_of_heads_equals_zeroing_them(model_class: Any, seed: int) -> None:
    """Each head loses dims of its own; scores keep their temperature, so zeroing is all that happened."""
    _check_equals_zeroing(model_class, {"qk", "vo"}, seed)


@seeds
@classes
def test_cutting_heads_equals_zeroing_them(model_class: Any, seed: int) -> None:
    """Without a head the model says what it says with the head silent."""
    _check_equals_zeroing(model_class, {"heads"}, seed)


@seeds
@classes
def test_cutting_hidden_units_equals_norms_over_the_living(model_class: Any, seed: int) -> None:
    """Without hidden units the model is the one whose norms see living units only, with zeros in dead places."""
    _check_equals_zeroing(model_class, {"hidden"}, seed)


@seeds
@classes
def test_cutting_all_axes_at_once_equals_zeroing_all(model_class: Any, seed: int) -> None:
    """Axes do not disturb each other: all of them together are still nothing but zeroing."""
    _check_equals_zeroing(model_class, {"hidden", "heads", "qk", "vo", "ffn"}, seed)


@seeds
def test_two_cuts_equal_one(seed: int) -> None:
    """Cutting half-way first and the rest later leaves the same model as cutting at once."""
    at_once = make(BertForMaskedLM)
    layout = Layout.of(at_once)
    by_turns = copy.deepcopy(at_once)
    keep = _draw({"hidden", "heads", "qk", "vo", "ffn"}, seed)
    cut(at_once, layout, keep)
    first = {axis: kept for axis, kept in keep.items() if axis.partition(".")[0] in ("heads", "ffn")}
    cut(by_turns, layout, first)
    # the heads that left took their dims' indices with them
    rest = {
        a: kept[keep[layout.parent[a]]] if a in layout.parent else kept for a, kept in keep.items() if a not in first
    }
    cut(by_turns, layout, rest)
    for name, tensor in at_once.state_dict().items():
        torch.testing.assert_close(by_turns.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("model_class", HEAD_CLASSES)
@pytest.mark.parametrize("target", ["0.5", "hidden=27,heads=3,ffn=50"])
def test_a_saved_student_says_what_it_said_before(model_class: Any, target: str, tmp_path: Path) -> None:
    """Saved and opened again by the library, which computes its own scaling, a cut model gives the same outputs."""
    model = make(model_class)
    planned = shrink(model, target)
    model.save_pretrained(tmp_path)
    opened = model_class.from_pretrained(tmp_path).eval()
    assert opened.config.hidden_size == planned.shape["hidden"]
    assert sum(p.numel() for p in opened.parameters()) == planned.parameters
    ids = IDS[None] if model_class is BertForMultipleChoice else IDS
    with torch.no_grad():
        for before, after in zip(model(ids).to_tuple(), opened(ids).to_tuple(), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_queries_are_scaled_by_what_the_library_scales() -> None:
    """Queries shrink by the root of the kept dims' share, keys do not, and heads that leave scale nothing."""
    model = make(BertModel)
    attention = model.encoder.layer[1].attention.self
    query, key = attention.query.weight.detach().clone(), attention.key.weight.detach().clone()
    rows = torch.tensor([h * HEAD_DIM + d for h in (0, 1, 2, 3) for d in (0, 4, 7)])
    dims = torch.tensor([[0, 4, 7]] * HEADS)
    cut(model, Layout.of(model), {f"{axis}.{k}": dims for axis in ("qk", "vo") for k in range(LAYERS)})
    torch.testing.assert_close(attention.query.weight.detach(), query[rows] * math.sqrt(3 / 12))
    assert torch.equal(attention.key.weight.detach(), key[rows])
    assert attention.scaling == 3**-0.5

    model = make(BertModel)
    cut(model, Layout.of(model), {f"heads.{k}": torch.tensor([1, 3]) for k in range(LAYERS)})
    kept = torch.cat([torch.arange(12, 24), torch.arange(36, 48)])
    assert torch.equal(model.encoder.layer[1].attention.self.query.weight.detach(), query[kept])


def _loss(model: Any) -> Tensor:
    loss: Tensor = model(IDS, attention_mask=MASK, labels=IDS.flip(0)).loss
    return loss


OPTIMIZERS: dict[str, tuple[Any, dict[str, int]]] = {
    "AdamW": (torch.optim.AdamW, {"exp_avg": -1, "exp_avg_sq": -2}),
    "AMSGrad": (
        functools.partial(torch.optim.AdamW, amsgrad=True),
        {"exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2},
    ),
    "SGD": (functools.partial(torch.optim.SGD, momentum=0.9), {"momentum_buffer": -1}),
}
"""Their moments, and how those go with the scale of a parameter."""


def _trained(kind: str = "AdamW") -> tuple[Any, torch.optim.Optimizer]:
    model = make(BertForMaskedLM)
    optimizer = OPTIMIZERS[kind][0](model.parameters(), lr=1e-3)
    for _ in range(2):
        torch.autograd.backward(_loss(model))
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@seeds
def test_after_a_cut_everything_still_trains(seed: int) -> None:
    """Every parameter gets a gradient of its size and a step, with the graph of before the cut still alive."""
    model, optimizer = _trained()
    held = _loss(model)
    cut(model, Layout.of(model), _draw({"hidden", "heads", "qk", "vo", "ffn"}, seed), optimizer=optimizer)
    torch.autograd.backward(_loss(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    optimizer.step()
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in model.parameters()} == {id(p) for p in optimizer.state}
    for name, parameter in model.named_parameters():
        assert optimizer.state[parameter]["step"] == 3, name
        assert not torch.equal(parameter.detach(), before[name]), name
        assert bool(parameter.isfinite().all()), name
    assert held.grad_fn is not None


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForPreTraining])
def test_ties_hold(model_class: Any) -> None:
    """What was one tensor is one tensor after the cut."""
    model = make(model_class)
    shrink(model, "0.5")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_a_parameter_is_let_go_before_the_next_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(BertForMaskedLM)
    whole = [weakref.ref(p) for p in model.parameters()]
    alive: list[int] = []
    slices = cut_module._sliced

    def counted(tensor: Tensor, indices: list[Tensor | None]) -> Tensor:
        alive.append(sum(p() is not None for p in whole))
        return slices(tensor, indices)

    monkeypatch.setattr(cut_module, "_sliced", counted)
    shrink(model, "0.5")
    assert alive == [alive[0] - n for n in range(len(alive))]
    assert len(alive) > len(whole) / 2


def test_frozen_parameters_stay_frozen() -> None:
    """A parameter that is not trained is not trained after the cut either."""
    model = make(BertModel)
    model.embeddings.requires_grad_(False)
    shrink(model, "0.5")
    assert not any(p.requires_grad for p in model.embeddings.parameters())
    assert all(p.requires_grad for p in model.encoder.parameters())


def test_an_optimizer_of_factored_moments_goes_on_after_a_cut() -> None:
    """One row and one column in place of a matrix lose the units that it loses."""
    model = make(BertForMaskedLM)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-3)
    ids = torch.arange(12).reshape(2, 6)
    for target in ("0.75", "0.5"):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        shrink(model, target, optimizer=optimizer)
    weight = model.bert.encoder.layer[0].intermediate.dense.weight
    moments = optimizer.state[weight]
    assert (*moments["row_var"].shape, *moments["col_var"].shape) == (len(weight), 1, 1, weight.shape[1])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@seeds
def test_moments_are_sliced_like_their_parameters(seed: int, kind: str) -> None:
    """Moments stay with their weights; a query scaled by c has gradients 1/c times as large, and moments too."""
    model, optimizer = _trained(kind)
    old = {n: {k: v.clone() for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}
    keep = _draw({"hidden", "heads", "qk", "vo", "ffn"}, seed)
    cut(model, Layout.of(model), keep, optimizer=optimizer)
    c = math.sqrt((5 + seed) / HEAD_DIM)
    hidden, ffn = keep["hidden"], keep["ffn.1"]
    rows = {a: [int(h) * HEAD_DIM + int(d) for h in keep["heads.1"] for d in keep[a][h]] for a in ("qk.1", "vo.1")}
    layer = "bert.encoder.layer.1"
    expected: list[tuple[str, Tensor | None, Tensor | None, float]] = [
        (f"{layer}.attention.self.query.weight", torch.tensor(rows["qk.1"]), hidden, c),
        (f"{layer}.attention.self.query.bias", torch.tensor(rows["qk.1"]), None, c),
        (f"{layer}.attention.self.key.weight", torch.tensor(rows["qk.1"]), hidden, 1),
        (f"{layer}.attention.self.value.bias", torch.tensor(rows["vo.1"]), None, 1),
        (f"{layer}.attention.output.dense.weight", hidden, torch.tensor(rows["vo.1"]), 1),
        (f"{layer}.intermediate.dense.weight", ffn, hidden, 1),
        (f"{layer}.output.dense.weight", hidden, ffn, 1),
        (f"{layer}.output.LayerNorm.weight", hidden, None, 1),
        ("bert.embeddings.word_embeddings.weight", None, hidden, 1),
        ("cls.predictions.transform.dense.weight", hidden, hidden, 1),
        ("cls.predictions.bias", None, None, 1),
    ]
    named = dict(model.named_parameters())
    for name, first, second, scale in expected:
        for key, power in OPTIMIZERS[kind][1].items():
            moment = old[name][key]
            moment = moment if first is None else moment.index_select(0, first)
            moment = moment if second is None else moment.index_select(1, second)
            # moments are tiny, so that no absolute difference may be forgiven
            now = optimizer.state[named[name]][key]
            torch.testing.assert_close(now, moment * scale**power, rtol=1e-5, atol=0, msg=name)
        assert optimizer.state[named[name]].get("step") == (None if kind == "SGD" else 2)


def test_scaled_queries_move_as_if_they_had_not_been() -> None:
    """The gradients of folded queries are 1/c times those of a model that keeps the old scaling."""
    folded = make(BertForMaskedLM)
    keep = _draw({"qk", "vo"}, 0)
    unfolded = _zeroed(folded, keep)
    cut(folded, Layout.of(folded), keep)
    for model in (folded, unfolded):
        torch.autograd.backward(_loss(model))
    rows = [h * HEAD_DIM + int(d) for h in range(HEADS) for d in keep["qk.0"][h]]
    query, reference = (m.bert.encoder.layer[0].attention.self.query.weight.grad for m in (folded, unfolded))
    torch.testing.assert_close(query * math.sqrt(5 / 12), reference[rows], rtol=1e-4, atol=1e-6)


def _inputs(model: Any) -> dict[str, Inputs]:
    """What each linear layer reads, exactly, over the tokens that count."""
    moments = InputMoments(model, Layout.of(model))
    with moments.listening(MASK), torch.no_grad():
        model(IDS, attention_mask=MASK)
    return moments.inputs


def _mean_output(model: Any, path: str) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, made: seen.append(made))
    with torch.no_grad():
        model(IDS, attention_mask=MASK)
    handle.remove()
    return seen[0][MASK == 1].mean(0)


def test_compensation_keeps_the_mean_of_what_a_layer_says() -> None:
    """With the means of its inputs, a layer's mean output over tokens is what it was before its inputs were cut."""
    model = make(BertForMaskedLM)
    path = "bert.encoder.layer.0.output.dense"
    inputs = _inputs(model)
    before = _mean_output(model, path)
    bare = copy.deepcopy(model)
    keep = _draw({"ffn"}, 0)
    cut(model, Layout.of(model), keep, inputs=inputs)
    cut(bare, Layout.of(bare), keep)
    torch.testing.assert_close(_mean_output(model, path), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(_mean_output(bare, path), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("way", ["nothing named", "every unit named", "target 1"])
def test_keeping_everything_changes_nothing(way: str) -> None:
    """A cut that cuts nothing leaves every tensor as it was, to the bit."""
    model = make(BertForMaskedLM)
    layout = Layout.of(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    config = model.config.to_dict()
    if way == "target 1":
        shrink(model, "1", inputs=_inputs(model))
    elif way == "nothing named":
        cut(model, layout, {}, inputs=_inputs(model))
    else:
        sizes = layout.sizes(model)
        every: Keep = {}
        for axis in layout.axes:
            units = torch.arange(sizes[axis])
            every[axis] = units.expand(sizes[layout.parent[axis]], -1) if axis in layout.parent else units
        cut(model, layout, every, inputs=_inputs(model))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.config.to_dict() == config


def test_a_cut_is_deterministic() -> None:
    """The same model and the same target give the same student, to the bit."""
    one, other = (make(BertForMaskedLM) for _ in range(2))
    shrink(one, "0.4")
    shrink(other, "0.4")
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


@seeds
def test_modules_and_configuration_say_what_the_tensors_are(seed: int) -> None:
    """Every attribute that repeats a width, in modules and in the configuration, has the new one."""
    model = make(BertForMaskedLM)
    keep = _draw({"hidden", "heads", "qk", "vo", "ffn"}, seed)
    cut(model, Layout.of(model), keep)
    hidden, heads, head_dim, ffn = 29 + seed, 3 - seed % 2, 5 + seed, 40 + seed
    for module in model.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        elif isinstance(module, nn.Embedding):
            assert (module.num_embeddings, module.embedding_dim) == tuple(module.weight.shape)
        elif isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == (hidden,)
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        assert (attention.num_attention_heads, attention.attention_head_size) == (heads, head_dim)
        assert attention.all_head_size == heads * head_dim == attention.query.out_features
        assert attention.scaling == head_dim**-0.5
        assert layer.intermediate.dense.out_features == ffn
    config = model.config
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (hidden, heads, ffn)
    assert all(isinstance(layer.attention.self.all_head_size, int) for layer in model.bert.encoder.layer)


@seeds
def test_the_units_with_the_highest_scores_stay(seed: int) -> None:
    """In each layer and each head the best stay, in their order; of equal ones the first."""
    model = make(BertModel)
    layout = Layout.of(model)
    sizes = layout.sizes(model)
    draw = random.Random(seed)
    scores = {
        axis: torch.tensor([[float(draw.randint(0, 9)) for _ in range(sizes[axis])] for _ in range(HEADS)])
        for axis in layout.axes
    }
    scores = {axis: s if axis in layout.parent else s[0] for axis, s in scores.items()}
    shape = {"hidden": 20, "heads": 4, "head_dim": 5, "ffn": 31}
    keep = select(layout, sizes, scores, shape)
    assert set(keep) == set(layout.axes) - {"heads.0", "heads.1"}
    for axis, kept in keep.items():
        lists = scores[axis].tolist() if axis in layout.parent else [scores[axis].tolist()]
        for values, stay in zip(lists, kept.tolist() if axis in layout.parent else [kept.tolist()], strict=True):
            best = sorted(range(len(values)), key=lambda unit: (-values[unit], unit))
            assert stay == sorted(best[: shape[layout.width_of(axis)]])


def test_vectors_of_units_follow_a_cut() -> None:
    """A value for each unit loses the units that leave, and the units of the parents that leave."""
    layout = Layout(BERT, {"w": (("heads.0", "qk.0"), ("hidden",))}, {}, {"qk.0": "heads.0"}, {})
    vector = torch.arange(12).reshape(3, 4)
    keep = {"heads.0": torch.tensor([0, 2]), "qk.0": torch.tensor([[0, 1], [1, 2], [2, 3]])}
    assert narrowed(layout, "qk.0", vector, keep).tolist() == [[0, 1], [10, 11]]
    assert narrowed(layout, "heads.0", torch.tensor([5, 6, 7]), keep).tolist() == [5, 7]
    assert narrowed(layout, "hidden", torch.tensor([5, 6, 7]), keep).tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        # heads 0 and 2 stay, with the pairs (0, 1) and (2, 3) of their dims
        (("heads", "qk"), [0, 1, 10, 11]),
        (("heads",), [0, 2]),
        ((2, "heads"), [0, 2, 3, 5]),
        (("heads", 2), [0, 1, 4, 5]),
        (("heads", 2, "qk"), [0, 1, 4, 5, 18, 19, 22, 23]),
        # as a factor that is an axis of its own, of grouped queries
        (("heads", "group", "qk"), [0, 1, 4, 5, 18, 19, 22, 23]),
        ((2, "heads", "qk"), [0, 1, 10, 11, 12, 13, 22, 23]),
        (("hidden",), None),
        (("hidden", 3), None),
    ],
)
def test_positions_along_a_fused_dimension(dim: tuple[str | int, ...], expected: list[int] | None) -> None:
    """Positions count in memory order; a nested axis keeps other units in each parent unit."""
    keep = {"heads": torch.tensor([0, 2]), "qk": torch.tensor([[0, 1], [1, 2], [2, 3]])}
    index = flat_index(dim, keep, {"qk": "heads"}, {"heads": 3, "qk": 4, "hidden": 7, "group": 2})
    assert (None if index is None else index.tolist()) == expected
