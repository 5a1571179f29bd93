"""Folders of sentence encoders: what older versions of the library wrote, and what is torn or missing."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertForSequenceClassification, BertTokenizer

import homodistil
from conftest import WORDS
from homodistil.errors import UserError
from homodistil.models.teacher import load_teacher

CAPITALS = ["the Big RED cat", "ONE dog Sees a tree"]
TEXTS = ["the cat sees a dog", "a man", "one old house near the big red tree likes the small blue man"]


@pytest.fixture
def folder(encoder: Path, tmp_path: Path) -> Path:
    """One as it is written today: the transformer lies in the folder itself."""
    made = tmp_path / "encoder"
    SentenceTransformer(modules=[Transformer(str(encoder)), Pooling(48, "mean"), Normalize()]).save(str(made))
    return made


@pytest.fixture
def old(folder: Path, tmp_path: Path) -> Path:
    """The same as it was written at first: the transformer and its tokenizer lie in a folder of their own."""
    made = tmp_path / "old"
    (made / "0_Transformer").mkdir(parents=True)
    for place in folder.iterdir():
        if place.is_dir():
            shutil.copytree(place, made / place.name)
        elif place.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            shutil.copy(place, made / "0_Transformer")
    options = made / "0_Transformer" / "sentence_bert_config.json"
    options.write_text(json.dumps({"max_seq_length": 9, "do_lower_case": False}))
    options.rename(options.with_name("sentence_roberta_config.json"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (made / "modules.json").write_text(json.dumps(modules))
    return made


def test_a_transformer_in_a_folder_of_its_own_is_found_with_its_tokenizer(
    old: Path, folder: Path, tmp_path: Path
) -> None:
    """Planned and trimmed as any other; the library makes the same embeddings of what is saved, cut off alike."""
    assert homodistil.plan(old, "0.5", data=TEXTS) == homodistil.plan(folder, "0.5", data=TEXTS)
    made = homodistil.trim_vocabulary(old, TEXTS, tmp_path / "trimmed")
    assert made.tokens[1] < made.tokens[0]
    saved, source = SentenceTransformer(str(made.folder)), SentenceTransformer(str(old))
    assert saved.max_seq_length == source.max_seq_length == 9
    np.testing.assert_allclose(saved.encode(TEXTS), source.encode(TEXTS), atol=1e-6)


def test_a_student_of_an_encoder_in_an_old_folder_is_one_that_the_library_opens(
    old: Path, corpus: Path, tmp_path: Path
) -> None:
    """One that is whole and has not learnt makes its teacher's embeddings; a cut one is narrower."""
    options: dict[str, Any] = {"steps": 4, "batch": 4, "text": {"length": 24}, "optim": {"learning_rate": 1e-9}}
    made = homodistil.distil(old, corpus, ["1.0", "0.5"], tmp_path / "run", precision="fp32", **options).students
    whole, half = (SentenceTransformer(str(made[target])) for target in ("1.0", "0.5"))
    np.testing.assert_allclose(whole.encode(TEXTS), SentenceTransformer(str(old)).encode(TEXTS), atol=1e-5)
    assert half.encode(TEXTS).shape == (len(TEXTS), 24)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("modules.json", '[{"idx": 0', "Cannot read .*modules.json"),
        ("modules.json", "[]", "it has no model"),
        ("modules.json", "{}", "it holds a dict, not a list"),
        ("modules.json", '[{"idx": 0}]', "Cannot distil"),
        ("1_Pooling/config.json", None, "No such file"),
        ("1_Pooling/config.json", "{", "Cannot read .*config.json"),
        ("1_Pooling/config.json", "[]", "it holds a list, not a dict"),
        ("config_sentence_transformers.json", '{"prompts"', "Cannot read .*config_sentence_transformers.json"),
        ("config_sentence_transformers.json", b"\xff\xfe{", "Cannot read .*config_sentence_transformers.json"),
    ],
)
def test_a_file_that_is_torn_or_missing_is_named(
    file: str, content: str | bytes | None, said: str, folder: Path
) -> None:
    """By who loads the teacher; who plans reads the modules alone, and says the same of them."""
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=said) as refusal:
        load_teacher(str(folder))
    assert len(str(refusal.value).splitlines()) == 3
    if file == "modules.json":
        with pytest.raises(UserError, match=said):
            homodistil.plan(folder, "0.5")


