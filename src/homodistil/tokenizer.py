"""The tokenizer that a folder's text is read by, of a run and of an evaluation alike, small letters included."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from homodistil.errors import UserError
from homodistil.loading import read_json


def tokenizer_of(folder: Path | str, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; it pads with what ends a text if it has no padding.

    Where sentence-transformers makes small letters of a text before its tokenizer reads it, ours reads small letters.

    Args:
        folder: where the transformer lies, or its name on the hub.
        trust: run code that comes with it.

    Raises:
        UserError: it must read small letters, and cannot be made to, or what says so is torn.
        OSError, ValueError, KeyError, ImportError: of transformers, which cannot open it.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _lowering(tokenizer) if lowers_case(Path(folder)) else tokenizer


def lowers_case(folder: Path) -> bool:
    """Whether sentence-transformers reads small letters by the transformer in a folder, whatever its tokenizer does."""
    # sentence_bert_config.json, or what older versions called it after the model
    return any(bool(read_json(file).get("do_lower_case")) for file in folder.glob("sentence_*_config.json"))


def _lowering(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that reads texts in small letters, before all else that it does to them; also once it is saved."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(
            f"Cannot let this {type(tokenizer).__name__} read small letters, as its sentence encoder says.",
            "A tokenizer must be one of the tokenizers library, to which a step can be added.",
            "Save a tokenizer.json into the model's folder.",
        )
    if backend.normalizer is not None and "A" not in backend.normalizer.normalize_str("A"):
        return tokenizer
    steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else ())]
    backend.normalizer = normalizers.Sequence(steps)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        # a class such as BERT's makes its own steps whatever its file says; this one reads them
        made: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            folder, model_input_names=tokenizer.model_input_names
        )
    return made


def check_vocabulary(source: str, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Refuse a tokenizer that is not the model's own, of which the embeddings would have no row for some token.

    Raises:
        UserError: it knows more tokens than the embeddings' `size`, or none but special ones.
    """
    # a folder without tokenizer files loads as a tokenizer that knows its special tokens and nothing else
    if not len(tokenizer.all_special_ids) < len(tokenizer) <= size:
        raise UserError(
            f"Cannot use {source}: its tokenizer has {len(tokenizer)} tokens, its embeddings {size}.",
            "The tokenizer must be the model's own, with a vocabulary that its embeddings hold.",
            "Save the tokenizer that the model was trained with into its folder.",
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int], list[int]]:
    """What a tokenizer puts before and after a text, found by letting it do so, and what stands between two texts.

    Between two texts of a block stands what ends a text, and the end-of-text token where that is nothing.

    Raises:
        UserError: it makes nothing of any of its own tokens.
    """
    special = set(tokenizer.all_special_ids)
    own = (tokenizer.decode([token]) for token in range(len(tokenizer)) if token not in special)
    # an alphabet of its own, as of proteins, may have no "a"
    for text in itertools.chain(["a"], own):
        plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        wrapped: list[int] = tokenizer(text)["input_ids"]
        at = next((i for i in range(len(wrapped)) if wrapped[i : i + len(plain)] == plain), None)
        if plain and at is not None:
            after = wrapped[at + len(plain) :]
            eos = tokenizer.eos_token_id
            return wrapped[:at], after, after or ([eos] if eos is not None else [])
    raise UserError(
        f"Cannot read text with this {type(tokenizer).__name__}: it makes no token of any text.",
        "A tokenizer must make the same tokens of a text with special tokens around it as without.",
        "Save the tokenizer that the model was trained with into the model's folder.",
    )
