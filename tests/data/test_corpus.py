"""From text to batches: every kind of input, and batches that are a function of seed and index."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from conftest import WORDS
from homodistil.data.collate import MEASURED, Collator, Draw, batches, draws, heldout_draws, of_batch, seen_after
from homodistil.data.corpus import STREAM_HELDOUT, Corpus, heldout_count, load_corpus, tokenise
from homodistil.data.cutter import Blocks, Cutter
from homodistil.data.sources import Cropper, Pieces, of_epoch
from homodistil.errors import UserError
from homodistil.text import open_text

TEXTS = [f"the {n} man sees a {m} cat on the house" for n in ("one", "two", "old") for m in ("red", "blue", "big")] * 6


def _write(kind: str, folder: Path) -> Any:
    rows = [{"text": text} for text in TEXTS]
    path = folder / f"data.{kind}"
    if kind == "txt":
        path.write_text("\n".join(TEXTS))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        Dataset.from_list(rows).to_csv(str(path))
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif kind == "saved":
        Dataset.from_list(rows).save_to_disk(str(path))
    elif kind == "folder":
        path.mkdir()
        for part in range(2):
            (path / f"{part}.txt").write_text("\n".join(TEXTS[part::2]))
    elif kind == "texts":
        return TEXTS
    return str(path)


def _sequences(corpus: Corpus, count: int, start: int = 0) -> list[list[int]]:
    return [list(s) for s in itertools.islice(corpus.train.sequences(start), count)]


# the datasets library leaves a csv file open that it streams
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet", "saved", "folder", "texts"])
def test_every_kind_of_data_holds_the_same_texts(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Read as a whole or as a stream, each text comes once an epoch, held out or learnt from."""
    data = _write(kind, tmp_path)
    expected = sorted(tuple(ids) for ids in tokenizer(TEXTS)["input_ids"])
    for stream in (False, True):
        corpus = load_corpus(data, tokenizer, length=32, packed=False, stream=stream, batch=1)
        seen = _sequences(corpus, len(TEXTS) - len(corpus.heldout)) + [list(s) for s in corpus.heldout]
        assert sorted(map(tuple, seen)) == expected


def test_blocks_are_full_and_lose_only_the_rest(tokenizer: Any, tmp_path: Path) -> None:
    """Special tokens at both ends, texts joined by what ends one, in order."""
    cutter = Cutter(tokenizer, "text", 16, packed=True)
    blocks = Blocks(cutter)(cutter({"text": TEXTS}))["input_ids"]
    assert {len(block) for block in blocks} == {16}
    assert all(b[0] == tokenizer.cls_token_id and b[-1] == tokenizer.sep_token_id for b in blocks)
    inside = [token for block in blocks for token in block[1:-1]]
    joined = [
        t for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"] for t in [*ids, tokenizer.sep_token_id]
    ]
    assert inside == joined[: len(inside)]
    assert len(joined) - len(inside) < 14


@pytest.mark.parametrize("whole", [False, True])
def test_blocks_do_not_depend_on_how_many_texts_come_at_a_time(whole: bool, tokenizer: Any, tmp_path: Path) -> None:
    """A file by one process and by three, a stream, and text by text: the same blocks, though none fills one alone."""
    texts = TEXTS * 40
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    cutter = Cutter(tokenizer, "text", 64, packed=True, whole=whole)
    one_by_one = Blocks(cutter)
    expected = [block for text in texts for block in one_by_one(cutter({"text": [text]}))["input_ids"]]
    full = sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) // 62
    assert len(expected) == full if not whole else len(expected) > full
    assert [ids for ids, _ in cutter.stream(texts)] == expected
    for workers in (1, 3):
        opened = open_text(str(tmp_path / "texts.txt"), "text")
        assert isinstance(opened, Dataset)
        opened._fingerprint = f"{opened._fingerprint}-{workers}"
        assert tokenise(opened, cutter, workers)["input_ids"][:] == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("packed", "whole"), [(False, False), (True, False), (True, True)])
