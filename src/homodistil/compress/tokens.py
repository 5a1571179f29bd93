"""A tokenizer's file (`tokenizer.json`) with fewer tokens, by algorithm.

A text all of whose tokens stay is split as before, because

- WordLevel looks words up.
- WordPiece takes the longest token that fits. Fewer tokens leave the longest one the longest. A word that it could not
  read might become readable once a longer token no longer leads astray: the tokens that it tried stay too.
- BPE merges the first pair in the order of its merges. Fewer of them in the same order leave the first one the first,
  if all merges on the way to a token stay.
- Unigram takes the pieces with the best sum of scores. Fewer pieces leave the best sum the best; what an unknown
  character costs hangs on the lowest score, so that the piece with the lowest one stays.

Single characters stay, and single bytes, so that other text can still be read; sentinels too, which stand for spans of
a text and in no text, and are pieces like others in the vocabulary of mT5.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
"""A `tokenizer.json`, read."""

_APART = re.compile(r"<0x[0-9A-F]{2}>|▁?<extra_id_\d+>")
"""Bytes and sentinels, as they are spelt."""


def model_tokens(spec: Spec) -> dict[str, int]:
    """The ids of the tokens that the algorithm itself knows; added tokens that it does not know are left out."""
    vocab = spec["model"]["vocab"]
    return dict(vocab) if isinstance(vocab, dict) else {token: at for at, (token, _) in enumerate(vocab)}


def always(spec: Spec) -> set[str]:
    """The tokens that stay whatever the text: those with a role, sentinels, single characters and bytes."""
    model = spec["model"]
    kept = {added["content"] for added in spec["added_tokens"]} | set(_named(spec["post_processor"]))
    if model["type"] == "Unigram":
        kept |= {model["vocab"][model["unk_id"]][0]} if model["unk_id"] is not None else set()
        kept.add(min(model["vocab"], key=lambda piece: piece[1])[0])
    elif model["unk_token"] is not None:
        kept.add(model["unk_token"])
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return kept | {t for t in model_tokens(spec) if len(_bare(t, prefix, suffix)) == 1 or _APART.fullmatch(t)}


def needed(spec: Spec, tokens: Iterable[str], unread: Iterable[str] = ()) -> set[str]:
    """The tokens without which these would not be reached.

    Args:
        spec: the whole tokenizer.
        tokens: those that a corpus uses.
        unread: words that it could not read.
    """
    if spec["model"]["type"] == "BPE":
        return set().union(*_steps(spec["model"], tokens))
    if spec["model"]["type"] == "WordPiece":
        return set().union(*(_tried(spec["model"], word) for word in unread))
    return set()


def rewritten(spec: Spec, kept: Sequence[str]) -> Spec:
    """The same tokenizer with the tokens `kept` alone, whose places are their ids."""
    made = copy.deepcopy(spec)
    model, ids = made["model"], {token: at for at, token in enumerate(kept)}
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            model["unk_id"] = ids[model["vocab"][model["unk_id"]][0]]
        model["vocab"] = [piece for piece in model["vocab"] if piece[0] in ids]
    else:
        model["vocab"] = {token: ids[token] for token in model["vocab"] if token in ids}
    if model["type"] == "BPE":
        prefix = model["continuing_subword_prefix"] or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if {left, right, _merged(left, right, prefix)} <= model["vocab"].keys()
        ]
    for added in made["added_tokens"]:
        added["id"] = ids[added["content"]]
    made["added_tokens"].sort(key=lambda added: added["id"])
    if made["padding"] is not None:
        made["padding"]["pad_id"] = ids.get(made["padding"]["pad_token"], made["padding"]["pad_id"])
    _renumber(made["post_processor"], ids)
    return made


def _bare(token: str, prefix: str, suffix: str) -> str:
    """A token without what says that it stands inside of a word, or at its end."""
    return token.removeprefix(prefix).removesuffix(suffix)


def _merged(left: str, right: str, prefix: str) -> str:
    return left + right[len(prefix) :]


def _steps(model: Mapping[str, Any], tokens: Iterable[str]) -> Iterator[set[str]]:
    """For each token, what BPE merges on the way to it, the characters that it begins with included."""
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    prefix, suffix = model["continuing_subword_prefix"] or "", model["end_of_word_suffix"] or ""
    for token in tokens:
        characters = list(_bare(token, prefix, suffix))
        inside = bool(prefix) and token.startswith(prefix)
        parts = [(prefix if at or inside else "") + character for at, character in enumerate(characters)]
        if parts and suffix and token.endswith(suffix):
            parts[-1] += suffix
        met = set(parts)
        while len(parts) > 1:
            # the first merge in order, and of its places the leftmost
            rank, at = min((ranks.get(pair, math.inf), at) for at, pair in enumerate(itertools.pairwise(parts)))
            if rank == math.inf:
                break
            parts[at : at + 2] = [_merged(parts[at], parts[at + 1], prefix)]
            met.add(parts[at])
        yield met & model["vocab"].keys()


def _tried(model: Mapping[str, Any], word: str) -> Iterator[str]:
    """The tokens that WordPiece finds in a word before it finds none."""
    start = 0
    while start < len(word) <= model["max_input_chars_per_word"]:
        prefix = model["continuing_subword_prefix"] if start else ""
        end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in model["vocab"]), None)
        if end is None:
            return
        yield prefix + word[start:end]
        start = end


def _named(processor: Mapping[str, Any] | None) -> Iterator[str]:
    """The tokens that are put around a text."""
    for part in _parts(processor):
        if part["type"] == "TemplateProcessing":
            yield from (token for special in part["special_tokens"].values() for token in special["tokens"])
        elif "cls" in part:
            yield from (part["sep"][0], part["cls"][0])


def _renumber(processor: Spec | None, ids: Mapping[str, int]) -> None:
    for part in _parts(processor):
        if part["type"] == "TemplateProcessing":
            for special in part["special_tokens"].values():
                named = zip(special["tokens"], special["ids"], strict=True)
                special["ids"] = [ids.get(token, number) for token, number in named]
        elif "cls" in part:
            part |= {key: [token, ids.get(token, number)] for key in ("sep", "cls") for token, number in [part[key]]}


def _parts(processor: Any) -> Iterator[Spec]:
    """A post-processor, or each of a sequence of them."""
    if processor is not None:
        yield from processor["processors"] if processor["type"] == "Sequence" else [processor]
