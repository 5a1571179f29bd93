"""The layout: the table against real models, and its closed forms against counting."""

from __future__ import annotations

import math
import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    BloomConfig,
    BloomModel,
)

from conftest import tiny_config
from homodistil.axes.binding import families_of
from homodistil.axes.layout import Layout, on_meta
from homodistil.axes.shape import describe
from homodistil.errors import UserError
from zoo import tiny

CLASSES = {
    "encoder": BertModel,
    "encoder without pooler": partial(BertModel, add_pooling_layer=False),
    "masked LM": BertForMaskedLM,
    "pre-training": BertForPreTraining,
    "next sentence": BertForNextSentencePrediction,
    "sequence": BertForSequenceClassification,
    "token": BertForTokenClassification,
    "question": BertForQuestionAnswering,
    "choice": BertForMultipleChoice,
}
every_class = pytest.mark.parametrize("model_class", CLASSES.values(), ids=CLASSES.keys())


def _meta(model_class: Any, shape: dict[str, int] | None = None, **changes: object) -> Any:
    if shape:
        changes |= {
            "hidden_size": shape["hidden"],
            "num_attention_heads": shape["heads"],
            "intermediate_size": shape["ffn"],
        }
    return on_meta(model_class, tiny_config(**changes))


def _random_shape(draw: random.Random) -> dict[str, int]:
    heads, head_dim = draw.randint(1, 8), draw.randint(1, 20)
    return {"hidden": heads * head_dim, "heads": heads, "head_dim": head_dim, "ffn": draw.randint(1, 200)}


@every_class
def test_every_parameter_has_the_axes_that_its_size_says(model_class: Any) -> None:
    """Each parameter of each class has a row, and the product of its axes' sizes is its shape."""
    model = _meta(model_class, vocab_size=29, num_labels=5, type_vocab_size=3)
    layout = Layout.of(model)
    # two labels are next-sentence prediction's own, whatever the configuration says
    sizes = {"vocab": 29, "position": 64, "type": 3, "hidden": 48, "heads": 4, "qk": 12, "vo": 12, "ffn": 96}
    named = dict(model.named_parameters(remove_duplicate=False))
    assert set(layout.dims) == set(named)
    for name, dims in layout.dims.items():
        for dim, size in zip(dims, named[name].shape, strict=True):
            if dim != ("label",):
                assert math.prod(sizes[str(part).partition(".")[0]] for part in dim) == size, name


@every_class
def test_the_shape_of_a_model_is_its_configuration(model_class: Any) -> None:
    """Widths that are read from the tensors are those that the model was made with."""
    shape = {"hidden": 30, "heads": 3, "head_dim": 10, "ffn": 44}
    model = _meta(model_class, shape)
    layout = Layout.of(model)
    assert layout.shape(model) == {**shape, "layers": 2}
    assert {layout.sizes(model)[f"{axis}.1"] for axis in ("qk", "vo")} == {10}


def test_heads_hold_their_own_queries_and_values() -> None:
    """The dimensions of a head are nested in the heads of their layer and nothing else is nested."""
    layout = Layout.of(_meta(BertModel))
    assert layout.parent == {f"{axis}.{k}": f"heads.{k}" for axis in ("qk", "vo") for k in (0, 1)}
    assert all(layout.axes.index(parent) < layout.axes.index(axis) for axis, parent in layout.parent.items())


def test_a_parameter_without_a_row_is_refused_by_name() -> None:
    """A parameter that no row describes cannot be cut along, so the model is refused and the parameter named."""
    model = _meta(BertModel)
    model.encoder.layer[1].adapter = nn.Linear(48, 2, device="meta")
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.adapter\.weight and 1 more"):
        Layout.of(model)


@pytest.mark.parametrize("path", ["encoder.layer.0.output.dense", "pooler.dense"])
def test_a_row_without_a_parameter_is_refused_by_name(path: str) -> None:
    """A row of a table that belongs to the model must be there, in the base model and in what stands on it."""
    model = _meta(BertModel, num_hidden_layers=1)
    model.get_submodule(path).register_parameter("bias", None)
    with pytest.raises(UserError, match=f"nothing for the row {path.replace('0', '[*]')}.bias"):
        Layout.of(model)


def test_a_row_that_misses_one_layer_is_refused_by_name() -> None:
    """A parameter that is there in all layers but one would be cut in those alone."""
    model = _meta(BertModel)
    model.encoder.layer[1].output.dense.register_parameter("bias", None)
    with pytest.raises(UserError, match=r"nothing for the row encoder\.layer\.\*\.output\.dense\.bias"):
        Layout.of(model)


