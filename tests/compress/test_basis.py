"""Heads in their principal basis: what a turn keeps, and what it is good for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from homodistil.axes.layout import Layout
from homodistil.compress.basis import HeadMoments, principal, turn, turnable
from homodistil.compress.cut import cut
from zoo import EVERY, FAMILIES, inputs, tiny

HEAD_DIM = 12


def _heard(model: Any, *, padded: bool = False) -> tuple[Layout, HeadMoments]:
    layout = Layout.of(model)
    moments = HeadMoments(model, layout, turnable(model, layout))
    batch, mask = inputs(model, rows=8, padded=padded)
    with torch.no_grad(), moments.listening(mask, mask):
        model(**batch)
    return layout, moments


def _says(model: Any) -> Tensor:
    with torch.no_grad():
        said: Tensor = model(**inputs(model, rows=8)[0])[0]
    return said


def _draw_moments(seed: int, heads: int = 2, size: int = 6) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, heads, size, size, generator=draw, dtype=torch.float64)
    return left @ left.transpose(1, 2), right @ right.transpose(1, 2)


@pytest.mark.parametrize("name", EVERY)
def test_turning_heads_changes_nothing_that_a_model_says(name: str) -> None:
    """Of any family: other weights, the same outputs, up to rounding."""
    model = tiny(name).double()
    before, weights = _says(model), copy.deepcopy(model.state_dict())
    layout, moments = _heard(model)
    turn(model, layout, moments)
    torch.testing.assert_close(_says(model), before, rtol=1e-7, atol=1e-9)
    changed = [n for n, p in model.state_dict().items() if not torch.equal(p, weights[n])]
    assert bool(changed) == bool(moments.heads)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_dimension_that_may_be_cut_is_turned(name: str) -> None:
    """Queries with keys and values with outputs, in each layer."""
    model = tiny(name)
    layout = Layout.of(model)
    nested = {a for a in layout.axes if layout.width_of(a) == "head_dim"}
    assert {h.axis for h in turnable(model, layout)} == nested


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_in_the_principal_basis_both_sides_have_the_same_diagonal_moments(seed: int) -> None:
    """They are falling, and the two changes of basis undo each other in every product."""
    left, right = _draw_moments(seed)
    there, back = principal(left, right)
    eye = torch.eye(6, dtype=torch.float64).expand(2, 6, 6)
    torch.testing.assert_close(there.transpose(1, 2) @ back, eye)
    mine, theirs = (c @ m @ c.transpose(1, 2) for c, m in ((there, left), (back, right)))
    falling = mine.diagonal(dim1=1, dim2=2)
    assert (falling.diff(dim=1) <= 0).all()
    # the ridge blurs what hardly varies
    for moments in (mine, theirs):
        torch.testing.assert_close(moments, torch.diag_embed(falling), rtol=0.02, atol=0.02 * falling.max().item())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_no_other_basis_keeps_products_better(seed: int, width: int) -> None:
    """Expected squared products of the dimensions that are cut, against the best of many other bases."""
    left, right = (m[:1] for m in _draw_moments(seed))

    def lost(there: Tensor, back: Tensor) -> float:
        # E[(x_Cᵀ y_C)²] of independent x and y
        one, other = (c @ m @ c.transpose(1, 2) for c, m in ((there, left), (back, right)))
        return float((one[:, width:, width:] * other[:, width:, width:]).sum())

    ours = lost(*principal(left, right))
    draw = torch.Generator().manual_seed(seed)
    for _ in range(200):
        c = torch.randn(1, 6, 6, generator=draw, dtype=torch.float64)
        assert ours <= 1.01 * lost(c, torch.linalg.inv(c).transpose(1, 2))


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "OPT", "T5", "BART", "ViT", "DeBERTa"])
@torch.no_grad()
def test_what_turned_heads_lose_to_a_cut_is_less(name: str) -> None:
    """Keep the first half of every head's dimensions: far nearer to the whole model than the teacher's first half."""
    model = tiny(name)
    whole = _says(model)
    lost = []
    for turned in (False, True):
        student = copy.deepcopy(model)
        layout, moments = _heard(student)
        if turned:
            turn(student, layout, moments)
        half = torch.arange(HEAD_DIM // 2).expand(layout.sizes(student)["heads.0" if "T5" not in name else "heads"], -1)
        cut(student, layout, {heads.axis: half for heads in moments.heads})
        lost.append(float((_says(student) - whole).square().mean()))
    assert lost[1] < 0.7 * lost[0]


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "OPT", "T5", "ViT"])
def test_what_turned_heads_say_has_the_same_falling_moments_on_both_sides(name: str) -> None:
    """Of queries as they are, of keys about their mean, and of what is read too where a bias takes that over."""
    model = tiny(name).double()
    with torch.no_grad():
        for weight in (p for n, p in model.named_parameters() if n.endswith("bias") and p.dim() == 1):
            weight.add_(torch.randn_like(weight))
    layout, moments = _heard(model)
    turn(model, layout, moments)
    _, again = _heard(model)
    for heads in again.heads:
        about_mean = name != "T5" or not heads.reads
        right = again.second(heads.left if heads.reads else heads.right, centred=about_mean)
        assert right is not None
        falling = right.diagonal(dim1=1, dim2=2)
        left = torch.diag_embed(falling) if heads.reads else again.second(heads.left, centred=False)
        assert (falling.diff(dim=1) <= 0.02 * falling.max()).all()
        for moment in (left, right):
            torch.testing.assert_close(moment, torch.diag_embed(falling), rtol=0.02, atol=0.02 * falling.max().item())


@pytest.mark.parametrize(
    ("common", "turned"),
    [("self.key.bias", "self.query.weight"), ("self.value.bias", "output.dense.weight")],
)
def test_what_all_tokens_have_in_common_turns_no_head(common: str, turned: str) -> None:
    """No softmax sees it in keys, and biases take over what it adds to what values sum up to."""
    made = []
    for shift in (0.0, 3.0):
        model = tiny("BERT").double()
        with torch.no_grad():
            model.bert.encoder.layer[0].attention.get_parameter(common).add_(shift)
        turn(model, *_heard(model))
        made.append(model.bert.encoder.layer[0].attention.get_parameter(turned))
    torch.testing.assert_close(made[1], made[0], rtol=1e-3, atol=1e-3)


def test_queries_keys_and_values_of_one_layer_are_told_apart() -> None:
    """GPT-2 makes all three at once, and values are heard where they are read."""
    model, said = tiny("GPT-2"), list[Tensor]()
    model.transformer.h[0].attn.c_attn.register_forward_hook(lambda _, read, made: said.append(made.flatten(0, 1)))
    _, moments = _heard(model)
    thirds = said[0].chunk(3, -1)
    heard = {part.number: sums for part, sums in moments._sums.items() if part.layer == "transformer.h.0.attn.c_attn"}
    assert set(heard) == {0, 1}
    for number, sums in heard.items():
        torch.testing.assert_close(sums.values.flatten(), thirds[number].sum(0), rtol=1e-4, atol=1e-4)


def test_padding_is_not_heard() -> None:
    """Moments are those of the tokens that count, whatever stands beside them."""
    model = tiny("BERT")
    layout, moments = _heard(model, padded=True)
    alone = HeadMoments(model, layout, moments.heads)
    batch, mask = inputs(model, rows=8, padded=True)
    for row, counted in zip(batch["input_ids"], mask, strict=True):
        length = int(counted.sum())
        with torch.no_grad(), alone.listening(torch.ones(1, length)):
            model(input_ids=row[None, :length])
    for heads in moments.heads:
        ours, theirs = (heard.second(heads.left, centred=True) for heard in (moments, alone))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_embeddings_of_distances_are_not_heard() -> None:
    """Also where there are as many of them as tokens, as of one text of twice as many tokens as buckets."""
    model = tiny("DeBERTa")
    layout = Layout.of(model)
    moments = HeadMoments(model, layout, turnable(model, layout))
    ids, mask = torch.randint(5, 27, (1, 16)), torch.ones(1, 16)
    with torch.no_grad(), moments.listening(mask):
        model(input_ids=ids, attention_mask=mask)
    assert {int(sums.tokens) for sums in moments._sums.values()} == {16}


def test_heads_that_were_not_heard_stay_as_they_are() -> None:
    """Without a token there is no basis to choose, and nothing to fail on."""
    model = tiny("BERT")
    layout = Layout.of(model)
    before = copy.deepcopy(model.state_dict())
    moments = HeadMoments(model, layout, turnable(model, layout))
    with torch.no_grad(), moments.listening(torch.zeros(3, 7)):
        model(**inputs(model)[0])
    turn(model, layout, moments)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
