"""The plan: every way to write a target, what it comes out as, and every refusal."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from conftest import make, tiny_config
from homodistil.axes.layout import Layout, on_meta
from homodistil.compress.plan import Planned, plan, refuse_growth, teacher_figures
from homodistil.compress.shrink import shrink
from homodistil.compress.targets import GRAIN
from homodistil.compress.written import PUBLISHED
from homodistil.errors import UserError
from zoo import tiny

BASE = {"hidden": 768, "heads": 12, "head_dim": 64, "ffn": 3072, "layers": 12}


@pytest.fixture(scope="module")
def base() -> Layout:
    """The layout of BERT-base, which needs no weights."""
    return Layout.of(on_meta(BertModel, BertConfig()))


def _one(base: Layout, target: str) -> Planned:
    return plan(base, BASE, [target])[0]


@pytest.mark.parametrize(
    ("target", "hidden", "heads", "head_dim", "ffn"),
    [
        ("1", 768, 12, 64, 3072),
        ("1.0", 768, 12, 64, 3072),
        ("0.5", 384, 12, 32, 1536),
        (" .25 ", 192, 12, 16, 768),
        ("0.3125", 240, 12, 20, 960),
        # 6.4 dims a head are too far from 8 and near enough to 6
        ("0.1", 72, 12, 6, 304),
        # 19.2 dims a head are near enough to 20
        ("0.3", 240, 12, 20, 920),
        ("0.02", 12, 12, 1, 64),
        ("hidden=240,heads=12,ffn=960", 240, 12, 20, 960),
        ("hidden=240", 240, 12, 20, 960),
        ("heads=6", 384, 6, 64, 1536),
        ("head_dim=32", 384, 12, 32, 1536),
        (" heads = 7 , head_dim = 32 ", 224, 7, 32, 896),
        ("ffn=100", 768, 12, 64, 100),
        ("hidden=12,ffn=1", 12, 12, 1, 1),
        ("homobert-base", 576, 12, 48, 2304),
        ("homobert-small", 256, 8, 32, 1024),
        ("homobert-xsmall", 240, 12, 20, 960),
        ("homobert-tiny", 224, 7, 32, 896),
    ],
)
def test_a_target_is_a_ratio_a_shape_or_a_name(
    base: Layout, target: str, hidden: int, heads: int, head_dim: int, ffn: int
) -> None:
    """Each way to write a target means one shape; widths that are not named follow those that are."""
    planned = _one(base, target)
    assert planned.shape == {"hidden": hidden, "heads": heads, "head_dim": head_dim, "ffn": ffn, "layers": 12}
    assert planned.target == target.strip()
    assert planned.missed is None


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        ("layers=6", {}),
        ("layers=1,ffn=100", {"ffn": 100}),
        ("layers=6,hidden=240,ffn=960", {"hidden": 240, "head_dim": 20, "ffn": 960}),
        ("heads=6 , layers=12", {"hidden": 384, "heads": 6, "ffn": 1536}),
    ],
)
def test_a_shape_may_name_the_number_of_layers(base: Layout, target: str, changes: dict[str, int]) -> None:
    """Widths that it does not name stay, or follow those that it names; the count is that of so deep a model."""
    planned = _one(base, target)
    layers = int(re.search(r"layers=(\d+)", target)[1])  # type: ignore[index]
    assert planned.shape == {**BASE, **changes, "layers": layers}
    config = BertConfig(
        hidden_size=planned.shape["hidden"], num_attention_heads=planned.shape["heads"],
        intermediate_size=planned.shape["ffn"], num_hidden_layers=layers,
    )  # fmt: skip
    assert planned.parameters == sum(p.numel() for p in on_meta(BertModel, config).parameters())


@pytest.mark.parametrize("head_dim", [13, 26, 42, 64, 66])
def test_a_ratio_of_one_is_the_teacher(head_dim: int) -> None:
    """Whatever its width, and in fewer layers too."""
    model = on_meta(BertModel, BertConfig(hidden_size=12 * head_dim, num_attention_heads=12, intermediate_size=1200))
    layout = Layout.of(model)
    whole = {"hidden": 12 * head_dim, "heads": 12, "head_dim": head_dim, "ffn": 1200, "layers": 12}
    asked = plan(layout, layout.shape(model), ["1", "1.0, layers=4"])
    assert [planned.shape for planned in asked] == [whole, {**whole, "layers": 4}]


@pytest.mark.parametrize("share", [0.3, 0.4, 0.6, 0.7, 0.85])
def test_a_budget_that_no_shape_meets_leaves_no_misshapen_student(share: float) -> None:
    """Whole heads leave, each with much of the embeddings: a budget in between is missed, and ffn keeps its part."""
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "num_hidden_layers": 6}
    model = on_meta(GPTNeoXForCausalLM, GPTNeoXConfig(vocab_size=50304, **sizes))
    layout = Layout.of(model)
    (planned,) = plan(layout, layout.shape(model), [str(round(share * layout.count(layout.shape(model))))])
    assert 1.3 < planned.shape["ffn"] / planned.shape["hidden"] < 12
    assert planned.missed is not None
    assert abs(planned.missed) < 0.25


@pytest.mark.parametrize(("target", "budget"), [("30M, layers=6", 30_000_000), ("17.3M,layers=3", 17_300_000)])
def test_a_budget_with_a_depth_is_met_in_so_many_layers(base: Layout, target: str, budget: int) -> None:
    """Fewer layers leave room for wider ones; proportions stay near to the teacher's."""
    shallow, deep = _one(base, target), _one(base, target.partition(",")[0])
    assert shallow.missed == shallow.parameters / budget - 1
    assert abs(shallow.missed) < 0.02
    assert shallow.shape["layers"] == int(target[-1])
    assert shallow.shape["hidden"] > deep.shape["hidden"]
    assert 3 < shallow.shape["ffn"] / shallow.shape["hidden"] < 5.4


