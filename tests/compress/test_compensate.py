"""What layers read, and what they take over from units that are cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertModel

from conftest import make
from homodistil.axes.layout import Layout
from homodistil.compress.compensate import InputMoments, Inputs, compensate
from homodistil.compress.cut import Keep, kept_inputs
from zoo import tiny

HEAD_DIM, HIDDEN, LAYERS = 12, 48, 2
IDS = torch.arange(21).reshape(3, 7) % 27
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])


def _rows(seed: int, count: int = 400, width: int = 6) -> Tensor:
    """Inputs whose units tell much of each other."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)
    return mixed + torch.randn(width, generator=draw)


def _moments(x: Tensor) -> Inputs:
    centred = x - x.mean(0)
    return Inputs(x.mean(0), centred.T @ centred / len(x))


def _cut(layer: nn.Linear, x: Tensor, index: Tensor) -> Tensor:
    return x[:, index] @ layer.weight[:, index].T + layer.bias


@torch.no_grad()
def test_compensation_is_the_least_squares_solution() -> None:
    """No other weight and bias on the units that stay come nearer to what the layer said, on the tokens seen."""
    torch.manual_seed(0)
    x, layer, index = _rows(0), nn.Linear(6, 3), torch.tensor([0, 2, 5])
    before = layer(x)
    compensate(layer, _moments(x), index)
    design = torch.cat((x[:, index], torch.ones(len(x), 1)), 1)
    best = design @ torch.linalg.lstsq(design, before).solution
    ours, optimal = ((y - before).square().mean() for y in (_cut(layer, x, index), best))
    # the ridge costs a little
    assert optimal <= ours <= 1.02 * optimal + 1e-6


@torch.no_grad()
def test_a_unit_that_repeats_others_is_cut_for_nothing() -> None:
    """Cut a unit that is a sum of units that stay: the layer says what it said."""
    torch.manual_seed(1)
    x, layer = _rows(1), nn.Linear(6, 3)
    x[:, 5] = 2 * x[:, 0] - x[:, 3] + 1
    before = layer(x)
    compensate(layer, _moments(x), torch.arange(5))
    assert (_cut(layer, x, torch.arange(5)) - before).square().mean() < 1e-2 * before.var()


@torch.no_grad()
def test_without_a_covariance_the_mean_is_taken_over_alone() -> None:
    """Weights stay as they are, and the mean of what the layer says is kept."""
    torch.manual_seed(2)
    x, layer, index = _rows(2), nn.Linear(6, 3), torch.tensor([1, 4])
    before, weight = layer(x), layer.weight.clone()
    compensate(layer, Inputs(x.mean(0), None), index)
    assert torch.equal(layer.weight, weight)
    torch.testing.assert_close(_cut(layer, x, index).mean(0), before.mean(0), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("x", [torch.zeros(4, 6), torch.ones(1, 6), _rows(3, count=2)], ids=["zeros", "one", "two"])
def test_inputs_that_hardly_vary_never_break_a_layer(x: Tensor) -> None:
    """With fewer tokens than units, or none that varies, weights stay finite and the mean is kept."""
    torch.manual_seed(3)
    layer, index = nn.Linear(6, 3), torch.tensor([0, 1, 2])
    before = layer(x)
    compensate(layer, _moments(x), index)
    assert bool(torch.isfinite(layer.weight).all())
    torch.testing.assert_close(_cut(layer, x, index).mean(0), before.mean(0), rtol=1e-3, atol=1e-3)


def _seen(model: Any, path: str, ids: Tensor) -> Tensor:
    """What a layer reads at the tokens that count."""
    rows: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, x: rows.append(x[0][MASK == 1]))
    with torch.no_grad():
        model(ids, attention_mask=MASK)
    handle.remove()
    return rows[0]


