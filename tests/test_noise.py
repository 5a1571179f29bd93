"""What noise takes out of a text: spans told by sentinels or by a mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from homodistil.errors import UserError
from homodistil.noise import noise_of

SENTINELS = [f"<extra_id_{k}>" for k in range(5)]
PIECES = [f"▁{sentinel}" for sentinel in SENTINELS]
"""As mT5's vocabulary spells them, where they have no role."""


def _with_sentinels(tokenizer: Any, sentinels: list[str] = SENTINELS) -> Any:
    made = copy.deepcopy(tokenizer)
    made.add_tokens(sentinels, special_tokens=sentinels == SENTINELS)
    return made


def _blocks(tokenizer: Any, count: int = 6, length: int = 40) -> list[list[int]]:
    """Blocks of random words between special tokens, with one that parts two texts."""
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(5, 27, (count, length - 2), generator=draw)
    words[:, length // 2] = tokenizer.sep_token_id
    return [[tokenizer.cls_token_id, *row, tokenizer.sep_token_id] for row in words.tolist()]


def _pieces(tokens: list[int], marks: list[int]) -> tuple[list[list[int]], list[int]]:
    """What stands between marks, and the marks in their order."""
    pieces: list[list[int]] = [[]]
    met = []
    for token in tokens:
        if token in marks:
            met.append(token)
            pieces.append([])
        else:
            pieces[-1].append(token)
    return pieces, met


@pytest.mark.parametrize(("length", "most"), [(40, 6), (200, 30)])
@pytest.mark.parametrize("sentinels", [SENTINELS, PIECES])
def test_source_and_target_told_by_sentinels_are_the_text_together(
    sentinels: list[str], length: int, most: int, tokenizer: Any
) -> None:
    """Each span stands in the target behind the sentinel that stands for it in the source; one more ends the target,
    also where there are fewer sentinels than spans.
    """
    made = _with_sentinels(tokenizer, sentinels)
    marks = made.convert_tokens_to_ids(sentinels)
    special = {*made.all_special_ids, *marks}
    divide, generator = noise_of(made), torch.Generator().manual_seed(1)
    for block in _blocks(made, length=length):
        source, target = divide(block, generator)
        kept, met = _pieces(source, marks)
        (before, *spans, after), said = _pieces(target, marks)
        assert met == said[:-1] == marks[: len(met)]
        assert len(met) == len(set(met)) > 0
        assert before == []
        assert after == ([made.eos_token_id] if made.eos_token_id is not None else [])
        assert all(span and not special & set(span) for span in spans)
        assert [*kept[0], *(t for s, k in zip(spans, kept[1:], strict=True) for t in (*s, *k))] == block
        # 15 % of 37 ordinary tokens, or of 197, unless sentinels run out
        assert sum(map(len, spans)) <= most


@pytest.mark.parametrize("sentinels", [SENTINELS, PIECES])
def test_a_sentinel_in_a_text_is_never_taken_out(sentinels: list[str], tokenizer: Any) -> None:
    """It has no word to tell of, and would stand for two spans; neither inside a text nor at its end."""
    made = _with_sentinels(tokenizer, sentinels)
    own = made.convert_tokens_to_ids(sentinels[4])
    for seed in range(20):
        for text in ([7, own, 8, own, 9], [7, own, 8, own]):
            source, _ = noise_of(made)(text, torch.Generator().manual_seed(seed))
            assert source.count(own) == 2


def test_a_mask_stands_for_each_span_and_the_target_is_the_whole_text(tokenizer: Any) -> None:
    """Three of ten ordinary tokens are gone, by threes on average, and no special one."""
    divide, generator = noise_of(tokenizer), torch.Generator().manual_seed(1)
    for block in _blocks(tokenizer):
        source, target = divide(block, generator)
        kept, met = _pieces(source, [tokenizer.mask_token_id])
        assert target == block
        # four spans, of which the token between two texts may part one
        assert len(met) in (4, 5)
        assert len(block) - sum(map(len, kept)) == round(0.3 * 37)
        assert source.count(tokenizer.sep_token_id) == 2
        assert source[0] == tokenizer.cls_token_id


@pytest.mark.parametrize("text", [[2, 3], [2, 7, 3], [2, 7, 8, 3]])
def test_texts_of_hardly_a_token_are_divided_too(text: list[int], tokenizer: Any) -> None:
    """Nothing to take out is no crash, and the target is never empty."""
    for made in (tokenizer, _with_sentinels(tokenizer)):
        source, target = noise_of(made)(text, torch.Generator().manual_seed(0))
        assert source
        assert target


def test_without_sentinels_or_a_mask_nothing_is_taken_out(tokenizer: Any) -> None:
    """And pairs are asked for."""
    bare = copy.deepcopy(tokenizer)
    bare.mask_token = None
    with pytest.raises(UserError, match=r"sentinels.*\n.*--text-column.*--text-target"):
        noise_of(bare, options="--text-")
