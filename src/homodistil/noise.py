"""What an encoder-decoder is asked for without labels: noise takes spans out of a text, and it says what is missing.

A model that knows sentinels says what stood at each (Raffel et al. 2020, section 3.1.4: 15 % of the tokens, spans of
3); one that knows a mask says the whole text (Lewis et al. 2020, section 2.2: 30 % of the tokens, spans of 3, each of
them one mask). Runs and evaluations ask alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil.errors import UserError

SPAN = 3
"""Tokens of a span, on average."""
SHARES = {"sentinels": 0.15, "mask": 0.3}
"""The share of the tokens that noise takes out."""

Divide = Callable[[Sequence[int], torch.Generator], tuple[list[int], list[int]]]
"""Makes a source and a target of a sequence; what is drawn comes from the generator."""


def first_token(source: str, model: PreTrainedModel) -> int:
    """The token that a decoder reads before the first of its target.

    Raises:
        UserError: its configuration does not say.
    """
    said = (model.config, getattr(model, "generation_config", None))
    start = next((i for c in said if (i := getattr(c, "decoder_start_token_id", None)) is not None), None)
    if start is None:
        raise UserError(
            f"Cannot use {source}: its configuration has no decoder_start_token_id.",
            "It must say which token the decoder reads before the first one of its target.",
            "Add it to config.json; for T5 it is that of the padding, 0.",
        )
    return int(start)


def noise_of(tokenizer: PreTrainedTokenizerBase, *, options: str = "--text.") -> Divide:
    """The noise that a model with this tokenizer was trained on: spans told by sentinels, or by a mask.

    Args:
        tokenizer: the model's.
        options: what the names of the columns of pairs begin with on the command line.

    Raises:
        UserError: the tokenizer has neither.
    """
    vocabulary = tokenizer.get_vocab()
    # mT5's are no tokens apart, but pieces of its vocabulary, spelt as words are
    sentinels = _numbered("<extra_id_{}>", vocabulary) or _numbered("▁<extra_id_{}>", vocabulary)
    special = {*tokenizer.all_special_ids, *sentinels}
    if len(sentinels) > 1:
        ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        return lambda sequence, generator: _told_by_sentinels(sequence, special, sentinels, ends, generator)
    if tokenizer.mask_token_id is not None:
        return lambda sequence, generator: _told_by_mask(sequence, special, tokenizer.mask_token_id, generator)
    raise UserError(
        "Cannot take spans out of text for this model.",
        "Its tokenizer must have sentinels (<extra_id_0>, <extra_id_1>, ...) or a mask token, and has neither.",
        f"Give pairs: data with a column of sources ({options}column) and one of targets ({options}target).",
    )


def _numbered(name: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The ids of the tokens of a name that are numbered from 0 on."""
    names = itertools.takewhile(vocabulary.__contains__, map(name.format, itertools.count()))
    return [vocabulary[name] for name in names]


def _told_by_sentinels(
    sequence: Sequence[int], special: set[int], sentinels: Sequence[int], ends: list[int], generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Each span becomes a sentinel; the target is each sentinel with its span, then one more sentinel and the end."""
    source: list[int] = []
    target: list[int] = []
    count = 0
    for out, span in _spans(sequence, special, SHARES["sentinels"], generator):
        # the last sentinel ends the target
        if out and count < len(sentinels) - 1:
            source.append(sentinels[count])
            target += [sentinels[count], *span]
            count += 1
        else:
            source += span
    return source, [*target, sentinels[count], *ends]


def _told_by_mask(
    sequence: Sequence[int], special: set[int], mask: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Each span becomes one mask; the target is the whole sequence."""
    source: list[int] = []
    for out, span in _spans(sequence, special, SHARES["mask"], generator):
        source += [mask] if out else span
    return source, list(sequence)


def _spans(
    sequence: Sequence[int], special: set[int], share: float, generator: torch.Generator
) -> list[tuple[bool, list[int]]]:
    """A sequence in pieces, and which of them the noise takes out. Special tokens always stay, and part a span."""
    ordinary = [i for i, token in enumerate(sequence) if token not in special]
    noisy = min(max(1, round(share * len(ordinary))), max(1, len(ordinary) - 1))
    count = max(1, min(round(noisy / SPAN), len(ordinary) - noisy))
    lengths = zip(_parts(len(ordinary) - noisy, count, generator), _parts(noisy, count, generator), strict=True)
    outs = [out for kept, gone in lengths for out in (False,) * kept + (True,) * gone]
    taken = {place for place, out in zip(ordinary, outs, strict=False) if out}
    pieces = itertools.groupby(enumerate(sequence), key=lambda placed: placed[0] in taken)
    return [(out, [token for _, token in piece]) for out, piece in pieces]


def _parts(total: int, count: int, generator: torch.Generator) -> list[int]:
    """`total` as a sum of `count` numbers above zero, all such sums alike likely; of one number if there is but one."""
    if count == 1:
        return [total]
    at = torch.randperm(total - 1, generator=generator)[: count - 1].sort().values + 1
    return [b - a for a, b in itertools.pairwise([0, *at.tolist(), total])]
