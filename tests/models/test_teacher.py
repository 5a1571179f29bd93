"""What teachers come with, and what they are given that their folders leave out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentencepiece import SentencePieceTrainer
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    BertModel,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

import homodistil
from conftest import WORDS
from homodistil.axes.layout import Layout
from homodistil.data.collate import padded
from homodistil.errors import UserError
from homodistil.models.kind import kind_of
from homodistil.models.teacher import architecture, load_teacher
from zoo import tiny

QUICK: dict[str, Any] = {"steps": 4, "batch": 4, "text": {"length": 32}, "precision": "fp32"}
CONFIG = LlamaConfig(
    vocab_size=5 + len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, pad_token_id=None, bos_token_id=2, eos_token_id=3,
)  # fmt: skip


def _saved(model_class: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, **roles: str | None) -> Path:
    """A decoder whose configuration knows no padding, with a tokenizer whose special tokens have only these roles."""
    torch.manual_seed(0)
    model_class(CONFIG).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(file.read_text()).items() if not k.endswith("_token")}
    file.write_text(json.dumps(kept | {"tokenizer_class": "PreTrainedTokenizerFast"} | roles))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return folder


def test_a_decoder_with_a_head_for_labels_pads_as_its_tokenizer_does(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Its configuration is told which token that is, and so is its student's, which reads texts side by side."""
    teacher = _saved(LlamaForSequenceClassification, tokenizer, tmp_path / "teacher", eos_token="[SEP]")
    made = homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **QUICK).students["0.5"]
    student = LlamaForSequenceClassification.from_pretrained(made).eval()
    assert student.config.pad_token_id == tokenizer.sep_token_id
    one, two = torch.tensor([[7, 8, 9]]), torch.tensor([[7, 8, 9, 3, 3], [7, 8, 9, 10, 11]])
    with torch.no_grad():
        alone = student(one).logits
        beside = student(two, attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5])).logits
    torch.testing.assert_close(beside[:1], alone, rtol=1e-4, atol=1e-5)


def test_a_head_for_labels_without_any_padding_is_refused(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Nobody knows which token its label is read off; nothing is written."""
    teacher = _saved(LlamaForSequenceClassification, tokenizer, tmp_path / "teacher")
    with pytest.raises(UserError, match="which token is padding"):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_language_model_needs_no_token_for_padding(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """What stands in padding is read by nobody."""
    teacher = _saved(LlamaForCausalLM, tokenizer, tmp_path / "teacher")
    made = homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **QUICK).students["0.5"]
    assert LlamaForCausalLM.from_pretrained(made).config.hidden_size == 16
    plain = load_teacher(str(teacher)).tokenizer
    assert plain.pad_token_id is None
    batch = padded([[7, 8, 9], [7] * 9], plain)
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]
    assert not bool((batch["ordinary"] * (1 - batch["attention_mask"])).any())


def test_no_keys_and_values_are_kept_for_a_token_that_never_comes(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be held through the backward pass."""

    def kept(*_: Any, **__: Any) -> Any:
        raise AssertionError

    teacher = _saved(LlamaForCausalLM, tokenizer, tmp_path / "teacher", eos_token="[SEP]")
    monkeypatch.setattr(DynamicCache, "update", kept)
    assert homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **QUICK).students["0.5"].exists()