def test_prompts_are_read_as_utf_8(folder: Path) -> None:
    """Whatever the machine's own encoding is."""
    prompt = f"für {WORDS[0]}: "
    said = {"prompts": {"query": prompt}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_bytes(json.dumps(said, ensure_ascii=False).encode())
    assert load_teacher(str(folder)).prompts == (prompt,)


@pytest.fixture
def cross_encoder(save_teacher: Callable[..., Path], tmp_path: Path) -> Path:
    """A head for one number, saved by sentence-transformers, with modules."""
    plain = save_teacher(BertForSequenceClassification, num_labels=1)
    CrossEncoder(str(plain)).save_pretrained(str(tmp_path / "cross"))
    return tmp_path / "cross"


def test_a_cross_encoder_is_distilled_as_the_classifier_that_it_is(
    cross_encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """Its folder has modules, but no embedding; a whole student that has not learnt scores pairs as it does."""
    (cross_encoder / "modules.json").rename(cross_encoder / "kept.json")
    plain = homodistil.plan(cross_encoder, "0.5")
    (cross_encoder / "kept.json").rename(cross_encoder / "modules.json")
    assert homodistil.plan(cross_encoder, "0.5") == plain
    teacher = load_teacher(str(cross_encoder))
    assert (teacher.kind, teacher.sentence_folder) == ("labels", None)
    options: dict[str, Any] = {"steps": 4, "batch": 4, "text": {"length": 24}, "optim": {"learning_rate": 1e-9}}
    made = homodistil.distil(cross_encoder, corpus, ["1.0", "0.5"], tmp_path / "run", precision="fp32", **options)
    pairs = [(TEXTS[0], text) for text in TEXTS]
    whole, half = (CrossEncoder(str(made.students[target])).predict(pairs) for target in ("1.0", "0.5"))
    np.testing.assert_allclose(whole, CrossEncoder(str(cross_encoder)).predict(pairs), atol=1e-5)
    assert half.shape == whole.shape


@pytest.mark.parametrize("activation", [torch.nn.Identity, torch.nn.Tanh])
def test_a_student_of_a_cross_encoder_scores_by_the_function_and_in_the_letters_of_its_teacher(
    activation: type[torch.nn.Module], cross_encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """What the library puts after the head, and before the tokenizer, is told by files of its own."""
    vocab = AutoTokenizer.from_pretrained(cross_encoder).get_vocab()
    BertTokenizer(vocab=vocab, do_lower_case=False, model_max_length=64).save_pretrained(cross_encoder)
    CrossEncoder(str(cross_encoder), activation_fn=activation()).save_pretrained(str(cross_encoder))
    options = cross_encoder / "sentence_bert_config.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"do_lower_case": True}))
    settings: dict[str, Any] = {"steps": 2, "batch": 4, "text": {"length": 24}, "optim": {"learning_rate": 1e-9}}
    made = homodistil.distil(cross_encoder, corpus, "1.0", tmp_path / "run", precision="fp32", **settings)
    teacher, student = CrossEncoder(str(cross_encoder)), CrossEncoder(str(made.students["1.0"]))
    assert type(student.activation_fn) is activation
    pairs = list(itertools.product(CAPITALS, CAPITALS))
    np.testing.assert_allclose(student.predict(pairs), teacher.predict(pairs), atol=1e-5)
    small = [(a.lower(), b.lower()) for a, b in pairs]
    np.testing.assert_allclose(student.predict(pairs), student.predict(small), atol=1e-6)


def test_a_cross_encoder_of_more_modules_is_refused(cross_encoder: Path) -> None:
    """What they make of a pair no table describes."""
    modules = json.loads((cross_encoder / "modules.json").read_text())
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (cross_encoder / "modules.json").write_text(json.dumps([*modules, pooling]))
    with pytest.raises(UserError, match=r"the cross-encoder .* it has a module Pooling"):
        load_teacher(str(cross_encoder))


@pytest.fixture
def lowering(encoder: Path, folder: Path) -> Path:
    """One with a tokenizer that tells capitals from small letters, of which the folder says that it must not."""
    vocab = BertTokenizer.from_pretrained(encoder).get_vocab()
    BertTokenizer(vocab=vocab, do_lower_case=False, model_max_length=64).save_pretrained(folder)
    options = folder / "sentence_bert_config.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"do_lower_case": True}))
    assert AutoTokenizer.from_pretrained(folder)(CAPITALS[0])["input_ids"].count(1) == 2
    return folder


def _ids(folder: Path) -> list[list[int]]:
    """As the library reads them, which must know each word."""
    ids = [
        row.tolist() for text in CAPITALS for row in SentenceTransformer(str(folder)).preprocess([text])["input_ids"]
    ]
    assert all(1 not in row for row in ids)
    return ids


def test_capitals_are_read_as_the_library_reads_them(lowering: Path, corpus: Path, tmp_path: Path) -> None:
    """As small letters, if the folder says so: by the teacher, and by its student in either library."""
    expected = _ids(lowering)
    tokenizer = load_teacher(str(lowering)).tokenizer
    assert [tokenizer(text)["input_ids"] for text in CAPITALS] == expected
    assert tokenizer("a", "the")["token_type_ids"] == [0, 0, 0, 1, 1]
    options: dict[str, Any] = {"steps": 2, "batch": 4, "text": {"length": 24}}
    student = homodistil.distil(lowering, corpus, "0.5", tmp_path / "run", **options).students["0.5"]
    assert _ids(student) == expected
    assert AutoTokenizer.from_pretrained(student)(CAPITALS)["input_ids"] == expected


def test_a_vocabulary_is_trimmed_to_small_letters_where_they_are_read(lowering: Path, tmp_path: Path) -> None:
    """What is planned and what is saved keep the words that are read, and no capital makes one unknown."""
    small = [text.lower() for text in CAPITALS]
    made = homodistil.trim_vocabulary(lowering, CAPITALS, tmp_path / "trimmed")
    assert made.tokens == homodistil.trim_vocabulary(lowering, small, tmp_path / "small").tokens
    assert made.tokens[1] < made.tokens[0]
    assert homodistil.plan(lowering, "0.5", data=CAPITALS) == homodistil.plan(lowering, "0.5", data=small)
    assert all(_ids(made.folder))
    saved, source = SentenceTransformer(str(made.folder)), SentenceTransformer(str(lowering))
    np.testing.assert_allclose(saved.encode(CAPITALS), source.encode(CAPITALS), atol=1e-6)


def test_a_tokenizer_that_reads_small_letters_by_itself_stays_as_it_is(folder: Path) -> None:
    """Whatever the folder says."""
    options = folder / "sentence_bert_config.json"
    options.write_text(json.dumps(json.loads(options.read_text()) | {"do_lower_case": True}))
    own, made = AutoTokenizer.from_pretrained(folder), load_teacher(str(folder)).tokenizer
    assert type(made) is type(own)
    assert made.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()
