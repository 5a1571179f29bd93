"""Blocks are made of texts in order, and are as long as these are."""

from __future__ import annotations

import itertools
import random

import pytest

from homodistil.packing import Joiner, usual_length

END = 99


def _texts(longest: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(90) for _ in range(draw.randint(1, longest))] for _ in range(200)]


@pytest.mark.parametrize("longest", [5, 20, 70])
@pytest.mark.parametrize("ends", [[], [END], [END, END]])
def test_a_text_that_fits_is_never_cut(longest: int, ends: list[int]) -> None:
    """Blocks are whole texts in order, with what ends one between two; longer texts are cut where a block is full."""
    texts, join = _texts(longest), Joiner(20, ends, whole=True)
    blocks = [*join(texts), join.rest]
    assert max(map(len, blocks)) <= 20
    left = iter(texts)
    for block in blocks:
        at = 0
        while at < len(block):
            if at:
                assert block[at : at + len(ends)] == ends
                at += len(ends)
            text = next(left)
            piece = block[at : at + len(text)]
            assert piece == text[: len(piece)]
            at += len(piece)
            if len(piece) < len(text):
                # only what fits into no block is cut, at the end of one
                assert at == len(block)
                assert at == 20
                left = itertools.chain([text[len(piece) :]], left)
    assert next(left, None) is None


def test_no_two_blocks_in_a_row_would_fit_into_one() -> None:
    """Of whole texts as many are in a block as there is room for."""
    texts = _texts(12)
    blocks = list(Joiner(20, [END], whole=True)(texts))
    firsts = [list(itertools.takewhile(lambda token: token != END, block)) for block in blocks]
    assert len(blocks) > 50
    assert all(len(block) + 1 + len(first) > 20 for block, first in zip(blocks, firsts[1:], strict=False))
    assert {len(block) for block in blocks} > {20, 19, 18}


def test_full_blocks_cut_texts_anywhere_and_lose_nothing() -> None:
    """All of one length, and in a row the texts with what ends each."""
    texts, join = _texts(30), Joiner(20, [END], whole=False)
    blocks = list(join(texts))
    assert {len(block) for block in blocks} == {20}
    assert [*itertools.chain(*blocks), *join.rest] == [token for text in texts for token in (*text, END)]


@pytest.mark.parametrize("whole", [True, False])
def test_blocks_do_not_hang_on_how_many_texts_come_at_a_time(whole: bool) -> None:
    """Text by text they are the same."""
    texts, one_by_one = _texts(30), Joiner(20, [END], whole=whole)
    assert [block for text in texts for block in one_by_one([text])] == list(Joiner(20, [END], whole=whole)(texts))


def test_a_block_is_as_long_as_nearly_all_texts() -> None:
    """A hundredth may be longer; a multiple of eight, from 128 to 512, and no longer than models read."""
    texts = [*range(1, 199), 400, 500]
    assert usual_length(texts, 512) == 200
    assert usual_length([*texts, 300], 512) == 304
    assert usual_length(texts, 180) == 180
    assert usual_length([5, 7], 512) == 128
    assert usual_length([5, 7], 64) == 64
    assert usual_length([9_000] * 5, 8192) == 512
    assert usual_length([], 512) == 128
