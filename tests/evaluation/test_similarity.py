"""Following a teacher's similarities: the measure that the demo prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from homodistil.errors import UserError
from homodistil.evaluation.similarity import embed, follows
from zoo import tiny


def _embeddings(seed: int, width: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(40, width)).astype(np.float32)
    normalised: np.ndarray = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return normalised


def test_an_encoder_follows_itself_wholly() -> None:
    """The correlation of a model with itself is 1, also after a rotation, which moves no similarity."""
    own = _embeddings(0, 16)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0].astype(np.float32)
    assert follows(own, own) == pytest.approx(1)
    assert follows(own @ rotation, own) == pytest.approx(1, abs=1e-4)


def test_unrelated_encoders_do_not_follow_each_other() -> None:
    """Independent embeddings, of other widths too, correlate near 0."""
    assert abs(follows(_embeddings(2, 8), _embeddings(3, 16))) < 0.15


def test_an_encoder_to_which_all_texts_are_alike_follows_nothing() -> None:
    """What is constant says nothing about an order, and is no reason for a figure that is no number."""
    own = _embeddings(0, 16)
    constant = np.repeat(np.eye(16, dtype=np.float32)[:1], 40, axis=0)
    assert follows(constant, own) == follows(own, constant) == follows(constant, constant) == 0


def test_embeddings_are_normalised_and_in_order(encoder: Path) -> None:
    """One row a text, of norm 1, the same whatever stands beside it."""
    texts = ["the man sees a cat", "one dog", "the big red house near the tree"]
    made = embed(encoder, texts)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(embed(encoder, texts[1:2])[0], made[1], atol=1e-5)


def test_a_decoder_that_pads_on_the_left_embeds_a_text_as_if_alone(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """It counts positions from the left, which padding there would move."""
    tiny("GPT-2 encoder").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path, padding_side="left").save_pretrained(tmp_path)
    texts = ["one dog", "the big red house near the tree"]
    np.testing.assert_allclose(embed(tmp_path, texts)[0], embed(tmp_path, texts[:1])[0], atol=1e-5)


def test_a_text_without_a_token_is_refused(tmp_path: Path) -> None:
    """Where a tokenizer puts nothing around texts, an empty one has no states to embed, alone or beside others."""
    tiny("GPT-2 encoder").save_pretrained(tmp_path)
    bare = Tokenizer(WordLevel({"<pad>": 0, "cat": 1}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="makes no token of it"):
        embed(tmp_path, ["cat", ""])
    assert embed(tmp_path, ["cat"]).shape == (1, 48)