def test_moments_are_of_the_tokens_that_count_and_fade() -> None:
    """Mean and covariance of a layer's input are over the mask's tokens; later batches weigh more than earlier ones."""
    model = make(BertModel)
    moments = InputMoments(model, Layout.of(model))
    path = "encoder.layer.0.output.dense"
    batches = (IDS, IDS.flip(0))
    for ids in batches:
        moments.fade(0.5)
        with moments.listening(MASK), torch.no_grad():
            model(ids, attention_mask=MASK)
    rows = [_seen(model, path, ids) for ids in batches]
    weights = torch.cat([torch.full((len(r),), w) for r, w in zip(rows, (0.5, 1.0), strict=True)])
    x, weights = torch.cat(rows), weights / weights.sum()
    mean = weights @ x
    covariance = ((x - mean) * weights[:, None]).T @ (x - mean)
    found = moments.inputs[path]
    assert found.covariance is not None
    torch.testing.assert_close(found.mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-3, atol=1e-5)


def test_covariances_are_kept_for_inputs_of_one_layer() -> None:
    """Ffn and value units have them; the residual stream, which a cut normalises anew, has not; nor has anything
    where they are not wanted.
    """
    model = make(BertModel)
    for wanted in (True, False):
        moments = InputMoments(model, Layout.of(model), covariance=wanted)
        with moments.listening(MASK), torch.no_grad():
            model(IDS, attention_mask=MASK)
        kept = {name for name, inputs in moments.inputs.items() if inputs.covariance is not None}
        private = {f"encoder.layer.{k}.{n}.dense" for k in range(LAYERS) for n in ("output", "attention.output")}
        assert kept == (private if wanted else set())


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ALBERT", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output"),
        ("ALBERT", "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.dense"),
        ("MPNet", "mpnet.encoder.layer.1.attention.attn.o"),
        ("T5", "encoder.block.1.layer.0.SelfAttention.o"),
    ],
)
def test_units_of_layers_have_covariances_also_where_layers_share_axes(name: str, path: str) -> None:
    """A table of positions that all layers read makes heads one axis, and ALBERT's layers are one."""
    model = tiny(name)
    moments = InputMoments(model, Layout.of(model))
    said = {"decoder_input_ids": IDS} if name == "T5" else {}
    with moments.listening(MASK, MASK), torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK, **said)
    assert moments.inputs[path].covariance is not None


def test_the_tokens_that_count_are_known_also_where_a_layer_reads_them_as_one_row() -> None:
    """OPT's feed-forward layers are given all tokens of a batch, whatever text they are of."""
    model = tiny("OPT")
    moments, path = InputMoments(model, Layout.of(model)), "model.decoder.layers.0.fc2"
    with moments.listening(MASK), torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    assert moments.counts[path] == MASK.sum()


@pytest.mark.parametrize("tokens", [(4, 9), (1, 16), (2, 8)])
def test_embeddings_of_distances_are_no_tokens(tokens: tuple[int, int]) -> None:
    """However many there are: of one text of sixteen tokens as many as tokens."""
    model = tiny("DeBERTa")
    ids, mask = torch.randint(5, 27, tokens), torch.ones(tokens, dtype=torch.long)
    moments = InputMoments(model, Layout.of(model))
    for _ in range(2):
        with moments.listening(mask), torch.no_grad():
            model(input_ids=ids, attention_mask=mask)
    assert {float(count) for count in moments.counts.values()} == {2.0 * mask.sum().item()}
    read = [f"deberta.encoder.layer.0.attention.self.{part}_proj" for part in ("query", "key", "value")]
    for name in read[:2]:
        torch.testing.assert_close(moments.sums[name], moments.sums[read[2]])


@torch.no_grad()
def test_inputs_in_bf16_with_a_large_mean_keep_their_covariance() -> None:
    """A product that was rounded to bf16 would leave nothing of it beside the square of the mean."""
    model = make(BertModel).bfloat16()
    moments, path = InputMoments(model, Layout.of(model)), "encoder.layer.0.output.dense"
    x = (20 + torch.randn(4096, 96, generator=torch.Generator().manual_seed(5))).bfloat16()
    with moments.listening(torch.ones(1, 4096)):
        model.get_submodule(path)(x[None])
    found = moments.inputs[path].covariance
    assert found is not None
    torch.testing.assert_close(found, x.float().T.cov(correction=0), rtol=0, atol=0.01)


