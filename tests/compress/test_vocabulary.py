"""Trimming a vocabulary: nothing changes for the text that it was trimmed to, and other text can still be read."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from conftest import tiny_config
from homodistil.axes.layout import Layout, on_meta
from homodistil.compress import vocabulary as module
from homodistil.compress.shrink import shrink
from homodistil.compress.vocabulary import Vocabulary, narrow, vocabulary_of, with_vocabulary
from homodistil.errors import UserError
from tokenizers_zoo import KINDS, NARROW, ROLES, UNSEEN, wrapped
from zoo import tiny

MODELS = {
    "BERT": "WordPiece",
    "RoBERTa": "byte-level BPE",
    "XLM-R": "Unigram",
    "ELECTRA generator": "WordPiece",
    "ELECTRA small": "WordPiece",
    "DistilBERT": "WordPiece with special tokens last",
    "ModernBERT": "byte-level BPE with special tokens last",
    "DeBERTa": "Unigram",
    "GPT-2": "byte-level BPE",
    "OPT": "byte-level BPE",
    "GPT-NeoX": "byte-level BPE",
    "Llama": "Metaspace BPE",
    "Mistral": "Metaspace BPE",
    "Qwen3": "byte-level BPE",
    "Gemma": "Metaspace BPE",
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    """One of each algorithm."""
    return {kind: wrapped(make()) for kind, make in KINDS.items()}


def _trim(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[Vocabulary, PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    model = on_meta(BertModel, tiny_config(vocab_size=len(tokenizer), pad_token_id=None))
    vocabulary, made = vocabulary_of(texts, tokenizer, model, Layout.of(model))
    return vocabulary, tokenizer, made


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, pair: str | None = None) -> list[str]:
    made: list[str] = tokenizer.convert_ids_to_tokens(tokenizer(text, pair)["input_ids"])
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_trimmed_tokenizer_splits_the_corpus_as_before(
    kind: str, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """The same tokens, special ones included, alone and in pairs; the rows say where they come from."""
    vocabulary, whole, made = _trim(tokenizers[kind], NARROW)
    assert len(made) == len(vocabulary.rows) < len(whole) == vocabulary.before
    for text, other in itertools.product(NARROW, [None, *NARROW]):
        assert _tokens(made, text, other) == _tokens(whole, text, other)
        ids, before = (t(text, other)["input_ids"] for t in (made, whole))
        assert [vocabulary.rows[i] for i in ids] == before
        assert made.decode(ids) == whole.decode(before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "WordLevel"])
def test_text_that_the_corpus_never_saw_can_still_be_read(
    kind: str, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """Whatever the whole tokenizer could read, in more and shorter tokens, without a new unknown."""
    _, whole, made = _trim(tokenizers[kind], NARROW)
    longer = 0
    for text in UNSEEN:
        before, after = _tokens(whole, text), _tokens(made, text)
        assert after.count("<unk>") == before.count("<unk>")
        # the decoder of this kind leaves its marks standing
        one, other = (t.decode(t(text)["input_ids"]).replace("@@", "") for t in (made, whole))
        assert one == other
        longer += len(after) - len(before)
    assert longer > 0


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_keep_their_roles(kind: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """Each role has its token, added tokens are found in text, and padding is made of the padding token."""
    _, whole, made = _trim(tokenizers[kind], NARROW)
    for role, token in ROLES.items():
        assert getattr(made, role) == token == getattr(whole, role)
    assert made.all_special_tokens == whole.all_special_tokens
    assert "<mark>" in _tokens(made, "one <mark> more")
    padded = made(["a", NARROW[0]], padding=True)["input_ids"]
    assert set(padded[0][-3:]) == {made.pad_token_id}


@pytest.mark.parametrize(
    ("tokenizer_class", "kind"),
    [
        (BertTokenizer, "WordPiece"),
        (GPT2Tokenizer, "byte-level BPE"),
        (RobertaTokenizer, "byte-level BPE"),
        (LlamaTokenizer, "Metaspace BPE"),
        (XLMRobertaTokenizer, "Unigram"),
    ],
)
def test_classes_that_build_their_own_tokenizer_are_trimmed_too(
    tokenizer_class: Any, kind: str, tokenizers: dict[str, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    """They take the tokens out of the file and put everything else together themselves; the class stays."""
    tokenizers[kind].save_pretrained(tmp_path / "whole")
    whole = tokenizer_class.from_pretrained(tmp_path / "whole")
    _, _, made = _trim(whole, NARROW)
    made.save_pretrained(tmp_path / "made")
    again = tokenizer_class.from_pretrained(tmp_path / "made")
    assert type(made) is tokenizer_class
    assert len(again) == len(made) < len(whole)
    for text in NARROW:
        assert _tokens(again, text) == _tokens(made, text) == _tokens(whole, text)
    assert "tmp" not in (tmp_path / "made" / "tokenizer_config.json").read_text()


def _random(kind: str, draw: random.Random) -> Tokenizer:
    """A tokenizer of random tokens, most of which no training would make; the letter d is unknown to it."""
    words = {"".join(draw.choices("abc", k=draw.randint(2, 5))) for _ in range(30)}
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "BPE":
        known, merges = [*"abc"], []
        for _ in range(25):
            left, right = draw.choice(known), draw.choice(known)
            if (left, right) not in merges:
                merges.append((left, right))
                known += [left + right] if left + right not in known else []
        draw.shuffle(merges)
        vocab = {token: at for at, token in enumerate([*special, *known])}
        return Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    if kind == "Unigram":
        pieces = sorted({*"ab", *words, *("d" + w for w in sorted(words)[:4])})
        scored = [*((s, 0.0) for s in special), *((p, -draw.choice([1, 2, 3, 9, 30]) / 2) for p in pieces)]
        return Tokenizer(models.Unigram(vocab=scored, unk_id=3))
    # some letters are known at the start of a word only, so that words become unknown halfway
    pieces = sorted({*"abc", "##a", *("##" + w for w in sorted(words)[:12]), *words})
    vocab = {token: at for at, token in enumerate([*special, *pieces])}
    return Tokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>"))


@pytest.mark.parametrize("kind", ["BPE", "Unigram", "WordPiece"])
def test_any_text_is_split_as_before_by_any_tokenizer(kind: str) -> None:
    """Random tokens, merges in random order, scores with ties, unknown letters, words that lead astray."""
    dropped = 0
    for seed in range(25):
        draw = random.Random(seed)
        backend = _random(kind, draw)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        texts = [" ".join("".join(draw.choices("aaabbbcccd", k=draw.randint(1, 9))) for _ in range(2)) for _ in "123"]
        vocabulary, whole, made = _trim(wrapped(backend), texts)
        dropped += vocabulary.before - len(vocabulary.rows)
        for text in texts:
            assert _tokens(made, text) == _tokens(whole, text)
    assert dropped > 100


def test_an_unknown_character_costs_what_it_did() -> None:
    """Of Unigram, whose lowest score it hangs on: without its piece, a text would be read as known but rare ones."""
    pieces = [("<unk>", 0.0), *zip("abc", (-15.0, -20.0, -20.0), strict=True)]
    pieces += [("ab", -1.0), ("bd", -30.0), ("ccc", -100.0)]
    vocabulary, whole, made = _trim(wrapped(Tokenizer(models.Unigram(vocab=pieces, unk_id=0))), ["abd", "ab"])
    assert _tokens(made, "abd") == _tokens(whole, "abd") == ["a", "bd"]
    assert "ccc" in made.get_vocab()
    assert len(vocabulary.rows) == len(made) <= len(whole)


@pytest.mark.parametrize("kind", ["BPE", "WordPiece"])
def test_a_split_that_changed_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tokens on the way to those that are used, texts would be read otherwise, and it is found out."""
    monkeypatch.setattr(module, "needed", lambda *_: set())
    with pytest.raises(UserError, match="reads the text otherwise"):
        test_any_text_is_split_as_before_by_any_tokenizer(kind)