def test_batches_can_be_entered_anywhere(
    stream: bool, packed: bool, whole: bool, tokenizer: Any, tmp_path: Path
) -> None:
    """Starting at the k-th batch gives what reaching it gives, over the ends of epochs, masks included."""
    data = _write("txt", tmp_path)
    corpus = load_corpus(data, tokenizer, length=24, packed=packed, whole=whole, stream=stream, batch=4, heldout=0.1)
    collate = Collator(tokenizer, 0.3, 7)
    first = list(itertools.islice(batches(corpus.train, collate, 4, start=0), 30))
    for start in (1, 13, 29):
        later = next(batches(corpus.train, collate, 4, start=start))
        assert later.keys() == first[start].keys()
        assert all(torch.equal(later[k], first[start][k]) for k in later)


@pytest.mark.parametrize("stream", [False, True])
def test_whole_texts_share_a_block_as_far_as_they_fit(stream: bool, tokenizer: Any, tmp_path: Path) -> None:
    """None is cut; blocks of like length come together, and how long they are on average is told."""
    draw = random.Random(0)
    own = [" ".join(draw.choices(WORDS, k=draw.randint(1, 16))) for _ in range(400)]
    (tmp_path / "own.txt").write_text("\n".join(own))
    data = str(tmp_path / "own.txt")
    corpus = load_corpus(data, tokenizer, length=24, whole=True, stream=stream, batch=4, heldout=0.1)
    every = _sequences(corpus, 60) + [list(ids) for ids in corpus.heldout]
    known = {tuple(ids) for ids in tokenizer(own, add_special_tokens=False)["input_ids"]}
    for block in every:
        assert (block[0], block[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        texts = itertools.groupby(block[1:], key=lambda token: token == tokenizer.sep_token_id)
        assert {tuple(text) for end, text in texts if not end} <= known
    lengths = {len(block) for block in every}
    assert len(lengths) > 3
    assert min(lengths) < corpus.mean_tokens < max(lengths) <= 24
    if not stream:
        drawn = [[len(ids) for ids in draw.sequences] for draw in itertools.islice(draws(corpus.train, 4, start=0), 40)]
        assert np.mean([max(some) - min(some) for some in drawn]) < 2


def test_an_epoch_leaves_less_than_a_batch_out_and_has_none_twice_or_held_out(tokenizer: Any, tmp_path: Path) -> None:
    """In another order each time, without others each time."""
    numbered = tmp_path / "numbered.txt"
    words = ["cat", "dog", "tree", "house", "man", "red", "blue"]
    texts = [" ".join(choice) for choice in itertools.permutations(words, 3)]
    numbered.write_text("\n".join(texts))
    corpus = load_corpus(str(numbered), tokenizer, length=16, packed=False, heldout=0.1, batch=8)
    size = (len(texts) - len(corpus.heldout)) // 8 * 8
    epochs = [[tuple(s) for s in _sequences(corpus, size, start=k * size)] for k in range(3)]
    assert all(len(set(epoch)) == size for epoch in epochs)
    assert len(set().union(*epochs)) == len(texts) - len(corpus.heldout) > size
    assert epochs[0] != epochs[1]
    assert not set(epochs[0]) & {tuple(s) for s in corpus.heldout}


def test_texts_of_one_length_come_together_in_every_epoch(tokenizer: Any, tmp_path: Path) -> None:
    """Also where the texts fill no whole number of batches."""
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(["cat"] * (1 + n % 40)) for n in range(203)))
    corpus = load_corpus(str(tmp_path / "texts.txt"), tokenizer, length=64, packed=False, batch=8)
    lengths = [[len(s) for s in draw.sequences] for draw in itertools.islice(draws(corpus.train, 8, start=0), 100)]
    assert all(max(batch) - min(batch) <= 4 for batch in lengths)
    assert len(set(map(max, lengths))) > 20