def test_a_ratio_with_a_depth_keeps_the_width_of_the_ratio(base: Layout) -> None:
    """Only the layers differ; all of the width in fewer layers can be asked for as well."""
    assert _one(base, "0.3,layers=4").shape == {**_one(base, "0.3").shape, "layers": 4}
    assert _one(base, "1.0, layers=4").shape == _one(base, "layers=4").shape


def test_layers_that_cannot_leave_are_refused_with_the_reason() -> None:
    """A model whose configuration tells layers apart by something else than a list with an entry a layer."""
    strange = on_meta(BertModel, BertConfig(num_hidden_layers=3, sizes_of_layers=[1, 2, 3]))
    layout = Layout.of(strange)
    shape = layout.shape(strange)
    assert "layers" not in shape
    assert plan(layout, shape, ["0.5"])[0].parameters < layout.count(shape)
    with pytest.raises(UserError, match=r"Cannot make layers=1.*tells layers apart by sizes_of_layers(?s:.*)hidden"):
        plan(layout, shape, ["layers=1"])


@pytest.mark.parametrize(
    ("target", "budget"),
    [
        ("17.3M", 17_300_000),
        ("17300K", 17_300_000),
        ("0.05b", 50_000_000),
        ("8600000", 8_600_000),
        ("66 M", 66_000_000),
    ],
)
def test_a_target_with_a_unit_is_a_budget(base: Layout, target: str, budget: int) -> None:
    """A whole number, or one with k, m or b, is a number of parameters that is met within 2 percent."""
    planned = _one(base, target)
    assert planned.missed == planned.parameters / budget - 1
    assert abs(planned.missed) < 0.02


def test_a_budget_of_the_teachers_own_size_is_the_teacher(base: Layout) -> None:
    """The teacher's own count as a budget, even if rounded, changes nothing."""
    assert _one(base, str(base.count(BASE))).shape == BASE
    assert _one(base, "109.5M").shape == BASE


def test_a_budget_a_little_below_the_teachers_own_size_is_met_by_a_little_less(base: Layout) -> None:
    """Though the teacher itself is within what counts as met."""
    planned = _one(base, "108.5M")
    assert planned.shape["ffn"] < BASE["ffn"]
    assert abs(planned.parameters / 108_500_000 - 1) < 0.001