def _model(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    ids = {role: getattr(tokenizer, role) for role in ("pad_token_id", "bos_token_id", "eos_token_id")}
    # some rows more than there are tokens, as many checkpoints have
    made: PreTrainedModel = tiny(name, vocab_size=len(tokenizer) + 5, **ids)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_trimmed_model_says_the_same_of_every_text_of_the_corpus(
    name: str, tokenizers: dict[str, PreTrainedTokenizerBase]
) -> None:
    """States to the bit, logits of the tokens that are left to rounding; positions, padding, ties and ids follow."""
    whole = tokenizers[MODELS[name]]
    model = _model(name, whole)
    layout = Layout.of(model)
    vocabulary, made = vocabulary_of(NARROW, whole, model, layout)
    ours, theirs = (dict(t(NARROW, padding=True, return_tensors="pt")) for t in (made, whole))
    for batch in (ours, theirs):
        batch.pop("token_type_ids", None)
    with torch.no_grad():
        before = model(**theirs, output_hidden_states=True)
        ties = len(layout.tied)
        after_layout = narrow(model, layout, vocabulary)
        after = model(**ours, output_hidden_states=True)
    for one, other in zip(after.hidden_states, before.hidden_states, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(after.logits, before.logits[..., list(vocabulary.rows)], rtol=1e-5, atol=1e-5)
    shape = after_layout.shape(model)
    assert after_layout.count(shape) == sum(p.numel() for p in model.parameters()) < layout.count(shape)
    assert (len(after_layout.tied), model.config.vocab_size) == (ties, len(made))
    for role in ("pad_token_id", "bos_token_id", "eos_token_id"):
        assert getattr(model.config, role) == getattr(made, role)
    if model.can_generate():
        assert model.generation_config.eos_token_id == made.eos_token_id
    assert model.get_input_embeddings().padding_idx in (made.pad_token_id, None)


def test_a_trimmed_model_can_be_cut_further(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """Budgets count what is left."""
    whole = tokenizers["WordPiece"]
    model = _model("BERT", whole)
    narrow(model, Layout.of(model), vocabulary_of(NARROW, whole, model, Layout.of(model))[0])
    planned = shrink(model, "20k")
    assert planned.parameters == sum(p.numel() for p in model.parameters())
    assert planned.missed is not None
    assert abs(planned.missed) < 0.03


def test_a_row_that_the_configuration_names_stays_without_a_token(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """Lists of ids follow; suppressed tokens that are gone are left out; what lies beyond the embeddings is kept."""
    whole = tokenizers["byte-level BPE"]
    model = _model("GPT-2", whole)
    layout, unnamed = Layout.of(model), len(whole) + 2
    gone = max(set(range(len(whole))) - set(vocabulary_of(NARROW, whole, model, layout)[0].rows))
    model.config.pad_token_id, model.config.sep_token_id = unnamed, 50_000
    model.generation_config.eos_token_id = [2, unnamed]
    model.generation_config.suppress_tokens = [0, gone]
    vocabulary, made = vocabulary_of(NARROW, whole, model, layout)
    narrow(model, layout, vocabulary)
    assert vocabulary.rows[-1] == unnamed
    assert model.config.pad_token_id == len(made) == len(vocabulary.rows) - 1
    assert model.generation_config.eos_token_id == [made.eos_token_id, len(made)]
    assert model.generation_config.suppress_tokens == [made.bos_token_id]
    assert model.config.sep_token_id == 50_000


def test_a_token_that_ends_what_is_generated_stays_though_no_text_has_it(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """Where the configuration of generation alone names it."""
    whole = tokenizers["byte-level BPE"]
    model = _model("GPT-2", whole)
    layout = Layout.of(model)
    unused = min(set(range(len(whole))) - set(vocabulary_of(NARROW, whole, model, layout)[0].rows))
    model.generation_config.eos_token_id = [whole.eos_token_id, unused]
    vocabulary, made = vocabulary_of(NARROW, whole, model, layout)
    narrow(model, layout, vocabulary)
    named = whole.convert_ids_to_tokens(unused)
    assert model.generation_config.eos_token_id == [made.eos_token_id, made.convert_tokens_to_ids(named)]
    assert made.get_vocab()[named] == vocabulary.rows.index(unused)


def test_words_that_generation_forbids_or_favours_keep_their_tokens(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """Under their new numbers; one with a token that is gone is left out, for it cannot be said any more."""
    whole = tokenizers["byte-level BPE"]
    model = _model("GPT-2", whole)
    layout = Layout.of(model)
    rows = set(vocabulary_of(NARROW, whole, model, layout)[0].rows)
    gone, (one, two) = max(set(range(len(whole))) - rows), sorted(rows)[-2:]
    said = model.generation_config
    said.bad_words_ids = [[one], [gone], [two, one], [one, gone]]
    said.sequence_bias = [[[two, one], 2.0], [[gone, one], 3.0]]
    said.force_words_ids = [[[one], [gone]], [[gone]], [two]]
    said.begin_suppress_tokens = [gone]
    model.config.bad_words_ids = [[gone]]
    vocabulary, _ = vocabulary_of(NARROW, whole, model, layout)
    narrow(model, layout, vocabulary)
    one, two = (vocabulary.rows.index(row) for row in (one, two))
    assert set(vocabulary.rows) == rows
    assert said.bad_words_ids == [[one], [two, one]]
    assert said.sequence_bias == [[[two, one], 2.0]]
    assert said.force_words_ids == [[[one]], [two]]
    assert said.begin_suppress_tokens is model.config.bad_words_ids is None
    said.force_words_ids = None
    assert one not in model.generate(torch.tensor([[4, 5]]), max_new_tokens=9, do_sample=False)[0, 2:]


@pytest.mark.parametrize("name", ["<extra_id_{}>", "▁<extra_id_{}>"])
def test_sentinels_stay_though_no_text_has_any(name: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """A model that learns by them speaks of spans by them; mT5's are pieces of its vocabulary and have no role."""
    spec = json.loads(tokenizers["Unigram"].backend_tokenizer.to_str())
    sentinels = [name.format(k) for k in range(3)]
    spec["model"]["vocab"][5:5] = [[sentinel, 0.0] for sentinel in sentinels]
    for added in spec["added_tokens"]:
        added["id"] += 3 * (added["id"] > 4)
    _, whole, made = _trim(wrapped(Tokenizer.from_str(json.dumps(spec))), NARROW)
    assert not set(sentinels) & set(whole.all_special_tokens)
    assert set(sentinels) <= set(made.get_vocab())


def test_padding_keeps_its_number_where_positions_are_counted_from_it(
    tokenizers: dict[str, PreTrainedTokenizerBase],
) -> None:
    """RoBERTa's first position is the padding's number plus one: every token before the padding stays."""
    whole = tokenizers["Unigram"]
    model = tiny("XLM-R", vocab_size=len(whole), pad_token_id=40)
    vocabulary, _ = vocabulary_of(NARROW, whole, model, Layout.of(model))
    assert vocabulary.rows[:41] == tuple(range(41))


def test_what_is_left_is_the_same_after_it_was_written_down(tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """A run that is resumed makes the very same tokenizer out of the list of rows."""
    vocabulary, whole, made = _trim(tokenizers["Metaspace BPE"], NARROW)
    again = with_vocabulary(whole, Vocabulary.from_json(vocabulary.as_json()))
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(made.backend_tokenizer.to_str())


@pytest.mark.parametrize("broken", ["python", "dropout", "no text", "no axis"])
def test_what_cannot_be_trimmed_is_refused(broken: str, tokenizers: dict[str, PreTrainedTokenizerBase]) -> None:
    """In three sentences, before anything is changed."""
    tokenizer: Any = tokenizers["byte-level BPE"]
    model = tiny("BERT", vocab_size=600)
    layout = Layout.of(model)
    if broken == "python":
        tokenizer = ByT5Tokenizer()
    elif broken == "dropout":
        tokenizer = wrapped(
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace('"dropout":null', '"dropout":0.1'))
        )
    elif broken == "no axis":
        layout.fixed.pop("vocab")  # type: ignore[attr-defined]
    said = {
        "python": "written in Python",
        "dropout": "draws how it splits",
        "no text": "is empty",
        "no axis": "'vocab'",
    }
    with pytest.raises(UserError, match=said[broken]) as caught:
        vocabulary_of([] if broken == "no text" else NARROW, tokenizer, model, layout)
    assert len(str(caught.value).splitlines()) == 3
