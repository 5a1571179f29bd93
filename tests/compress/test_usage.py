"""Which tokens texts use: each that occurs and no other, and one fingerprint for one way to split them."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from homodistil.compress.usage import usage_of
from tokenizers_zoo import KINDS, NARROW

TEXTS = ["the cat sat", "  ", "the dog sat", "a dog"]


@functools.cache
def _spec(kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(KINDS[kind]().to_str())
    return spec


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_of_all_texts_and_no_others(kind: str) -> None:
    backend = Tokenizer.from_str(json.dumps(_spec(kind)))
    expected = {i for text in TEXTS if text.strip() for i in backend.encode(text).ids}
    assert usage_of(TEXTS, _spec(kind), batch=2).ids == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_tells_order_and_borders_and_not_how_many_are_read_at_a_time(kind: str) -> None:
    spec = _spec(kind)
    whole = usage_of(TEXTS, spec).digest
    assert usage_of(TEXTS, spec, batch=1).digest == whole
    assert usage_of(TEXTS[::-1], spec).digest != whole
    assert usage_of([*TEXTS[:-1], "a", "dog"], spec).digest != whole
    # of a tokenizer that puts nothing around a text, one mark after the other
    bare = spec | {"post_processor": None}
    one, two = usage_of(["<mark><mark>"], bare), usage_of(["<mark>", "<mark>"], bare)
    assert one.ids == two.ids
    assert one.digest != two.digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_fingerprint_is_of_the_ids_that_rows_lead_to(kind: str) -> None:
    spec = _spec(kind)
    size = Tokenizer.from_str(json.dumps(spec)).get_vocab_size()
    assert usage_of(TEXTS, spec, rows=range(size)).digest == usage_of(TEXTS, spec).digest
    assert usage_of(TEXTS, spec, rows=range(size)[::-1]).digest != usage_of(TEXTS, spec).digest


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_whole_also_by_a_tokenizer_that_cuts_or_fills_them(kind: str) -> None:
    """Whatever length its file says."""
    backend, texts = Tokenizer.from_str(json.dumps(_spec(kind))), [" ".join(NARROW), *NARROW]
    backend.enable_truncation(4)
    backend.enable_padding(length=500, pad_id=1, pad_token="<pad>")
    spec: dict[str, Any] = json.loads(backend.to_str())
    assert usage_of(texts, spec) == usage_of(texts, _spec(kind))


def test_a_word_that_no_token_stands_for_is_told_as_the_algorithm_was_given_it() -> None:
    texts = ["the \u4e2d cat", "\u4e2d", "the \u041c\u0418\u0420 cat"]
    assert usage_of(texts, _spec("WordPiece")).unread == {"\u4e2d", "\u043c\u0438\u0440"}


def test_what_is_no_text_is_passed_over() -> None:
    texts: list[Any] = [None, *TEXTS, 3]
    assert usage_of(texts, _spec("WordPiece")) == usage_of(TEXTS, _spec("WordPiece"))