@pytest.mark.parametrize(("target", "head_dim"), [("15M", 20), ("6.3M", 10), ("8.8M", 14), ("10M", 14)])
def test_heads_of_a_budget_are_as_wide_as_is_round_where_it_is_met(base: Layout, target: str, head_dim: int) -> None:
    """By a multiple of four, or else of two; odd ones waste vector lanes."""
    assert _one(base, target).shape["head_dim"] == head_dim


@pytest.mark.parametrize(("least", "most", "seed"), [(12_000_000, 109_000_000, 0), (12_000_000, 25_000_000, 1)])
def test_budgets_are_met_with_shapes_that_load(base: Layout, least: int, most: int, seed: int) -> None:
    """Any budget is missed by less than 2 percent, with heads x head_dim == hidden and nothing above the teacher."""
    draw = random.Random(seed)
    for _ in range(50):
        planned = _one(base, str(draw.randint(least, most)))
        assert planned.missed is not None
        assert abs(planned.missed) < 0.02, planned
        # a rounder head_dim may not bend ffn : hidden by more than a third
        assert abs(math.log(planned.shape["ffn"] / planned.shape["hidden"] / 4)) <= math.log(4 / 3) + 1e-9
        _check_proportions(planned.shape)


def test_ratios_give_shapes_that_load(base: Layout) -> None:
    """Any ratio gives heads x head_dim == hidden, near the ratio on each width and never above the teacher."""
    draw = random.Random(2)
    for _ in range(100):
        ratio = draw.uniform(0.05, 1)
        shape = _one(base, str(ratio)).shape
        _check_proportions(shape)
        # a head_dim is rounded to whole dims, by at most a tenth where it may choose and by half a dim where not
        assert abs(shape["hidden"] / 768 - ratio) <= max(0.1 * ratio, 0.5 / 64) + 1e-9
        assert abs(shape["ffn"] - ratio * 3072) <= GRAIN / 2


def _check_proportions(shape: dict[str, int]) -> None:
    assert shape["heads"] * shape["head_dim"] == shape["hidden"]
    assert shape["heads"] == 12
    assert shape["ffn"] % GRAIN == 0
    assert all(1 <= shape[width] <= most for width, most in BASE.items())


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("homobert-base", 66_075_840),
        ("homobert-small", 17_488_640),
        ("homobert-xsmall", 15_838_800),
        ("homobert-tiny", 14_263_200),
    ],
)
def test_published_sizes_have_names(base: Layout, size: str, parameters: int) -> None:
    """It is the published shape: its count is that of a real model of that configuration."""
    planned = _one(base, size)
    shape = planned.shape
    config = BertConfig(hidden_size=shape["hidden"], num_attention_heads=shape["heads"], intermediate_size=shape["ffn"])
    real = sum(p.numel() for p in on_meta(BertModel, config).parameters())
    assert planned.parameters == real == parameters
    assert planned.shape == _one(base, PUBLISHED[size]).shape


@pytest.mark.parametrize(
    "target",
    [
        "0.5",
        "0.3",
        "8000",
        "12k",
        "8k,layers=1",
        "0.5,layers=1",
        "hidden=20,heads=2,ffn=33",
        "heads=3",
        "ffn=5",
        "layers=1",
    ],
)
def test_what_is_planned_is_what_is_made(target: str) -> None:
    """The plan's shape and count are those of the model after the cut."""
    model: Any = make(BertForMaskedLM)
    layout = Layout.of(model)
    planned = plan(layout, layout.shape(model), [target])[0]
    assert shrink(model, target) == planned
    assert sum(p.numel() for p in model.parameters()) == planned.parameters
    assert Layout.of(model).shape(model) == planned.shape


