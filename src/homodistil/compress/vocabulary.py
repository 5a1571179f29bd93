"""The vocabulary of a corpus: the tokens that it uses are kept, in tokenizer, embeddings and language-model heads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil.axes.layout import Layout
from homodistil.compress.cut import cut
from homodistil.compress.tokens import Spec, always, model_tokens, needed, rewritten
from homodistil.compress.usage import usage_of
from homodistil.errors import UserError
from homodistil.loading import unused_positions

AXIS = "vocab"
"""What the families call the axis."""
_TOKENS = ("suppress_tokens", "begin_suppress_tokens")
"""What a configuration says of single tokens that have no role: those that are gone are left out."""
_WORDS = ("bad_words_ids", "force_words_ids", "sequence_bias")
"""What it says of sequences of tokens: those with one that is gone, which cannot be said any more, are left out."""


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens are left.

    Attributes:
        rows: for each new id, the id that it had.
        before: how many there were.
    """

    rows: tuple[int, ...]
    before: int

    def as_json(self) -> str:
        """As it is kept in a run's folder."""
        return json.dumps({"teacher": self.before, "kept": self.rows})

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """What `as_json` wrote."""
        read = json.loads(text)
        return cls(tuple(read["kept"]), read["teacher"])


def vocabulary_of(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, layout: Layout
) -> tuple[Vocabulary, PreTrainedTokenizerBase]:
    """The tokens that texts use, those without which they would be split otherwise, and those that have a role.

    Args:
        texts: are read twice; what is no text is passed over.
        tokenizer: a fast one.
        model: its configuration names tokens with a role; it is not changed, and may be on the meta device.
        layout: of the model.

    Returns:
        What is left, and a tokenizer that knows nothing else and splits each of the texts as before.

    Raises:
        UserError: the tokenizer is no fast one, or draws how it splits, or cannot be read again as it was; there is no
            text; the model's table does not say which axis is the vocabulary.
    """
    if AXIS not in layout.fixed:
        raise UserError(
            f"Cannot trim the vocabulary of a {type(model).__name__}.",
            f"The table of its family must name the axis of its embeddings' rows {AXIS!r}.",
            "Rename the axis in the family's file (docs/adding-a-family.md).",
        )
    spec = _spec(tokenizer)
    used = usage_of(texts, spec)
    if not used.ids:
        raise UserError(
            "Cannot trim a vocabulary to this text: it is empty.",
            "The text says which tokens are used; all others are dropped.",
            "Give the text that the model will read.",
        )
    own, ids = model_tokens(spec), tokenizer.get_vocab()
    strings = {i: token for token, i in ids.items()}
    tokens = (always(spec) & ids.keys()) | {strings[i] for i in used.ids}
    tokens |= needed(spec, tokens, used.unread)
    named = _roles(model, layout)
    tokens |= {strings[i] for i in named if i in strings}
    # the library numbers added tokens after those of the algorithm, whatever their file says
    ordered = sorted(tokens, key=lambda token: (token not in own, ids[token]))
    rows = [*(ids[token] for token in ordered), *sorted(named - strings.keys())]
    vocabulary = Vocabulary(tuple(rows), layout.fixed[AXIS])
    made = with_vocabulary(tokenizer, vocabulary)
    same = usage_of(texts, _spec(made), rows=rows)
    if same.digest != used.digest:
        raise _misread(tokenizer)
    return vocabulary, made


def with_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
    """A tokenizer with these tokens alone, made as its users will make it: out of its files.

    Raises:
        UserError: the tokenizer is no fast one, or its class does not read its own files.
    """
    spec = _spec(tokenizer)
    strings = {i: token for token, i in tokenizer.get_vocab().items()}
    kept = [strings[row] for row in vocabulary.rows if row in strings]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        Path(folder, "tokenizer.json").write_text(json.dumps(rewritten(spec, kept)))
        made: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    if made.get_vocab() != {token: at for at, token in enumerate(kept)}:
        raise _misread(tokenizer)
    return made