@pytest.mark.parametrize("name", ["T5", "T5 v1.1", "BERT encoder", "Llama"])
def test_what_is_planned_is_what_is_opened(name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Two matrices that the configuration ties and the file does not are two; a pooler that is not there is none."""
    model = tiny(name) if name != "BERT encoder" else BertModel(tiny("BERT").config, add_pooling_layer=False)
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    figures, _ = homodistil.plan(tmp_path, "0.5")
    opened = load_teacher(str(tmp_path))
    assert figures.parameters == sum(p.numel() for p in opened.model.parameters())
    assert architecture(str(tmp_path))[0].tied.keys() == opened.layout.tied.keys()


def test_options_of_generation_that_say_nothing_are_no_obstacle(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """The library reads them and refuses to write them; what else it would not write is refused before the run."""
    teacher = _saved(LlamaForCausalLM, tokenizer, tmp_path / "teacher", eos_token="[SEP]", pad_token="[PAD]")
    said = teacher / "generation_config.json"
    said.write_text(json.dumps({"temperature": 0.6, "length_penalty": 2.0, "eos_token_id": 3}))
    made = homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", trim_vocab=True, **QUICK).students["0.5"]
    assert not {"temperature", "length_penalty"} & json.loads((made / "generation_config.json").read_text()).keys()
    assert homodistil.trim_vocabulary(teacher, corpus, tmp_path / "trimmed").folder.exists()
    said.write_text(json.dumps({"output_scores": True}))
    with pytest.raises(UserError, match=r"generation_config.json(?s:.*)delete it"):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "other", **QUICK)
    said.write_text(json.dumps({"pad_token_id": -3}))
    with pytest.raises(UserError, match="pad_token_id"):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "other", **QUICK)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("number", [0, -1])
def test_a_head_for_labels_looks_for_the_padding_that_texts_have(
    number: int, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A decoder's, whatever number its configuration names; it is what the tokenizer pads with that stands there."""
    folder = _saved(LlamaForSequenceClassification, tokenizer, tmp_path, eos_token="[SEP]")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": number}))
    teacher = load_teacher(str(folder))
    assert teacher.model.config.pad_token_id == teacher.tokenizer.pad_token_id == tokenizer.sep_token_id


def test_no_other_token_becomes_padding(save_teacher: Callable[..., Path]) -> None:
    """An encoder's configuration may name a word: nothing is read off it."""
    teacher = load_teacher(str(save_teacher(BertForSequenceClassification, pad_token_id=7)))
    assert teacher.tokenizer.pad_token == "[PAD]"
    assert len(teacher.tokenizer.all_special_ids) == 5


def test_texts_are_not_cut_by_the_tokenizer_that_is_saved(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    """How long the run's own texts may be is no property of the student's."""
    made = homodistil.distil(encoder, corpus, "0.5", tmp_path / "run", **QUICK).students["0.5"]
    assert json.loads((made / "tokenizer.json").read_text())["truncation"] is None


def test_a_tokenizer_may_be_a_model_of_sentencepiece_alone(tmp_path: Path) -> None:
    """As those of DeBERTa v3 and mT5 lie on the hub."""
    learnt = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20), model_writer=learnt, vocab_size=40, hard_vocab_limit=False,
        pad_id=0, unk_id=1, eos_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    tiny("T5", vocab_size=200).save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(learnt.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
    assert load_teacher(str(tmp_path)).tokenizer(WORDS[1])["input_ids"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_a_precision_that_the_configuration_leaves_out_is_that_of_the_weights(
    shards: str, dtype: torch.dtype, save_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    """In one file or several, as transformers takes it by dtype="auto"; the teacher itself is in float32."""
    folder = Path(shutil.copytree(save_teacher(BertModel), tmp_path / "model"))
    model = BertModel.from_pretrained(folder, dtype=dtype)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=shards)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    assert (folder / "model.safetensors").exists() == (shards == "1GB")
    assert BertModel.from_pretrained(folder, dtype="auto").dtype == dtype
    teacher = load_teacher(str(folder))
    assert (teacher.dtype, teacher.model.dtype) == (dtype, torch.float32)


def test_a_configuration_of_another_code_is_refused_in_words(save_teacher: Callable[..., Path], tmp_path: Path) -> None:
    """Only the tokenizer that comes with a model may be code."""
    folder = shutil.copytree(save_teacher(BertModel), tmp_path / "own")
    (folder / "own.py").write_text(
        "from transformers import BertConfig\n\n\nclass OwnConfig(BertConfig):\n    model_type = 'bert'\n"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "own.OwnConfig"}}))
    assert load_teacher(str(folder)).kind == "similarity"
    with pytest.raises(UserError, match="leave --trust_remote_code out"):
        load_teacher(str(folder), trust_remote_code=True)


def test_a_sentence_encoder_of_a_class_of_its_own_is_refused(save_teacher: Callable[..., Path], tmp_path: Path) -> None:
    """Its users open that class; one of transformers that its weights fit would be another model."""
    folder = tmp_path / "own"
    SentenceTransformer(str(save_teacher(BertModel))).save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModel": "own.OwnModel"}}
    for change in (own, {"architectures": ["OwnModel"]}, {"architectures": None, **own}):
        (folder / "config.json").write_text(json.dumps(config | change))
        for trust in (False, True):
            with pytest.raises(UserError, match="transformers has no class OwnModel"):
                load_teacher(str(folder), trust_remote_code=trust)