@pytest.mark.parametrize(("number", "text"), [(0.5, "0.5"), (1, "1"), (8000, "8000"), (8e3, "8000")])
def test_a_number_is_the_target_that_it_is_written_as(number: Any, text: str) -> None:
    """From every verb of Python, alone and among others; a whole number is a budget, as it is in a text."""
    model: Any = make(BertForMaskedLM)
    layout = Layout.of(model)
    teacher = layout.shape(model)
    assert plan(layout, teacher, number) == plan(layout, teacher, text) == plan(layout, teacher, [text])
    assert plan(layout, teacher, (number, "layers=1")) == plan(layout, teacher, [text, "layers=1"])
    assert shrink(model, number) == plan(layout, teacher, text)[0]


def test_figures_are_those_of_the_shape(base: Layout) -> None:
    """Memory is of weights in float32, operations are at 128 tokens, and programs are told them."""
    half = plan(base, BASE, ["0.5"])[0]
    assert half.memory_bytes == 4 * half.parameters
    assert half.flops_per_token == base.flops_per_token(half.shape, 128)
    assert half.as_json() == {
        "target": "0.5",
        "shape": half.shape,
        "parameters": half.parameters,
        "flops_per_token": half.flops_per_token,
        "memory_bytes": half.memory_bytes,
    }
    whole = teacher_figures(base, BASE)
    assert (whole.shape, whole.parameters, whole.memory_bytes) == (BASE, 109_482_240, 4 * 109_482_240)


def test_several_targets_come_widest_first(base: Layout) -> None:
    """Targets are reached in the order in which one run passes through them, however they were written."""
    planned = plan(base, BASE, ["homobert-xsmall", "0.75", "10M"])
    refuse_growth(planned)
    assert [p.target for p in planned] == ["0.75", "homobert-xsmall", "10M"]