def narrow(model: PreTrainedModel, layout: Layout, vocabulary: Vocabulary) -> Layout:
    """Take every token that is not left out of a model, in place: embeddings, heads, configuration.

    Returns:
        The layout of what it is now.

    Raises:
        UserError: its configuration gives a role to a token that is gone, or its padding would get another number.
    """
    ids = {row: at for at, row in enumerate(vocabulary.rows)}
    if gone := _roles(model, layout) - ids.keys():
        raise UserError(
            f"Cannot trim the vocabulary of this {type(model).__name__}: its configuration names the token "
            f"{min(gone)}, which is not kept.",
            "A student keeps the tokens that its teacher does: those of the text, and those that have a role for the "
            "teacher.",
            "Put it into the text, take it out of the student's configuration, or keep the whole vocabulary.",
        )
    _refuse_moved_padding(vocabulary, model, layout)
    cut(model, layout, {AXIS: torch.tensor(vocabulary.rows)})
    if (bias := getattr(model, layout.family.logit_bias or "", None)) is not None:
        setattr(model, layout.family.logit_bias, bias[..., vocabulary.rows])
    for config in (model.config, getattr(model, "generation_config", None)):
        _renumber(config, ids)
    model.config.vocab_size = len(ids)
    for module in model.modules():
        if getattr(module, "vocab_size", None) == vocabulary.before:
            module.vocab_size = len(ids)
        padding = getattr(module, "padding_idx", None)
        rows_of_others = isinstance(module, nn.Embedding) and module.num_embeddings != len(ids)
        if isinstance(padding, int) and not rows_of_others:
            module.padding_idx = ids.get(padding)
    return Layout.of(model)


def _spec(tokenizer: PreTrainedTokenizerBase) -> Spec:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        spec: Spec = json.loads(backend.to_str()) if isinstance(backend, Tokenizer) else {}
    except Exception as error:  # parts that are written in Python raise the library's bare Exception
        raise _unknown(tokenizer, "has parts that are written in Python") from error
    if not spec:
        raise _unknown(tokenizer, "is written in Python")
    if spec["model"].get("dropout"):
        raise _unknown(tokenizer, "draws how it splits a text (BPE dropout)")
    return spec


def _unknown(tokenizer: PreTrainedTokenizerBase, what: str) -> UserError:
    return UserError(
        f"Cannot trim the vocabulary: the tokenizer, a {type(tokenizer).__name__}, {what}.",
        "It must be a fast tokenizer (of the tokenizers library) that always splits a text alike: WordPiece, BPE, "
        "Unigram or WordLevel.",
        "Use the model's fast tokenizer, or keep the whole vocabulary.",
    )


def _misread(tokenizer: PreTrainedTokenizerBase) -> UserError:
    return UserError(
        f"Cannot trim the vocabulary: with fewer tokens, this {type(tokenizer).__name__} reads the text otherwise.",
        "Each text must be split into the same tokens as before; this was checked on all of it.",
        "Keep the whole vocabulary.",
    )


def _refuse_moved_padding(vocabulary: Vocabulary, model: PreTrainedModel, layout: Layout) -> None:
    """Where positions are counted from the padding's id on, it must keep it."""
    padding = model.config.pad_token_id
    if padding is not None and unused_positions(model) and vocabulary.rows[padding] != padding:
        raise UserError(
            f"Cannot trim the vocabulary: the padding token, number {padding}, would get another number.",
            f"{layout.family.name} models count positions from the number of the padding token on.",
            "Keep the whole vocabulary.",
        )


def _roles(model: PreTrainedModel, layout: Layout) -> set[int]:
    """The rows that the configurations name, and those up to the padding where positions are counted from it on."""
    values = [
        value
        for config in (model.config, getattr(model, "generation_config", None))
        for value in _roles_of(config).values()
    ]
    named = {i for value in values for i in (value if isinstance(value, list) else [value])}
    if model.config.pad_token_id is not None and unused_positions(model):
        named |= set(range(model.config.pad_token_id))
    # a default of a configuration may lie beyond the embeddings: it names nothing
    return {i for i in named if 0 <= i < layout.fixed[AXIS]}


def _roles_of(config: Any) -> dict[str, int | list[int]]:
    """The tokens that a configuration gives a role, by their numbers."""
    said = config.to_dict() if config is not None else {}
    named = {k: v for k, v in said.items() if k.endswith(("_token_id", "_token_ids"))}
    return {k: v for k, v in named.items() if isinstance(v, int) or (v and all(isinstance(i, int) for i in v))}


def _renumber(config: Any, ids: Mapping[int, int]) -> None:
    """Let a configuration speak of tokens by their new numbers."""
    for key, value in _roles_of(config).items():
        setattr(config, key, ids.get(value, value) if isinstance(value, int) else _left(value, ids))
    for key in (*_TOKENS, *_WORDS):
        if said := getattr(config, key, None):
            made = _left(said, ids) if key in _TOKENS else _left_of_words(said, ids)
            # the library takes no empty list of words
            setattr(config, key, made or None)


def _left(tokens: Sequence[int], ids: Mapping[int, int]) -> list[int]:
    return [ids[i] for i in tokens if i in ids]


def _left_of_words(said: Any, ids: Mapping[int, int]) -> Any:
    """What is left of words: a word is a sequence of tokens, may have a bias, and may be several to choose from."""
    if isinstance(said, int):
        return ids.get(said)
    if not isinstance(said, list):
        return said
    made = [_left_of_words(part, ids) for part in said]
    if all(isinstance(part, list) for part in said):
        return [part for part in made if part] or None
    return None if None in made else made
