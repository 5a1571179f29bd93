"""From texts to sequences of tokens: joined and cut into blocks, kept apart after a prompt, or in pairs."""

from __future__ import annotations

import copy
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from homodistil.data.pairs import PAIR
from homodistil.data.sources import Tokens
from homodistil.errors import UserError
from homodistil.packing import Joiner
from homodistil.tokenizer import special_tokens


class Cutter:
    """Turns texts into sequences of tokens.

    Of texts that are packed they are what `Blocks` joins: the texts' own tokens and what ends a text. Texts that are
    kept apart are read after one of the prompts, which is chosen by the text itself and not by its place, so that a
    stream and a file are read alike.

    Args:
        tokenizer: the teacher's.
        column: of the texts.
        length: tokens of a block at most, special ones included, and the most that a text kept apart has.
        packed: whether texts are joined.
        whole: whether texts that are joined are cut only where they do not fit into a block.
        target: the column of what is said to each text, for pairs.
        prompts: what texts are read after; none is the empty one.

    Raises:
        UserError: the teacher reads fewer tokens, or special ones and a prompt leave no room for text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        column: str,
        length: int,
        packed: bool,
        target: str | None = None,
        prompts: Sequence[str] = (),
        *,
        whole: bool = False,
    ) -> None:
        # one of its own: what it is asked to leave out of long texts stays in a fast tokenizer, and would be saved
        self.tokenizer, self.column, self.packed, self.target = copy.deepcopy(tokenizer), column, packed, target
        self.prompts, self.whole = tuple(prompts) or ("",), packed and whole
        longest = min(tokenizer.model_max_length, 1 << 30)
        if length > longest:
            raise UserError(
                f"Cannot make sequences of {length} tokens.",
                f"The teacher reads at most {longest}.",
                f"Use --text.length {longest} or less.",
            )
        self.length = length
        self.prefix, self.suffix, self.ends = special_tokens(tokenizer)
        self.openings = [self._opening(prompt) for prompt in self.prompts]
        before = max(map(len, self.openings)) + len(self.suffix)
        if length <= before:
            raise UserError(
                f"Cannot make sequences of {length} tokens.",
                f"{before} of them are special tokens{' and a prompt' * any(self.prompts)}, and there must be room for "
                "text.",
                f"Use --text.length {max(128, 2 * before)}, or another length above that.",
            )

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Cut a batch of rows, as `datasets.map` gives them, into `input_ids`.

        Where texts are kept apart, `opening` says how many tokens each opens with: special ones, and its prompt.
        """
        if self.target is not None:
            return self._paired(rows[self.column], rows[self.target])
        texts = [t for t in rows[self.column] if _is_text(t)]
        if not texts:
            return {"input_ids": []} if self.packed else {"input_ids": [], "opening": []}
        if not self.packed:
            return self._after_prompts(texts)
        # longer than the model reads is what packing is for; verbose=False keeps the tokenizer from warning of it
        plain = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return {"input_ids": [ids for ids in plain if ids]}

    def _opening(self, prompt: str) -> Tokens:
        """What a text opens with after a prompt, up to where the text itself may change a token."""
        ids: list[int] = self.tokenizer(prompt)["input_ids"]
        return ids[: len(ids) - len(self.suffix)]

    def _prompt(self, text: str) -> int:
        return zlib.crc32(text.encode()) % len(self.prompts)

    def _after_prompts(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        chosen = [self._prompt(text) for text in texts]
        read = [self.prompts[k] + text for k, text in zip(chosen, texts, strict=True)]
        ids = self.tokenizer(read, truncation=True, max_length=self.length)["input_ids"]
        openings = [
            max(len(self.prefix), _shared(self.openings[k], sequence)) for k, sequence in zip(chosen, ids, strict=True)
        ]
        return {"input_ids": ids, "opening": openings}

    def _paired(self, sources: Sequence[Any], targets: Sequence[Any]) -> dict[str, list[Any]]:
        """A source and its target as one sequence, with `PAIR` between the two.

        A pair without either, or one side of which makes no token, is left out: nothing would be read or said.
        """
        whole = [(s, t) for s, t in zip(sources, targets, strict=True) if _is_text(s) and _is_text(t)]
        if not whole:
            return {"input_ids": [], "opening": []}
        options = {"truncation": True, "max_length": self.length}
        read = self.tokenizer([self.prompts[self._prompt(s)] + s for s, _ in whole], **options)["input_ids"]
        said = self.tokenizer(text_target=[t for _, t in whole], **options)["input_ids"]
        made = [[*r, PAIR, *s] for r, s in zip(read, said, strict=True) if r and s]
        # nothing is cut out of a pair
        return {"input_ids": made, "opening": [0] * len(made)}

    def stream(self, texts: Iterable[str]) -> Iterator[tuple[Tokens, int]]:
        """Cut texts as they come, some hundred at a time: sequences, and how many tokens each opens with."""
        iterator, blocks = iter(texts), Blocks(self)
        while chunk := list(itertools.islice(iterator, 256)):
            made = self({self.column: chunk})
            if self.packed:
                made = blocks(made)
            yield from zip(made["input_ids"], made.get("opening", itertools.repeat(len(self.prefix))), strict=False)

    def fingerprint(self, data: Dataset) -> str:
        """A name for the result, so that the same text is tokenised once and found in the cache afterwards."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        identity = backend.to_str() if backend is not None else (repr(self.tokenizer), self.tokenizer.get_vocab())
        # two tokenizers may have one backend and end texts by different tokens, or cut them at different ends
        own = (self.ends, self.tokenizer.truncation_side, getattr(self.tokenizer, "split_special_tokens", None))
        parts = (data._fingerprint, identity, own, self.column, self.length, self.packed, self.whole, self.target)
        return hashlib.sha256(repr((*parts, self.prompts)).encode()).hexdigest()[:32]


class Blocks:
    """Joins tokenised texts, some at a time, into blocks: special tokens at both ends, texts in between.

    What is not a block yet waits for the next texts, so that nothing is lost but the rest of the last ones, and the
    blocks are the same however many texts come at a time.
    """

    def __init__(self, cutter: Cutter) -> None:
        self.prefix, self.suffix = cutter.prefix, cutter.suffix
        room = cutter.length - len(self.prefix) - len(self.suffix)
        self.join = Joiner(room, cutter.ends, whole=cutter.whole)

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The blocks that are done now, under `input_ids`, as the texts are."""
        return {"input_ids": [[*self.prefix, *block, *self.suffix] for block in self.join(rows["input_ids"])]}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shared(opening: Tokens, sequence: Tokens) -> int:
    """How many tokens both begin with."""
    unlike = (k for k, (a, b) in enumerate(zip(opening, sequence, strict=False)) if a != b)
    return next(unlike, min(len(opening), len(sequence)))
