"""A model comes whole or not at all: to a run, as its teacher, and to an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertForMaskedLM, BertForTokenClassification, BertModel, PreTrainedModel

from homodistil.errors import UserError
from homodistil.evaluation.models import open_model
from homodistil.models.teacher import load_teacher


def _as_teacher(folder: Path) -> PreTrainedModel:
    return load_teacher(str(folder)).model


def _to_be_measured(folder: Path) -> PreTrainedModel:
    return open_model(str(folder)).model


both = pytest.mark.parametrize("opened", [_as_teacher, _to_be_measured])


def _called(folder: Path, name: str) -> Path:
    """The folder, with another class in its configuration."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    return folder


@both
def test_a_head_without_weights_is_refused(
    opened: Callable[[Path], PreTrainedModel], save_teacher: Callable[..., Path]
) -> None:
    """A configuration that names a head which the file lacks: nothing random is learnt from or measured."""
    folder = _called(save_teacher(BertModel), "BertForMaskedLM")
    with pytest.raises(UserError, match=r"no weights for cls\.predictions\S+ and \d+ more(?s:.*)Correct `arch"):
        opened(folder)


@both
def test_a_pooler_that_was_not_saved_is_left_out(
    opened: Callable[[Path], PreTrainedModel], save_teacher: Callable[..., Path]
) -> None:
    """What stands in the file is the model."""
    assert opened(_called(save_teacher(BertForTokenClassification), "BertModel")).pooler is None


@both
def test_torn_weights_are_refused(opened: Callable[[Path], PreTrainedModel], save_teacher: Callable[..., Path]) -> None:
    """Half a download is said to be one."""
    file = save_teacher(BertModel) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=f"Cannot load {file.parent}(?s:.*)whole weights"):
        opened(file.parent)


@both
def test_weights_of_another_width_are_refused(
    opened: Callable[[Path], PreTrainedModel], save_teacher: Callable[..., Path]
) -> None:
    """A configuration that belongs to another model."""
    folder = save_teacher(BertModel)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    with pytest.raises(UserError, match=f"Cannot load {folder}(?s:.*)belongs to it"):
        opened(folder)


@both
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(
    opened: Callable[[Path], PreTrainedModel], save_teacher: Callable[..., Path]
) -> None:
    """Some of its tokens would have no row."""
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, its embeddings 8(?s:.*)Save the tokenizer"):
        opened(save_teacher(BertForMaskedLM, vocab_size=8))
