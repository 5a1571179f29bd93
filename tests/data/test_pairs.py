"""What encoder-decoders learn from: batches of sources and targets, made by noise or given."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

import homodistil
from homodistil.axes.layout import Layout
from homodistil.compress.compensate import InputMoments
from homodistil.data.cutter import Cutter
from homodistil.data.pairs import PairCollator, given
from homodistil.errors import UserError
from homodistil.noise import noise_of
from zoo import inputs, tiny


def _blocks(tokenizer: Any) -> list[list[int]]:
    """Blocks of random words between special tokens."""
    words = torch.randint(5, 27, (6, 38), generator=torch.Generator().manual_seed(0))
    return [[tokenizer.cls_token_id, *row, tokenizer.sep_token_id] for row in words.tolist()]


def test_what_is_said_to_a_text_is_split_as_before_where_prompts_stand_before_the_text(tmp_path: Path) -> None:
    """A vocabulary is trimmed to texts after their prompt, and to targets after none."""
    spelt = Tokenizer(BPE())
    spelt.pre_tokenizer = ByteLevel(add_prefix_space=False)
    rows = [{"text": f"the {a} cat", "said": f"{b} dog"} for a in ("red", "old") for b in ("One", "Two")] * 9
    every = [text for row in rows for text in row.values()]
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=["<s>", "<pad>", "</s>", "<mask>"], initial_alphabet=ByteLevel.alphabet()
    )
    spelt.train_from_iterator([*every, *(f"sum: {text}" for text in every)], trainer)
    spelt.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    before = PreTrainedTokenizerFast(
        tokenizer_object=spelt, bos_token="<s>", pad_token="<pad>", eos_token="</s>", mask_token="<mask>"
    )
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    tiny("BART", vocab_size=len(before), forced_eos_token_id=2, **ends).save_pretrained(tmp_path / "teacher")
    before.save_pretrained(tmp_path / "teacher")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"length": 32, "target": "said", "prompts": ["sum: "]}
    options: dict[str, Any] = {"steps": 2, "batch": 4, "text": columns, "trim_vocab": True}
    made = homodistil.distil(tmp_path / "teacher", tmp_path / "pairs.jsonl", "0.5", tmp_path / "run", **options)
    after = AutoTokenizer.from_pretrained(made.students["0.5"])
    for text in (*(row["said"] for row in rows), *(f"sum: {row['text']}" for row in rows)):
        assert after.tokenize(text) == before.tokenize(text)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_a_budget_counts_the_tokens_of_both_sides(name: str, tokenizer: Any, corpus: Path, tmp_path: Path) -> None:
    """What noise makes of a block is a source and a target, by a mask nearly twice as long together."""
    tiny(name).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    options: dict[str, Any] = {"tokens": "4k", "batch": 4, "text": {"length": 32}, "log_every": 1}
    homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "run", **options)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["tokens"] == pytest.approx(4000, rel=0.1)


def test_pair_batches_are_a_function_of_seed_and_index(tokenizer: Any) -> None:
    """The decoder reads the target one place to the right, and each position predicts what the target says there."""
    blocks, collate = _blocks(tokenizer), PairCollator(tokenizer, noise_of(tokenizer), 0, seed=3)
    batch, again, other = collate(blocks, 4), collate(blocks, 4), collate(blocks, 5)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    read = batch["decoder_input_ids"]
    assert read[:, 0].eq(0).all()
    assert batch["decoder_attention_mask"].sum(1).tolist() == [40] * 6
    labels = batch["labels"].view(6, 40)
    assert torch.equal(read[:, 1:40], labels[:, :-1])
    assert torch.equal(batch["positions"], batch["decoder_attention_mask"].flatten().nonzero()[:, 0])
    # the five special tokens of the vocabulary are its first
    for side in ("", "decoder_"):
        assert torch.equal(batch[f"{side}ordinary"], (batch[f"{side}input_ids"] >= 5).long())


def test_given_pairs_reach_the_model_as_they_are(tokenizer: Any, tmp_path: Path) -> None:
    """A file of pairs is read with both columns, each cut at the length of its own; half a pair is left out."""
    from homodistil.data.corpus import load_corpus

    rows = [{"question": "the red cat sees", "answer": "a man"}, {"question": "on the house", "answer": "near"}] * 8
    rows += [{"question": "alone", "answer": ""}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(
        str(tmp_path / "pairs.jsonl"), tokenizer, column="question", target="answer", length=5, packed=False, batch=4
    )
    seen = {tuple(s) for _, s in zip(range(40), corpus.train.sequences(0), strict=False)}
    sides = sorted(given(sequence, torch.Generator()) for sequence in seen)
    expected = [("the red cat", "a man"), ("on the house", "near")]
    assert sides == sorted(tuple(tokenizer(text)["input_ids"] for text in pair) for pair in expected)


def test_a_pair_of_which_a_side_makes_no_token_is_left_out() -> None:
    """By a tokenizer that puts nothing around a text; each position predicts the token of its own target."""
    spelt = Tokenizer(BPE())
    spelt.normalizer = Replace("\u200b", "")
    spelt.pre_tokenizer = ByteLevel(add_prefix_space=False)
    spelt.train_from_iterator([], BpeTrainer(special_tokens=["<pad>"], initial_alphabet=ByteLevel.alphabet()))
    bare = PreTrainedTokenizerFast(tokenizer_object=spelt, pad_token="<pad>", model_max_length=64)
    cutter = Cutter(bare, "text", 16, packed=False, target="said")
    made = cutter({"text": ["a", "b", "\u200b", "c"], "said": ["\u200b", "d", "e", "f"]})
    sides = [tuple(map(bare.decode, given(sequence, torch.Generator()))) for sequence in made["input_ids"]]
    assert sides == [("b", "d"), ("c", "f")]
    assert made["opening"] == [0, 0]
    batch = PairCollator(bare, given, 0, seed=0)(made["input_ids"], 0)
    assert len(batch["positions"]) == len(batch["labels"])


def test_a_run_on_given_pairs_ends_in_a_student(tokenizer: Any, tmp_path: Path) -> None:
    """Distilled on pairs of two columns, trimmed to the tokens of both."""
    tiny("T5").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"source": f"the {a} cat sees the {b} dog", "said": f"{b} near {a}"} for a in ("red", "old", "big")
            for b in ("one", "two", "small")] * 6  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {"data": tmp_path / "pairs.jsonl", "target": "0.7", "steps": 6, "batch": 8}
    columns = {"column": "source", "target": "said", "length": 16}
    result = homodistil.distil(
        tmp_path / "teacher", out=tmp_path / "run", text=columns, trim_vocab=True, log_every=1, **options
    )
    student = T5ForConditionalGeneration.from_pretrained(result.students["0.7"])
    words = {word for row in rows for text in row.values() for word in text.split()}
    kept = AutoTokenizer.from_pretrained(result.students["0.7"]).get_vocab()
    assert words < set(kept)
    assert not {"house", "takes", "under"} & set(kept)
    assert student.config.vocab_size == len(kept) < 27
    assert 0 <= result.heldout["0.7"]["agreement"] <= 1
    with pytest.raises(UserError, match=r"column 'nothing'.*\n.*\n.*--text.target"):
        homodistil.distil(tmp_path / "teacher", out=tmp_path / "no", text=columns | {"target": "nothing"}, **options)


def test_what_cannot_be_paired_is_refused(
    tokenizer: Any, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """An encoder with targets, pairs in blocks, no sentinels or mask, a decoder that does not know where to start."""
    with pytest.raises(UserError, match=r"text\.target = answer"):
        homodistil.distil(save_teacher(BertForMaskedLM), corpus, "0.5", tmp_path / "run", text={"target": "answer"})
    tiny("T5").save_pretrained(tmp_path / "packs")
    tokenizer.save_pretrained(tmp_path / "packs")
    with pytest.raises(UserError, match=r"text\.packing = blocks, text\.target = answer"):
        homodistil.distil(
            tmp_path / "packs", corpus, "0.5", tmp_path / "run", text={"target": "answer", "packing": "blocks"}
        )
    tiny("T5").save_pretrained(tmp_path / "bare")
    bare = copy.deepcopy(tokenizer)
    bare.mask_token = None
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"sentinels.*\n.*--text.column.*--text.target"):
        homodistil.distil(tmp_path / "bare", corpus, "0.5", tmp_path / "run", text={"length": 32})
    model = tiny("T5")
    del model.config.decoder_start_token_id
    model.generation_config.decoder_start_token_id = None
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="decoder_start_token_id"):
        homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "run", text={"length": 32})


def test_a_bare_encoder_decoder_is_refused_as_one(tokenizer: Any, corpus: Path, tmp_path: Path) -> None:
    """Without its head there is nothing that it says."""
    from transformers import T5Model

    T5Model(tiny("T5").config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(UserError, match="AutoModelForSeq2SeqLM"):
        homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "run", text={"length": 32})


def _counted(name: str) -> tuple[dict[str, int], int]:
    """By how many tokens each layer was listened to, two of which are the target's, and how many the source has."""
    model = tiny(name)
    moments = InputMoments(model, Layout.of(model))
    batch, mask = inputs(model)
    few = torch.zeros_like(mask)
    few[0, :2] = 1
    with torch.no_grad(), moments.listening(mask, few):
        model(**batch)
    return {layer: int(count) for layer, count in moments.counts.items()}, mask.numel()