def test_cross_attention_is_refused_by_name() -> None:
    """A decoder with cross-attention has parameters that no row describes, and the message names one."""
    model = _meta(BertLMHeadModel, is_decoder=True, add_cross_attention=True)
    with pytest.raises(UserError, match=r"bert\.encoder\.layer\.0\.crossattention\.self\.query\.weight"):
        Layout.of(model)


def test_an_unknown_family_names_the_known_ones() -> None:
    """A model type without a table is refused, and the message says which have one."""
    model = on_meta(BloomModel, BloomConfig(n_layer=1, hidden_size=8, n_head=2, vocab_size=9))
    with pytest.raises(UserError) as refusal:
        Layout.of(model)
    assert "'bloom'" in refusal.value.refused
    assert "BERT, RoBERTa" in refusal.value.remedy
    assert [f.name for f in families_of("bert")] == ["BERT"]


def test_parts_of_another_width_are_refused() -> None:
    """A decoder with another ffn than its encoder has no shape that could be written."""
    model = tiny("BART", decoder_ffn_dim=64)
    with pytest.raises(UserError, match=r"96 units of ffn\.0 and 64 of decoder_ffn\.0"):
        Layout.of(model)


def test_a_setting_that_no_table_describes_is_refused_by_its_key() -> None:
    """A model that multiplies what its table does not know of would come out of a cut wrong."""
    with pytest.raises(UserError, match="scale_embedding = True"):
        Layout.of(tiny("BART", scale_embedding=True))


def test_parameters_that_disagree_about_an_axis_are_refused() -> None:
    """Two parameters that have different sizes on one axis are an error that names one of them."""
    model = _meta(BertModel)
    model.encoder.layer[0].output.dense = nn.Linear(95, 48, device="meta")
    with pytest.raises(UserError, match=r"encoder\.layer\.0\.output\.dense\.weight: a dimension has 95"):
        Layout.of(model).sizes(model)


@every_class
def test_the_count_equals_the_models(model_class: Any) -> None:
    """The closed form counts the parameters of a model of any shape exactly, tied ones once."""
    layout = Layout.of(_meta(model_class))
    draw = random.Random(1)
    for _ in range(8):
        shape = _random_shape(draw)
        real = sum(p.numel() for p in _meta(model_class, shape).parameters())
        assert layout.count(shape) == real, describe(shape)


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForPreTraining])
def test_untied_weights_count_twice(model_class: Any) -> None:
    """Without ties the vocabulary's matrix counts in the embeddings and in the decoder."""
    untied = Layout.of(_meta(model_class, tie_word_embeddings=False))
    tied = Layout.of(_meta(model_class))
    shape = {"hidden": 24, "heads": 3, "head_dim": 8, "ffn": 40}
    model = _meta(model_class, shape, tie_word_embeddings=False)
    assert untied.count(shape) == sum(p.numel() for p in model.parameters())
    assert tied.tied["cls.predictions.decoder.weight"] == "bert.embeddings.word_embeddings.weight"
    assert not any("weight" in name for name in untied.tied)
    assert untied.count(shape) > tied.count(shape)


@every_class
def test_operations_equal_those_that_are_counted(model_class: Any) -> None:
    """The closed form of operations equals torch's counter on a forward pass, for any shape and length."""
    layout = Layout.of(_meta(model_class))
    draw = random.Random(2)
    for sequence in (16, 64):
        shape = _random_shape(draw)
        model = _meta(model_class, shape)
        # other attentions are one fused operation, whose products the counter does not see everywhere
        model.set_attn_implementation("eager")
        ids = torch.zeros(2, sequence, dtype=torch.long, device="meta")
        with FlopCounterMode(display=False) as counter:
            model(ids[None] if model_class is BertForMultipleChoice else ids)
        assert layout.flops_per_token(shape, sequence) * ids.numel() == pytest.approx(counter.get_total_flops())


def test_patterns_match_names_in_every_layer() -> None:
    """A pattern of the family stands for each layer's module or parameter, below the prefix of the class."""
    model = _meta(BertForMaskedLM)
    layout = Layout.of(model)
    assert list(layout.matches("encoder.layer.*.attention.self")) == [
        "bert.encoder.layer.0.attention.self",
        "bert.encoder.layer.1.attention.self",
    ]
    assert list(layout.matches("cls.predictions.{bias,none}")) == ["cls.predictions.bias"]
    assert list(layout.matches("pooler")) == []


def test_a_shape_is_written_as_a_person_writes_it() -> None:
    """A shape is printed in the words in which a target is written."""
    assert describe({"hidden": 240, "heads": 12}) == "hidden=240, heads=12"