@torch.no_grad()
def test_a_covariance_that_rounding_has_spoilt_still_tells_what_it_can() -> None:
    """Two units that say the same, told apart by less than nothing: the others tell as much as ever."""
    torch.manual_seed(6)
    x, layer, index = _rows(6), nn.Linear(6, 3), torch.arange(4)
    x[:, 3] = x[:, 2]
    before, alone, spoilt = layer(x), copy.deepcopy(layer), copy.deepcopy(layer)
    mean, covariance = _moments(x)
    assert covariance is not None
    compensate(layer, Inputs(mean, covariance), index)
    compensate(alone, Inputs(mean, None), index)
    apart = torch.tensor([0.0, 0.0, 1.0, -1.0, 0.0, 0.0])
    compensate(spoilt, Inputs(mean, covariance - 0.05 * covariance.trace() * torch.outer(apart, apart)), index)
    missed = [(_cut(each, x, index) - before).square().mean().item() for each in (layer, spoilt, alone)]
    assert missed[1] == pytest.approx(missed[0], rel=0.05)
    assert missed[1] < 0.7 * missed[2]


def test_a_batch_without_tokens_leaves_the_moments() -> None:
    """A batch in which no token counts says nothing: before any other there is no mean, and later it stays."""
    model = make(BertModel)
    moments = InputMoments(model, Layout.of(model))
    nothing = torch.zeros_like(MASK)

    def listen(ids: Tensor, mask: Tensor) -> dict[str, Inputs]:
        with moments.listening(mask), torch.no_grad():
            model(ids, attention_mask=MASK)
        return moments.inputs

    # the pooler reads one vector a sequence, which is no token of the mask
    assert set(listen(IDS, nothing)) == {"pooler.dense"}
    before = listen(IDS, MASK)
    after = listen(IDS.flip(0), nothing)
    tokens = set(before) - {"pooler.dense"}
    assert len(tokens) == 6 * LAYERS
    for name in tokens:
        torch.testing.assert_close(after[name].mean, before[name].mean)


def test_moments_follow_a_cut_and_go_round() -> None:
    """After a cut the moments are those of the units that stay; what is read back is what was written."""
    model = make(BertForMaskedLM)
    layout = Layout.of(model)
    moments = InputMoments(model, layout)
    with moments.listening(MASK), torch.no_grad():
        model(IDS, attention_mask=MASK)
    before = moments.inputs
    heads, dims = torch.tensor([0, 1, 3]), torch.tensor([2, 5, 7])
    keep: Keep = {
        "hidden": torch.arange(0, HIDDEN, 2),
        "ffn.1": torch.arange(0, 10),
        "heads.1": heads,
        "vo.1": dims.expand(4, -1),
    }
    moments.keep(kept_inputs(layout, keep, layout.sizes(model), moments.sums))
    rows = torch.tensor([int(h) * HEAD_DIM + int(d) for h in heads for d in dims])
    for path, index in (
        ("bert.encoder.layer.1.output.dense", keep["ffn.1"]),
        ("bert.encoder.layer.1.attention.output.dense", rows),
    ):
        now, then = moments.inputs[path], before[path]
        assert now.covariance is not None
        assert then.covariance is not None
        assert torch.equal(now.mean, then.mean[index])
        torch.testing.assert_close(now.covariance, then.covariance[index][:, index])
    read = InputMoments(model, layout)
    read.load_state(moments.state())
    assert set(read.inputs) == set(moments.inputs)
    for name, inputs in moments.inputs.items():
        assert torch.equal(read.inputs[name].mean, inputs.mean)
        assert (read.inputs[name].covariance is None) == (inputs.covariance is None)