@pytest.mark.parametrize(
    ("targets", "refused", "rule", "remedy"),
    [
        ([], "There is no target.", "at least one target", "--target 0.5"),
        (["1.5"], "Cannot keep 1.5 of the teacher's width", "above 0 and at most at 1", "from 0.02 to 1"),
        (
            ["200M"],
            "200,000,000 parameters (200M)",
            "and 109,482,240 parameters",
            "the teacher itself, with 109,482,240",
        ),
        (["hidden=800"], "Cannot make hidden=800.", "hidden=768, heads=12", "Use hidden=768"),
        (["ffn=4000"], "Cannot make ffn=4000.", "ffn=3072", "Use ffn=3072"),
        (["hidden=240,heads=3"], "head_dim=80", "head_dim would be", "Use heads=4 (head_dim=60), or hidden=192"),
        (["0.001"], "Cannot keep 0.001", "leaves head_dim at least 1", "from 0.02 to 1"),
        (["0"], "Cannot keep 0 of", "above 0", "from 0.02 to 1"),
        (["300K"], "300,000 parameters (300K)", "between 381,120 and", "hidden=12, heads=12, head_dim=1, ffn=1"),
        (["0.3,heads=6"], "Cannot read 'heads' beside a ratio", "only layers=N may be added", "all of the shape"),
        (["0.3,"], "Cannot read '' beside a ratio", "only layers=N may be added", "Leave it out"),
        (["5M,layers=13"], "Cannot make layers=13.", "layers=12", "Use layers=12"),
        (
            ["90M,layers=3"],
            "of 45,691,392 in 3 layers.",
            "and 45,691,392",
            "ffn=3072, layers=3",
        ),
        (["layers=0"], "Cannot make layers=0.", "from 1 to the teacher's", "Use layers=1"),
        (["layers=13"], "Cannot make layers=13.", "layers=12", "Use layers=12"),
        (["layers=six"], "Cannot make layers=six.", "whole number", "Use layers=12"),
        (["layers=3", "0.3"], "Cannot reach 0.3", "layers would have to grow", "a run of its own"),
        (["hidden=0"], "Cannot make hidden=0.", "from 1", "Use hidden=1"),
        (["ffn=x"], "Cannot make ffn=x.", "whole number", "Use ffn=3072"),
        (["ffn="], "Cannot make ffn=?.", "whole number", "Use ffn=3072"),
        (["ffn=²"], "Cannot make ffn=².", "whole number", "Use ffn=3072"),
        (["half"], "Cannot read the target 'half'.", "keep ratio (0.5)", "homobert-base"),
        (["homobert-smal"], "'homobert-smal'", "a published size (homobert-base", "Did you mean 'homobert-small'?"),
        (["-0.5"], "Cannot read the target '-0.5'.", "keep ratio", "--target 0.5"),
        (["1e6"], "Cannot read the target '1e6'.", "8600000", "--target 0.5"),
        ([""], "Cannot read the target ''.", "keep ratio", "--target 0.5"),
        (["hiden=240"], "Cannot read 'hiden'", "hidden, heads, head_dim, ffn", "Did you mean 'hidden'?"),
        (["width=240"], "Cannot read 'width'", "hidden, heads, head_dim, ffn", "Known are: hidden, heads"),
        (
            ["hidden=100"],
            "hidden=100 with heads=12.",
            "100 is no multiple of 12",
            "heads=10 (head_dim=10), or hidden=96 (head_dim=8)",
        ),
        (["hidden=100,head_dim=20"], "heads=12 and head_dim=20.", "100 is not 12 x 20", "heads=10 (head_dim=10)"),
        (["hidden=1"], "hidden=1 with heads=12.", "1 is no multiple of 12", "heads=1 (head_dim=1)"),
        (["hidden=761"], "hidden=761 with heads=12.", "no multiple of 12", "Use hidden=756 (head_dim=63)."),
        (["0.5", "17M", "0.5"], "0.5 is given twice", "saved under its name", "Leave one of them out"),
        (
            ["homobert-xsmall", "homobert-small"],
            "Cannot reach homobert-xsmall",
            "heads would have to grow",
            "a run of its own",
        ),
        (["0.5", "hidden=192,ffn=3072"], "Cannot reach hidden=192,ffn=3072", "ffn would have to grow", "proportions"),
    ],
)
def test_a_refusal_says_what_and_why_and_what_instead(
    base: Layout, targets: list[str], refused: str, rule: str, remedy: str
) -> None:
    """What cannot be made is refused in three sentences: what arrived, what must hold, what to do."""
    with pytest.raises(UserError) as refusal:
        refuse_growth(plan(base, BASE, targets))
    error = refusal.value
    assert refused in error.refused
    assert rule in error.rule
    assert remedy in error.remedy
    sentences = str(error).splitlines()
    assert sentences == [error.refused, error.rule, error.remedy]
    assert all(sentence.endswith((".", "?")) for sentence in sentences)