def test_a_student_names_no_code_that_is_not_there(
    save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """Whoever trusts code opens it too, where its teacher's came with code of a class that transformers has by now."""
    folder = shutil.copytree(save_teacher(BertModel), tmp_path / "both")
    (folder / "own.py").write_text("from transformers import BertConfig, BertModel\n")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.BertConfig", "AutoModel": "own.BertModel"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": classes}))
    made = homodistil.distil(folder, corpus, "0.5", tmp_path / "run", steps=2, batch=4, text={"length": 24})
    opened = AutoModel.from_pretrained(made.students["0.5"], trust_remote_code=True)
    assert type(opened) is BertModel


def test_an_encoder_decoder_is_one_whatever_its_name_ends_in() -> None:
    """Marian's ends as a bare encoder's does, which was told to be saved as what it is."""
    assert kind_of(MarianMTModel, MarianConfig()) == kind_of(T5ForConditionalGeneration, T5Config()) == "seq2seq-lm"
    with pytest.raises(UserError, match="Cannot distil a LlavaForConditionalGeneration"):
        kind_of(LlavaForConditionalGeneration, LlavaConfig())


def test_a_head_for_several_numbers_is_refused(save_teacher: Callable[..., Path]) -> None:
    """A softmax over them would not see what all have in common."""
    folder = save_teacher(BertForSequenceClassification, problem_type="regression", num_labels=3)
    with pytest.raises(UserError, match="tells 3 numbers of a text"):
        load_teacher(str(folder))
    assert load_teacher(str(save_teacher(BertForSequenceClassification, problem_type="regression", num_labels=1)))


@pytest.mark.parametrize("key", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx"])
def test_scores_that_are_divided_otherwise_are_refused(key: str) -> None:
    """A saved student of such a GPT-2 would be another model than the one that was distilled."""
    config = GPT2Config(n_embd=48, n_head=4, n_layer=2, vocab_size=32, **{key: key != "scale_attn_weights"})
    with pytest.raises(UserError, match=key):
        Layout.of(GPT2LMHeadModel(config))


def test_texts_have_as_many_positions_as_follow_the_number_of_the_padding(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Of RoBERTa and its kin, whatever that number is: no text is longer than the model can read."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    config = RobertaConfig(vocab_size=32, max_position_embeddings=40, pad_token_id=6, **sizes)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    options: dict[str, Any] = {"steps": 2, "batch": 4, "precision": "fp32", "text": {"length": 33}}
    homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "fits", **options)
    with pytest.raises(UserError, match="33"):
        homodistil.distil(tmp_path / "teacher", corpus, "0.5", tmp_path / "not", **options | {"text": {"length": 34}})


@pytest.mark.parametrize("name", ["RoBERTa", "Llama", "T5", "ALBERT"])
@pytest.mark.parametrize("said", [{"output_attentions": True}, {"return_dict": False}, {"chunk_size_feed_forward": 4}])
def test_what_a_configuration_says_of_answers_changes_no_student(
    name: str, said: dict[str, Any], tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Whether maps of attention are told, and answers have names, or a sequence is read in pieces."""
    folder = tmp_path / "teacher"
    made: list[Path] = []
    tiny(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for more in ({}, said):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | more))
        out = tmp_path / f"run{len(made)}"
        made.append(homodistil.distil(folder, corpus, "0.5", out, **QUICK).students["0.5"] / "model.safetensors")
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "said", "why"),
    [
        ("BERT", {"position_embedding_type": "relative_key"}, "position_embedding_type = relative_key"),
        ("Llama", {"is_causal": False}, "attends to the tokens that follow"),
        ("RoBERTa sequence", {"num_labels": 0}, "without labels"),
    ],
)
def test_what_a_model_would_not_be_computed_as_is_refused(
    name: str, said: dict[str, Any], why: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Positions that transformers forgets, a language model that sees what it predicts, a head that tells nothing."""
    tiny(name).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with pytest.raises(UserError, match=why):
        load_teacher(str(tmp_path / "teacher"))