def test_a_decoder_is_listened_to_by_its_own_tokens() -> None:
    """Moments of each side count that side's tokens, whether the two are equally long or not."""
    counts, source = _counted("T5 v1.1")
    assert {count for name, count in counts.items() if name.startswith("encoder.")} == {source}
    assert {count for name, count in counts.items() if name.startswith("decoder.")} == {2}


def test_what_looks_across_is_listened_to_by_the_tokens_of_the_source() -> None:
    """Keys and values of BART's cross-attention read what the encoder made, its queries what the decoder did."""
    counts, source = _counted("BART")
    across = {name.partition("encoder_attn.")[2]: count for name, count in counts.items()}
    assert (across["k_proj"], across["v_proj"], across["q_proj"]) == (source, source, 2)


def test_a_head_apart_from_the_embeddings_stays_apart(tmp_path: Path) -> None:
    """T5 v1.1 is published with a head of its own, which a cut and a new start must not tie."""
    model = tiny("T5 v1.1")
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(tmp_path / "whole")
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "whole").eval()
    layout = Layout.of(model)
    assert "lm_head.weight" not in layout.tied
    homodistil.shrink(model, "0.5")
    model.save_pretrained(tmp_path / "half")
    again = T5ForConditionalGeneration.from_pretrained(tmp_path / "half").eval()
    batch, _ = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, again(**batch).logits)