@pytest.mark.parametrize(
    ("texts", "size", "batches_of"),
    [
        (33, 32, [16, 17]),
        (64, 32, [32, 32]),
        (3, 32, [3]),
        (2, 32, [2]),
        (7, 3, [3, 4]),
        (5, 4, [5]),
        (5, 2, [1, 2, 2]),
    ],
)
def test_held_out_batches_are_of_one_size(texts: int, size: int, batches_of: list[int]) -> None:
    """Each text beside two others where batches are so large; each batch is masked in its own way, every time."""
    made = list(heldout_draws(list(range(texts)), size))
    assert [len(draw.sequences) for draw in made] == batches_of
    assert [n for draw in made for n in draw.sequences] == list(range(texts))
    assert [draw.number for draw in made] == [-1 - k for k in range(len(made))]


def test_masks_fall_on_ordinary_tokens_and_labels_are_what_was_there(tokenizer: Any) -> None:
    """So many of them, of which about 80 % are masked, 10 % replaced and 10 % kept; another index, other masks."""
    draw = torch.Generator().manual_seed(0)
    sequences = [[2, *torch.randint(5, 27, (30,), generator=draw).tolist(), 3] for _ in range(200)]
    collate = Collator(tokenizer, 0.4, 0)
    batch = collate(sequences, 0)
    original = torch.tensor(sequences)
    assert torch.equal(batch["labels"], original.flatten()[batch["positions"]])
    assert (original.flatten()[batch["positions"]] >= 5).all()
    assert len(batch["positions"]) == int(0.4 * 200 * 30)
    now = batch["input_ids"].flatten()[batch["positions"]]
    assert 0.75 < (now == tokenizer.mask_token_id).float().mean() < 0.85
    assert 0.07 < (now == batch["labels"]).float().mean() < 0.15
    untouched = torch.ones(original.numel(), dtype=torch.bool)
    untouched[batch["positions"]] = False
    assert torch.equal(batch["input_ids"].flatten()[untouched], original.flatten()[untouched])
    assert not torch.equal(batch["positions"], collate(sequences, 1)["positions"])


def test_nothing_but_ordinary_tokens_is_ever_predicted(tokenizer: Any) -> None:
    """A batch without one predicts nothing, rather than its padding; of a few no more than there are."""
    unknown = [tokenizer.cls_token_id, *[tokenizer.unk_token_id] * 4, tokenizer.sep_token_id]
    for index in range(20):
        batch = Collator(tokenizer, 0.4, 0)([unknown], index)
        assert not len(batch["positions"])
        assert not len(batch["labels"])
        assert Collator(tokenizer, 0.4, 0)([[*unknown, 7]], index)["labels"].tolist() == [7]


def test_held_out_batches_have_the_same_masks_whatever_share_is_learnt_from(tokenizer: Any) -> None:
    """A student that learns from more masks is measured by as many as any other."""
    sequences = [[2, *range(5, 25), 3] for _ in range(10)]
    few, many = (Collator(tokenizer, share, 0) for share in (0.1, 0.5))
    assert len(few(sequences, 0)["positions"]) == 20
    assert len(many(sequences, 0)["positions"]) == 100
    for index in (-1, -2):
        mine, theirs = few(sequences, index), many(sequences, index)
        assert len(mine["positions"]) == 30
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_batches_of_uneven_sequences_have_few_shapes(tokenizer: Any) -> None:
    """A number of predicted tokens that a GPU has seen before, near the asked-for share; held-out ones exactly it."""
    draw, collate = random.Random(0), Collator(tokenizer, 0.25, 0)
    counts = []
    for index in range(300):
        lengths = [180 + draw.randrange(8) for _ in range(4)]
        sequences = [[2, *[7] * (length - 2), 3] for length in lengths]
        free, predicted = sum(lengths) - 8, len(collate(sequences, index)["labels"])
        assert predicted == pytest.approx(0.25 * free, rel=1 / 14)
        assert len(collate(sequences, -1 - index)["labels"]) == int(MEASURED * free)
        counts.append(predicted)
    assert len(set(counts)) < 4 < len({int(0.25 * count) for count in range(712, 740)})


