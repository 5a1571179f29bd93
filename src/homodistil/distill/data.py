"""From text to sequences of tokens: tokenised once, packed or kept apart, some held out."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from homodistil.distill.pairs import PAIR
from homodistil.distill.sources import Cropper, Shuffled, Source, Stream, Tokens
from homodistil.errors import UserError
from homodistil.text import open_text

HELDOUT_MOST = 256
"""Sequences that are held out at most: enough for steady losses, and measured in seconds."""
STREAM_HELDOUT = 64
"""Sequences that are held out of a stream, from its start, because its length is not known."""


@dataclass(frozen=True)
class Corpus:
    """Text or images, ready to train on.

    Attributes:
        train: the sequences to learn from.
        heldout: those that are never learnt from, tokens by their length.
        mean_tokens: tokens in a sequence, on average.
    """

    train: Source
    heldout: Sequence[Any]
    mean_tokens: float


def load_corpus(
    data: str | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str = "text",
    target: str | None = None,
    length: int = 128,
    packed: bool = True,
    heldout: float = 0.02,
    stream: bool = False,
    workers: int = 0,
    crops: float = 0.0,
    batch: int = 32,
    seed: int = 0,
) -> Corpus:
    """Open, tokenise and split the text.

    Args:
        data: a name for `text.open_text`, or the texts themselves, which are a stream.
        tokenizer: the teacher's.
        column: the text column.
        target: the column of what is said to each text, which makes pairs (see `pairs`); they are not packed.
        length: tokens in a sequence at most, special ones included; of a pair in each of the two.
        packed: join texts into full blocks; otherwise one text a sequence, cut at `length`.
        heldout: the share that is held out.
        stream: never hold the text as a whole.
        workers: processes that tokenise; 0 chooses.
        crops: of texts that are kept apart, the share that is cut down to a random piece, anew each epoch.
        batch: sequences that will be drawn together.
        seed: of the split and the order.

    Raises:
        UserError: the text cannot be found or read, or does not fill two sequences.
    """
    cutter = Cutter(tokenizer, column, length, packed, target)
    cropper = Cropper(0.0 if packed else crops, cutter.prefix, cutter.suffix, seed)
    if not isinstance(data, str):
        return _streamed(data, cutter, cropper, data)
    opened = open_text(data, column, target=target, stream=stream)
    if isinstance(opened, IterableDataset) and target is not None:
        raise UserError(
            f"Cannot read pairs from a stream ({data}).",
            "Pairs of a text and what is said to it are read as a whole.",
            "Leave --text.stream out, and give a file or a saved dataset.",
        )
    if isinstance(opened, IterableDataset):
        return _streamed(data, cutter, cropper, _Column(opened, column))
    tokenised = tokenise(opened, cutter, workers)
    _refuse_short(data, len(tokenised), length, packed)
    order = torch.randperm(len(tokenised), generator=torch.Generator().manual_seed(seed)).tolist()
    count = heldout_count(heldout, len(order))
    held = sorted((tokenised[i]["input_ids"] for i in sorted(order[:count])), key=len)
    lengths = pc.list_value_length(tokenised.data.column("input_ids")).to_numpy()
    train = np.sort(np.asarray(order[count:]))
    if packed:
        return Corpus(Shuffled(tokenised.select(train), batch, seed), held, float(length))
    source = Shuffled(tokenised.select(train), batch, seed, lengths[train], cropper)
    return Corpus(source, held, float(cropper.pieces(lengths[train], 0)[1].mean()))


class Cutter:
    """Turns texts into sequences of tokens.

    Blocks are full: special tokens at both ends, the texts in between joined by what ends a text. What is left
    over at the end of the texts is dropped.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        column: str,
        length: int,
        packed: bool,
        target: str | None = None,
    ) -> None:
        self.tokenizer, self.column, self.packed, self.target = tokenizer, column, packed, target
        longest = min(tokenizer.model_max_length, 1 << 30)
        if length > longest:
            raise UserError(
                f"Cannot make sequences of {length} tokens.",
                f"The teacher reads at most {longest}.",
                f"Use --text.length {longest} or less.",
            )
        self.length = length
        # where the tokenizer puts its special tokens, found by letting it do so
        plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        wrapped: list[int] = tokenizer("a")["input_ids"]
        at = next((i for i in range(len(wrapped)) if wrapped[i : i + len(plain)] == plain), 0)
        self.prefix, self.suffix = wrapped[:at], wrapped[at + len(plain) :]
        # what stands between two texts of a block, also where the tokenizer itself ends a text by nothing
        eos = tokenizer.eos_token_id
        self.ends = self.suffix or ([eos] if eos is not None else [])
        if length <= len(self.prefix) + len(self.suffix):
            raise UserError(
                f"Cannot make sequences of {length} tokens.",
                f"{len(wrapped) - len(plain)} of them are special tokens, and there must be room for text.",
                "Use --text.length 128, or another length above that.",
            )

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Cut a batch of rows, as `datasets.map` gives them."""
        if self.target is not None:
            return self._paired(rows[self.column], rows[self.target])
        texts = [t for t in rows[self.column] if _is_text(t)]
        if not texts:
            return {"input_ids": []}
        if not self.packed:
            return {"input_ids": self.tokenizer(texts, truncation=True, max_length=self.length)["input_ids"]}
        # longer than the model reads is what packing is for; verbose=False keeps the tokenizer from warning of it
        plain = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        joined = list(itertools.chain.from_iterable(ids + self.ends for ids in plain))
        room = self.length - len(self.prefix) - len(self.suffix)
        blocks = [joined[i : i + room] for i in range(0, len(joined) - room + 1, room)]
        return {"input_ids": [self.prefix + block + self.suffix for block in blocks]}

    def _paired(self, sources: Sequence[Any], targets: Sequence[Any]) -> dict[str, list[list[int]]]:
        """A source and its target as one sequence, with `PAIR` between the two; without either it is left out."""
        whole = [(s, t) for s, t in zip(sources, targets, strict=True) if _is_text(s) and _is_text(t)]
        if not whole:
            return {"input_ids": []}
        options = {"truncation": True, "max_length": self.length}
        read = self.tokenizer([s for s, _ in whole], **options)["input_ids"]
        said = self.tokenizer(text_target=[t for _, t in whole], **options)["input_ids"]
        return {"input_ids": [[*r, PAIR, *s] for r, s in zip(read, said, strict=True)]}

    def stream(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Cut texts as they come, some hundred at a time."""
        iterator = iter(texts)
        while chunk := list(itertools.islice(iterator, 256)):
            yield from self({self.column: chunk})["input_ids"]

    def fingerprint(self, data: Dataset) -> str:
        """A name for the result, so that the same text is tokenised once and found in the cache afterwards."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        identity = backend.to_str() if backend is not None else repr(self.tokenizer)
        parts = (data._fingerprint, identity, self.column, self.length, self.packed, self.target)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


class _Column:
    """The texts of a dataset that is read on the fly."""

    def __init__(self, rows: IterableDataset, column: str) -> None:
        self.rows, self.column = rows, column

    def __iter__(self) -> Iterator[str]:
        return (row[self.column] for row in self.rows)


def _streamed(name: object, cutter: Cutter, cropper: Cropper, texts: Iterable[str]) -> Corpus:
    """A corpus whose first sequences are held out; an iterator can be read once, anything else again and again."""
    first = cutter.stream(texts)
    ahead: list[Tokens] = list(itertools.islice(first, STREAM_HELDOUT + 1))
    _refuse_short(name, len(ahead), cutter.length, cutter.packed)
    held = ahead[: min(STREAM_HELDOUT, len(ahead) - 1)]
    if iter(texts) is texts:
        passes = iter([itertools.chain(ahead[len(held) :], first)])
        source = Stream(lambda: next(passes, iter(())), cropper)
    else:
        source = Stream(lambda: itertools.islice(cutter.stream(texts), len(held), None), cropper)
    return Corpus(source, sorted(held, key=len), _mean_length(held))


def tokenise(opened: Dataset, cutter: Cutter, workers: int) -> Dataset:
    """Cut a whole dataset, in parallel, with the result cached under a fingerprint of text, tokenizer and options."""
    processes = workers or min(os.cpu_count() or 1, 1 + len(opened) // 20_000)
    if processes > 1:
        # each process is one thread: the tokenizers library's own threads do not live through a fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return opened.map(
        cutter,
        batched=True,
        batch_size=1000,
        num_proc=processes if processes > 1 else None,
        remove_columns=opened.column_names,
        new_fingerprint=cutter.fingerprint(opened),
    )


def heldout_count(share: float, count: int) -> int:
    """How many of `count` sequences are held out."""
    return min(HELDOUT_MOST, max(1, round(share * count)), count - 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _mean_length(sequences: Iterable[Tokens]) -> float:
    lengths = [len(s) for s in sequences]
    return sum(lengths) / len(lengths)


def _refuse_short(data: object, count: int, length: int, packed: bool) -> None:
    if count >= 2:
        return
    what = f"block{'s' if packed else ''} of {length} tokens" if packed else "texts"
    raise UserError(
        f"Cannot train on {data if isinstance(data, str) else 'this stream'}: it fills {count} {what}.",
        "There must be at least two, one to learn from and one to hold out.",
        "Give more text" + (", or shorten the blocks with --text.length." if packed else "."),
    )