def test_the_nearest_possible_is_possible(base: Layout) -> None:
    """Each shape that a refusal proposes is accepted when it is asked for."""
    draw = random.Random(3)
    pairs = [(draw.randint(1, 768), draw.randint(1, 12)) for _ in range(200)]
    impossible = [(hidden, heads) for hidden, heads in pairs if hidden % heads or hidden // heads > 64]
    for hidden, heads in impossible:
        with pytest.raises(UserError) as refusal:
            _one(base, f"hidden={hidden},heads={heads}")
        remedy = refusal.value.remedy
        below, other = re.search(r"hidden=(\d+) ", remedy), re.search(r"heads=(\d+) ", remedy)
        assert below is not None, remedy
        assert _one(base, f"hidden={below[1]},heads={heads}").shape["hidden"] == int(below[1])
        if other is not None:
            assert _one(base, f"hidden={hidden},heads={other[1]}").shape["heads"] == int(other[1])


@pytest.mark.parametrize(("heads", "kv_heads", "hidden"), [(9, 3, 576), (14, 2, 896), (32, 8, 2048), (4, 4, 48)])
def test_heads_divide_hidden_where_transformers_asks_for_it(heads: int, kv_heads: int, hidden: int) -> None:
    """Whatever ratio or budget is wanted of a Llama, transformers takes the configuration of its student, which is a
    multiple of eight wide.
    """
    own = {"vocab_size": 1000, "num_hidden_layers": 2, "head_dim": 64, "intermediate_size": 1536}
    config = LlamaConfig(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, **own)
    model = on_meta(LlamaForCausalLM, config)
    layout = Layout.of(model)
    whole = layout.shape(model)
    parameters = layout.count(whole)
    for share in (0.2, 0.35, 0.5, 0.65, 0.7, 0.9, 0.95):
        for target in (f"{share}", str(int(share * parameters))):
            shape = plan(layout, whole, [target])[0].shape
            assert shape["hidden"] % 8 == 0
            sizes = {"hidden_size": shape["hidden"], "num_key_value_heads": shape["kv_heads"]}
            LlamaConfig(**own, **sizes, num_attention_heads=shape["kv_heads"] * heads // kv_heads)
    impossible = f"hidden={hidden // 2 + 1}"
    with pytest.raises(UserError, match="must be a multiple of") as refusal:
        plan(layout, whole, [impossible])
    proposed = re.search(r"Use (.+), for example", refusal.value.remedy)
    assert proposed is not None
    assert plan(layout, whole, [proposed[1]])[0].shape["hidden"] <= hidden // 2


@pytest.mark.parametrize(
    ("target", "hidden", "kv_heads"),
    [("hidden=24", 24, 1), ("hidden=24,kv_heads=2", 24, 2), ("kv_heads=1", 48, 1), ("hidden=48,kv_heads=1", 48, 1)],
)
def test_groups_of_heads_follow_the_width_unless_they_are_named(target: str, hidden: int, kv_heads: int) -> None:
    """Of a Llama with two of them, and 48 units."""
    model = tiny("Llama")
    shape = shrink(model, target).shape
    assert (shape["hidden"], shape["kv_heads"]) == (hidden, kv_heads)
    assert (model.config.hidden_size, model.config.num_key_value_heads) == (hidden, kv_heads)


@pytest.mark.parametrize("head_dim", [1, 3, 12])
def test_the_least_ratio_that_is_proposed_is_possible(head_dim: int) -> None:
    """Where a ratio is refused as too small, the one that is proposed is accepted."""
    config = tiny_config(hidden_size=2 * head_dim, num_attention_heads=2)
    model = on_meta(BertModel, config)
    layout = Layout.of(model)
    shape = layout.shape(model)
    with pytest.raises(UserError) as refusal:
        plan(layout, shape, ["0.0001"])
    least = re.search(r"from (\S+) to 1", refusal.value.remedy)
    assert least is not None
    assert plan(layout, shape, [least[1]])[0].shape["head_dim"] == 1


@pytest.mark.parametrize("hidden", [64, 32], ids=["wider than its heads", "narrower than its heads"])
def test_a_stream_that_is_not_as_wide_as_its_heads_keeps_its_proportion_to_them(hidden: int) -> None:
    """FLAN-T5's small one has 512 units and heads of 6 x 64 dimensions: all of it is all, and half is half."""
    model = tiny("T5", d_model=hidden, d_kv=12, num_heads=4, d_ff=96)
    layout, teacher = Layout.of(model), Layout.of(model).shape(model)
    assert teacher["hidden"] == hidden
    figures = teacher_figures(layout, teacher)
    assert plan(layout, teacher, "1")[0].shape == teacher
    half = plan(layout, teacher, "0.5")[0].shape
    assert (half["hidden"], half["heads"], half["head_dim"], half["ffn"]) == (hidden // 2, 4, 6, 48)
    assert plan(layout, teacher, str(figures.parameters))[0].parameters == figures.parameters
    budget = round(0.7 * figures.parameters)
    assert abs(plan(layout, teacher, str(budget))[0].parameters / budget - 1) < 0.05
    kept = plan(layout, teacher, f"hidden={hidden},ffn=48")[0].shape
    assert kept == {**teacher, "ffn": 48}
    assert plan(layout, teacher, f"hidden={hidden // 2}")[0].shape == half
    shrink(model, "0.5")
    assert (model.config.d_model, model.config.d_kv, model.shared.weight.shape[1]) == (hidden // 2, 6, hidden // 2)
