"""Text, ready to train on: tokenised once, in an order of its own, some of it held out."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from homodistil.data.collate import COMPARED
from homodistil.data.cutter import Blocks, Cutter
from homodistil.data.sources import Cropper, Pieces, Shuffled, Source, Stream, Tokens
from homodistil.errors import UserError
from homodistil.files import cache_explained
from homodistil.text import counted, dataset_of, each_text, open_text, strings

HELDOUT_MOST = 256
"""Sequences that are held out at most: enough for steady losses, and measured in seconds."""
STREAM_HELDOUT = 64
"""Sequences that are held out of a stream, from its start, because its length is not known."""
STREAM_AHEAD = 10_000
"""Sequences that are read at most to see whether a stream is so short that a share of them is fewer."""


@dataclass(frozen=True)
class Corpus:
    """Text or images, ready to train on.

    Attributes:
        train: the sequences to learn from.
        heldout: those that are never learnt from, tokens by their length.
        mean_tokens: tokens in a sequence, on average.
        once: whether what is learnt from ends, and cannot be read again.
        digest: what tells all of it apart; empty of a stream, which is not read whole.
        cut: of texts that are kept apart, the share that is as long as it may be, so that most of these go on.
    """

    train: Source
    heldout: Sequence[Any]
    mean_tokens: float
    once: bool = False
    digest: str = ""
    cut: float = 0.0

    @property
    def identity(self) -> str:
        """What tells other data apart before anything is learnt: all of it, and of a stream what it begins with."""
        return hashlib.sha256(repr((self.mean_tokens, list(self.heldout), self.digest)).encode()).hexdigest()[:16]


def load_corpus(
    data: str | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    column: str = "text",
    target: str | None = None,
    length: int = 128,
    packed: bool = True,
    whole: bool = False,
    heldout: float = 0.02,
    stream: bool = False,
    workers: int = 0,
    crops: float = 0.0,
    prompts: Sequence[str] = (),
    batch: int = 32,
    seed: int = 0,
) -> Corpus:
    """Open, tokenise and split the text.

    Args:
        data: a name for `text.open_text`, or the texts themselves: a list, an array or a column, which is read like a
            file, or any other iterable, which is a stream.
        tokenizer: the teacher's.
        column: the text column.
        target: the column of what is said to each text, which makes pairs (see `pairs`); they are not packed.
        length: tokens in a sequence at most, special ones included; of a pair in each of the two.
        packed: join texts into blocks; otherwise one text a sequence, cut at `length`.
        whole: cut texts that are joined only where they do not fit into a block, so that not all blocks are full.
        heldout: the share that is held out.
        stream: never hold the text as a whole.
        workers: processes that tokenise; 0 chooses.
        crops: of texts that are kept apart, the share that is cut down to a random piece, anew each epoch.
        prompts: one of them is put before each text that is kept apart, or source of a pair; a piece keeps it.
        batch: sequences that will be drawn together.
        seed: of the split and the order.

    Raises:
        UserError: the text cannot be found or read, or does not fill two sequences.
    """
    cutter = Cutter(tokenizer, column, length, packed, target, prompts, whole=whole)
    cropper = Cropper(0.0 if packed else crops, cutter.suffix, seed)
    if isinstance(data, str):
        opened = open_text(data, column, target=target, stream=stream)
    elif counted(data) and not stream:
        opened = dataset_of(data, column)
    else:
        return _streamed(data, cutter, cropper, functools.partial(strings, data), heldout, once=iter(data) is data)
    if isinstance(opened, IterableDataset) and target is not None:
        raise UserError(
            f"Cannot read pairs from a stream ({data}).",
            "Pairs of a text and what is said to it are read as a whole.",
            "Leave --text.stream out, and give a file or a saved dataset.",
        )
    if isinstance(opened, IterableDataset):
        return _streamed(data, cutter, cropper, functools.partial(each_text, opened, column, data), heldout)
    tokenised = tokenise(opened, cutter, workers)
    _refuse_short(data, len(tokenised), length, packed)
    order = torch.randperm(len(tokenised), generator=torch.Generator().manual_seed(seed)).tolist()
    count = heldout_count(heldout, len(order))
    held = sorted((tokenised[i]["input_ids"] for i in sorted(order[:count])), key=len)
    train = np.sort(np.asarray(order[count:]))
    digest = _digest(tokenised)
    if packed and not whole:
        return Corpus(Shuffled(tokenised.select(train), batch, seed), held, float(length), digest=digest)
    lengths = pc.list_value_length(tokenised.data.column("input_ids")).to_numpy()
    opening = len(cutter.prefix)
    openings = np.full(len(lengths), opening) if packed else tokenised.data.column("opening").to_numpy()
    pieces = Pieces(cropper, openings[train], lengths[train])
    mean = float(pieces.of(0)[1].mean())
    cut = 0.0 if packed or target is not None else float((lengths == length).mean())
    return Corpus(Shuffled(tokenised.select(train), batch, seed, pieces), held, mean, digest=digest, cut=cut)


def _streamed(
    name: object,
    cutter: Cutter,
    cropper: Cropper,
    texts: Callable[[], Iterator[str]],
    heldout: float,
    *,
    once: bool = False,
) -> Corpus:
    """A corpus whose first sequences are held out; an iterator can be read `once`, anything else again and again."""
    first = cutter.stream(texts())
    # what can be read again is looked at until the share that is held out would be as much as of any stream
    share = max(heldout, STREAM_HELDOUT / STREAM_AHEAD)
    ahead = list(itertools.islice(first, STREAM_HELDOUT + 1 if once else math.ceil(STREAM_HELDOUT / share)))
    _refuse_short(name, len(ahead), cutter.length, cutter.packed)
    # a run may go on with more of what can be read once, so that nothing may hang on how much it is
    count = min(STREAM_HELDOUT, len(ahead) - 1 if once else heldout_count(heldout, len(ahead)))
    held = [ids for ids, _ in ahead[:count]]
    seen = ahead[:count] if once else ahead
    openings, lengths = np.asarray([opening for _, opening in seen]), np.asarray([len(ids) for ids, _ in seen])
    mean = float(lengths.mean() if cutter.packed else cropper.pieces(openings, lengths, 0)[1].mean())
    if once:
        passes = iter([itertools.chain(ahead[len(held) :], first)])
        source = Stream(lambda: next(passes, iter(())), cropper)
    else:
        source = Stream(lambda: _behind(held, cutter.stream(texts())), cropper)
        # a second pass that is another one is seen before anything is written
        next(source.sequences(0))
    cut = 0.0 if cutter.packed else float((lengths == cutter.length).mean())
    return Corpus(source, sorted(held, key=len), mean, once, cut=cut)


def _behind(held: Sequence[Tokens], again: Iterator[tuple[Tokens, int]]) -> Iterator[tuple[Tokens, int]]:
    """Another pass over a stream, without what is held out, which it must begin with as it did.

    Raises:
        UserError: it begins otherwise.
    """
    if [ids for ids, _ in itertools.islice(again, len(held))] != held:
        raise UserError(
            "Cannot read the stream of text again: it begins otherwise than at first.",
            "A stream that is read again and again must come in one order, or what is held out would be learnt from.",
            "Give its texts in one order, as a list or a file; or as an iterator, `iter(texts)`, which is read once.",
        )
    return again


def tokenise(opened: Dataset, cutter: Cutter, workers: int) -> Dataset:
    """Cut a whole dataset, with the result cached under a fingerprint of text, tokenizer and options.

    It lies in the cache wherever the text does: of a saved dataset the library would write into the user's own folder.
    Texts are tokenised in parallel. Blocks are joined by one process, so that they do not depend on how many there are.
    """
    processes = workers or min(os.cpu_count() or 1, 1 + len(opened) // 20_000)
    if processes > 1:
        # each process is one thread: the tokenizers library's own threads do not live through a fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    name = cutter.fingerprint(opened)
    options: dict[str, Any] = {"num_proc": processes if processes > 1 else None, "remove_columns": opened.column_names}
    with cache_explained():
        tokens = _mapped(opened, cutter, name, **options)
        return _mapped(tokens, Blocks(cutter), f"{name}-blocks") if cutter.packed else tokens


def _mapped(rows: Dataset, function: Callable[..., Any], name: str, **options: Any) -> Dataset:
    place = Path(datasets.config.HF_DATASETS_CACHE, "homodistil", f"{name}.arrow")
    return rows.map(
        function, batched=True, batch_size=1000, new_fingerprint=name, cache_file_name=str(place), **options
    )


def _digest(tokenised: Dataset) -> str:
    """What tells other sequences, or the same in another order, apart."""
    tokens, lengths = hashlib.sha256(), hashlib.sha256()
    for part in tokenised.data.column("input_ids").chunks:
        tokens.update(part.flatten().to_numpy())
        lengths.update(pc.list_value_length(part).to_numpy())
    return tokens.hexdigest()[:16] + lengths.hexdigest()[:16]


def heldout_count(share: float, count: int) -> int:
    """How many of `count` sequences are held out: enough to be compared with each other, where there are some."""
    return min(HELDOUT_MOST, max(1, min(COMPARED, count // 2), round(share * count)), count - 1)


def _refuse_short(data: object, count: int, length: int, packed: bool) -> None:
    if count >= 2:
        return
    what = f"block{'s' if packed else ''} of {length} tokens" if packed else "texts"
    raise UserError(
        f"Cannot train on {data if isinstance(data, str) else 'the data in memory'}: it fills {count} {what}.",
        "There must be at least two, one to learn from and one to hold out.",
        "Give more text" + (", or shorten the blocks with --text.length." if packed else "."),
    )