def test_text_is_tokenised_once(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run over the same file reads the cache; another length or packing does not."""
    data = _write("txt", tmp_path)
    calls: list[int] = []
    real: Callable[..., Any] = Cutter.__call__

    def counted(self: Cutter, rows: dict[str, list[Any]]) -> Any:
        calls.append(1)
        return real(self, rows)

    monkeypatch.setattr(Cutter, "__call__", counted)
    load_corpus(data, tokenizer, length=24, packed=True)
    made = len(calls)
    assert made > 0
    load_corpus(data, tokenizer, length=24, packed=True)
    assert len(calls) == made
    load_corpus(data, tokenizer, length=32, packed=True)
    assert len(calls) > made


@pytest.mark.parametrize("changed", ["column", "target"])
def test_another_column_is_tokenised_anew(changed: str, tokenizer: Any, tmp_path: Path) -> None:
    """Of the same file: what is read of it, and what is said to it."""
    path, columns = tmp_path / "columns.jsonl", {"column": "a", "target": "a"}
    path.write_text("\n".join(json.dumps({"a": "the red cat", "b": "a big dog"}) for _ in range(20)))
    read = []
    for name in ("a", "b"):
        options: dict[str, Any] = columns | {changed: name}
        read.append(_sequences(load_corpus(str(path), tokenizer, length=16, packed=False, batch=4, **options), 1))
    assert read[0] != read[1]


def test_texts_that_end_otherwise_are_tokenised_anew(tokenizer: Any, tmp_path: Path) -> None:
    """Two tokenizers with one backend, and another token between two texts."""
    data, ended = _write("txt", tmp_path), []
    for eos in ("[MASK]", "[PAD]"):
        plain = copy.deepcopy(tokenizer)
        plain.backend_tokenizer.post_processor = None
        plain.eos_token = eos
        blocks = _sequences(load_corpus(data, plain, length=24, packed=True), 8)
        ended.append({plain.convert_tokens_to_ids(t) for t in ("[MASK]", "[PAD]")} & {t for b in blocks for t in b})
    assert ended == [{tokenizer.mask_token_id}, {tokenizer.pad_token_id}]


@pytest.mark.parametrize(
    ("attribute", "values"), [("truncation_side", ("right", "left")), ("split_special_tokens", (False, True))]
)
def test_tokenizers_that_read_otherwise_share_no_tokens(
    attribute: str, values: tuple[object, object], tokenizer: Any, tmp_path: Path
) -> None:
    """Two with one vocabulary: what is cut off a long text, and whether it may hold special tokens."""
    (tmp_path / "long.txt").write_text("one two [MASK] red blue old small big cat dog tree\n" * 40)
    read = []
    for value in values:
        other = copy.deepcopy(tokenizer)
        setattr(other, attribute, value)
        read.append(_sequences(load_corpus(str(tmp_path / "long.txt"), other, length=8, packed=False, batch=4), 1))
    assert read[0] != read[1]


def test_tokens_of_a_saved_dataset_lie_in_the_cache(tokenizer: Any, tmp_path: Path) -> None:
    """Its folder, which may be one that cannot be written to, stays as it is."""
    data = _write("saved", tmp_path)
    before = {file.name: file.read_bytes() for file in Path(data).iterdir()}
    for packed in (True, False):
        load_corpus(data, tokenizer, length=24, packed=packed)
    assert {file.name: file.read_bytes() for file in Path(data).iterdir()} == before


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("word", "size"), [("house ", 1_200_000), ("a ", 600_000)])
def test_a_cache_without_room_is_named(
    word: str, size: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the text, whether that cannot be kept there or its tokens; nor where there can be no such folder."""
    text = tmp_path / "own.txt"
    text.write_text((word * 100 + "\n") * (size // len(word * 100)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(UserError, match=rf"Cannot write to the cache of .*{tmp_path}/cache(?s:.*)HF_HOME"):
            load_corpus(str(text), tokenizer, length=24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", text / "cache")
    with pytest.raises(UserError, match="Cannot write to the cache of"):
        load_corpus(str(text), tokenizer, length=24)
    # the library leaves a file open that it could not write
    gc.collect()


def test_special_tokens_are_found_also_of_alphabets_without_an_a(tokenizer: Any) -> None:
    """As of proteins, whose tokenizers make nothing of small letters."""
    backend = Tokenizer(BPE({"[CLS]": 0, "[SEP]": 1, "M": 2, "K": 3}, merges=[]))
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    proteins = PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]")
    assert proteins("a", add_special_tokens=False)["input_ids"] == []
    cutter = Cutter(proteins, "text", 8, packed=False)
    assert (cutter.prefix, cutter.suffix) == ([0], [1])
    assert cutter({"text": ["MKM"]}) == {"input_ids": [[0, 2, 3, 2, 1]], "opening": [1]}


def test_any_seed_draws() -> None:
    """As large as a date and a time, or as 63 bits hold; each its own."""
    seeds = (0, 1, 20_261_127_131_739, 2**63 - 1)
    for draw in (of_epoch, of_batch):
        lots = {int(torch.randint(2**62, (1,), generator=draw(seed, number))) for seed in seeds for number in (0, 1)}
        assert len(lots) == 2 * len(seeds)


def test_what_has_been_learnt_is_told_from_all_else() -> None:
    """By each batch, the first as well as the last, by their order, and by what of them; not by when it was asked."""
    first, second, third = (Draw([[word]], number) for number, word in enumerate((5, 6, 7)))
    whole = seen_after("", [first, second])
    assert seen_after(seen_after("", [first]), [second]) == whole
    others = [[third, second], [first, third], [second, first], [first], [second], [first, second, second]]
    assert len({whole, *(seen_after("", other) for other in others)}) == 1 + len(others)


def test_a_tokenizer_that_makes_nothing_of_any_text_is_refused() -> None:
    """Where its special tokens stand could only be guessed."""
    backend = Tokenizer(BPE({"[CLS]": 0, "M": 1}, merges=[]))
    backend.normalizer = Lowercase()
    with pytest.raises(UserError, match="makes no token of any text"):
        Cutter(PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]"), "text", 8, packed=True)


@pytest.mark.parametrize("kind", [tuple, np.array, pandas.Series, lambda t: Dataset.from_dict({"t": t})["t"]])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_in_memory_are_read_as_those_of_a_file(
    packed: bool, kind: Callable[[list[str]], Any], tokenizer: Any, tmp_path: Path
) -> None:
    """Whatever has a number and places: the same is held out, from all over, and the order is the same."""
    texts = [" ".join([WORDS[k // 20], "cat", *random.Random(k).choices(WORDS, k=9)]) for k in range(300)]
    (tmp_path / "own.txt").write_text("\n".join(texts))
    options: dict[str, Any] = {"length": 16, "packed": packed, "crops": 0.5, "batch": 4}
    file, given = (load_corpus(data, tokenizer, **options) for data in (str(tmp_path / "own.txt"), kind(texts)))
    assert given.identity == file.identity
    assert _sequences(given, 500) == _sequences(file, 500)


def test_a_list_that_is_streamed_holds_out_the_share_that_a_file_does(tokenizer: Any, tmp_path: Path) -> None:
    """Of a hundred texts all but one were held out."""
    texts = [" ".join(random.Random(k).choices(WORDS, k=20)) for k in range(100)]
    (tmp_path / "own.txt").write_text("\n".join(texts))
    for packed in (False, True):
        counts = [
            len(load_corpus(data, tokenizer, length=24, packed=packed, heldout=0.1, stream=stream).heldout)
            for data, stream in ((str(tmp_path / "own.txt"), False), (texts, True))
        ]
        assert counts[0] == counts[1]
        assert counts[0] <= 15


@pytest.mark.parametrize(("count", "held"), [(2, 1), (4, 2), (6, 3), (100, 3), (400, 8), (100_000, 256)])
def test_so_many_are_held_out_that_they_can_be_compared(count: int, held: int) -> None:
    """Three at least, where there are as many to learn from."""
    assert heldout_count(0.02, count) == held


def test_a_stream_holds_out_a_fixed_number_of_the_sequences_that_it_begins_with(tokenizer: Any) -> None:
    """How long it is, is not known; as few are held out as of 3,200 by a fiftieth."""
    for data in (("a cat " * 30 for _ in itertools.count()), ["a cat " * 30] * 4000):
        assert len(load_corpus(data, tokenizer, length=24, stream=True).heldout) == STREAM_HELDOUT


def test_the_length_of_pieces_is_foreseen_of_a_stream_as_of_a_file(tokenizer: Any, tmp_path: Path) -> None:
    """A budget of tokens is divided by it."""
    texts = [" ".join(random.Random(k).choices(WORDS, k=40)) for k in range(300)]
    (tmp_path / "own.txt").write_text("\n".join(texts))
    file, given = (
        load_corpus(str(tmp_path / "own.txt"), tokenizer, length=64, packed=False, crops=1.0, stream=stream)
        for stream in (False, True)
    )
    assert given.mean_tokens == pytest.approx(file.mean_tokens, rel=0.1)
    assert given.mean_tokens < 30


@pytest.mark.parametrize("length", [57, 60])
def test_padding_takes_no_more_positions_than_there_are(length: int, tokenizer: Any) -> None:
    """A multiple of eight may be one too many."""
    collate = Collator(tokenizer, 0.15, 0, longest=60)
    assert collate([[5] * length, [6] * 3], 0)["input_ids"].shape == (2, 60)
    assert collate([[5] * 9], 0)["input_ids"].shape == (1, 16)


def test_a_stream_that_ends_and_cannot_be_read_again_says_so(tokenizer: Any) -> None:
    """In place of a run that learns from nothing."""
    corpus = load_corpus((t for t in TEXTS * 3), tokenizer, length=32, packed=False)
    with pytest.raises(UserError, match="has ended"):
        _sequences(corpus, 10_000)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_held_out_of_a_stream_is_never_learnt_from(packed: bool, tokenizer: Any) -> None:
    """Of one that can be read once, too: all that comes after it is learnt from, in its order."""
    texts = [" ".join(random.Random(k).choices(WORDS, k=12)) for k in range(200)]
    corpus = load_corpus(iter(texts), tokenizer, length=14, packed=packed)
    cutter = Cutter(tokenizer, "text", 14, packed)
    expected = [ids for ids, _ in cutter.stream(texts)]
    held = [tuple(s) for s in corpus.heldout]
    assert sorted(held) == sorted(map(tuple, expected[:STREAM_HELDOUT]))
    seen = _sequences(corpus, 100)
    assert seen == expected[STREAM_HELDOUT : STREAM_HELDOUT + 100]
    assert not set(map(tuple, seen)) & set(held)


class _Passes:
    """Texts that come otherwise from the n-th pass on: in another order, or not at all."""

    def __init__(self, texts: list[str], passes: int, later: list[str]) -> None:
        self.texts, self.left, self.later = texts, passes, later

    def __iter__(self) -> Iterator[str]:
        self.left -= 1
        yield from self.texts if self.left >= 0 else self.later


@pytest.mark.parametrize("later", ["reversed", "nothing"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_stream_that_comes_in_another_order_is_refused(packed: bool, later: str, tokenizer: Any) -> None:
    """What is held out would be learnt from: before a run starts, and where it is so from a later pass on, then."""
    texts = [" ".join(random.Random(k).choices(WORDS, k=20)) for k in range(200)]
    other = texts[::-1] if later == "reversed" else []
    with pytest.raises(UserError, match=r"begins otherwise than at first(?s:.*)iter"):
        load_corpus(_Passes(texts, 1, other), tokenizer, length=24, packed=packed)
    corpus = load_corpus(_Passes(texts, 3, other), tokenizer, length=24, packed=packed)
    assert not {tuple(s) for s in _sequences(corpus, 150)} & {tuple(s) for s in corpus.heldout}
    with pytest.raises(UserError, match="begins otherwise than at first"):
        _sequences(corpus, 400)


def test_crops_are_pieces_of_texts_and_the_same_each_time(tokenizer: Any, tmp_path: Path) -> None:
    """A cropped sequence is special tokens around a contiguous piece of a text, at least eight tokens where the text
    has them; about the asked-for share is cropped; entering in the middle changes nothing.
    """
    long = [" ".join(itertools.islice(itertools.cycle(t.split()), 20)) for t in TEXTS]
    (tmp_path / "long.txt").write_text("\n".join(long))
    whole = [ids[1:-1] for ids in tokenizer(long)["input_ids"]]
    corpus = load_corpus(str(tmp_path / "long.txt"), tokenizer, length=32, packed=False, crops=0.5, batch=4)
    seen = _sequences(corpus, 400)
    for ids in seen:
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        body = ids[1:-1]
        assert 8 <= len(body) <= 20
        assert any(body == text[i : i + len(body)] for text in whole for i in range(21 - len(body)))
    cropped = sum(len(ids) < 22 for ids in seen) / len(seen)
    assert 0.35 < cropped < 0.6
    assert _sequences(corpus, 60, start=137) == seen[137:197]
    mean = sum(map(len, seen)) / len(seen)
    assert corpus.mean_tokens == pytest.approx(mean, rel=0.05)


def test_pieces_reach_from_a_texts_beginning_to_its_end_and_are_others_in_another_epoch() -> None:
    """Every place of a text is learnt from, and each time in another company."""
    pieces = Pieces(Cropper(1.0, [3], seed=0), np.full(2000, 1), np.full(2000, 14))
    firsts, lengths = pieces.of(0)
    left = 14 - lengths - firsts
    cut = lengths < 14
    assert firsts[cut].min() == left[cut].min() == 0
    again, other = pieces.of(0), pieces.of(1)
    assert np.array_equal(lengths, again[1])
    assert not np.array_equal(lengths, other[1])
    assert not np.array_equal(firsts, other[0])


def test_streams_are_cropped_too_and_blocks_never(tokenizer: Any, tmp_path: Path) -> None:
    """A stream's pieces are the same at each reading; held-out texts and packed blocks stay whole."""
    long = [" ".join(itertools.islice(itertools.cycle(t.split()), 20)) for t in TEXTS]
    corpus = load_corpus(long, tokenizer, length=32, packed=False, crops=0.5, batch=4, stream=True)
    seen = _sequences(corpus, 50)
    assert {len(ids) for ids in seen} - {22}
    assert {len(ids) for ids in corpus.heldout} == {22}
    assert _sequences(corpus, 20, start=30) == seen[30:]
    packed = load_corpus(long, tokenizer, length=32, packed=True, crops=0.5, batch=4, stream=True)
    assert {len(ids) for ids in _sequences(packed, 20)} == {32}


def test_every_token_but_the_last_predicts_the_next_in_causal_batches(tokenizer: Any) -> None:
    """Labels are what follows, of tokens only: padding neither predicts nor is predicted."""
    collate = Collator(tokenizer, 0.0, seed=0, causal=True)
    batch = collate([[2, 7, 8, 9, 3], [2, 10, 3]], 0)
    rows, columns = batch["positions"] // 8, batch["positions"] % 8
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert batch["labels"].tolist() == [7, 8, 9, 3, 10, 3]
    assert batch["input_ids"][1].tolist() == [2, 10, 3, 0, 0, 0, 0, 0]


def test_texts_of_a_block_are_apart_even_where_a_tokenizer_ends_none(tokenizer: Any) -> None:
    """Without a special token of the tokenizer's own between two texts, the end-of-text token stands there."""
    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = None
    plain.eos_token = "[SEP]"
    cutter = Cutter(plain, "text", 8, packed=True)
    assert (cutter.prefix, cutter.suffix) == ([], [])
    ids = Blocks(cutter)(cutter({"text": ["the cat sees", "the dog sees"]}))["input_ids"][0]
    assert ids[3] == ids[7] == plain.eos_token_id
