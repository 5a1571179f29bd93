"""Which models a run may start from, beside its teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
)

import homodistil
from homodistil.errors import UserError
from zoo import VOCAB, tiny

QUICK: dict[str, Any] = {"steps": 4, "batch": 4, "text": {"length": 32}, "precision": "fp32"}


@pytest.fixture
def classifier(save_teacher: Callable[..., Path]) -> Path:
    """A teacher with two labels, and room for as many tokens as the zoo's models have."""
    return save_teacher(BertForSequenceClassification, vocab_size=VOCAB, max_position_embeddings=66)


def _saved(name: str, folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> str:
    tiny(name, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", ["DistilBERT", "ModernBERT", "DeBERTa", "ALBERT", "EuroBERT"])
def test_a_classifier_of_another_family_learns_by_what_can_be_compared(
    name: str, classifier: Path, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Where its attention cannot be, that is said before anything is written; else it is trained and saved."""
    student = _saved(f"{name} sequence", tmp_path / "student", tokenizer)
    options: dict[str, Any] = {**QUICK, "student": student}
    if name not in ("DistilBERT", "ALBERT"):
        with pytest.raises(UserError, match=rf"attention of .*, a {name} model(?s:.*)--losses\.attention 0"):
            homodistil.distil(classifier, corpus, "0.5", tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
        options["losses"] = {"attention": 0}
    made = homodistil.distil(classifier, corpus, "0.5", tmp_path / "run", **options).students["0.5"]
    assert AutoModelForSequenceClassification.from_pretrained(made).config.hidden_size == 24


@pytest.mark.parametrize(
    ("names", "fits"),
    [(("bad", "good"), True), (("BAD", "Good"), True), (("LABEL_0", "LABEL_1"), True), (("good", "bad"), False)],
)
def test_a_student_calls_its_labels_as_its_teacher_does(
    names: tuple[str, ...], fits: bool, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """It learns the teacher's by their places; labels without names may be any."""
    teacher, student = (
        save_teacher(
            BertForSequenceClassification,
            id2label=dict(enumerate(own)),
            label2id={name: k for k, name in enumerate(own)},
        )
        for own in (("bad", "good"), names)
    )
    options: dict[str, Any] = {**QUICK, "student": str(student)}
    if fits:
        assert homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **options).students["0.5"].exists()
        return
    with pytest.raises(UserError, match="its label 0 is good, its teacher's bad"):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("length", [36, 40])
def test_texts_are_no_longer_than_the_student_has_positions_for(
    length: int, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """As they are no longer than its teacher has; a batch is not padded beyond them either."""
    student = save_teacher(BertForMaskedLM, max_position_embeddings=36)
    options: dict[str, Any] = {**QUICK, "student": str(student), "text": {"length": length}}
    teacher = save_teacher(BertForMaskedLM)
    if length == 36:
        made = homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **options).students["0.5"]
        # its users cut their texts by what it is saved with
        assert AutoTokenizer.from_pretrained(made).model_max_length == 36
        return
    with pytest.raises(UserError, match=r"student has positions for 36(?s:.*)--text\.length 36"):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_student_that_looks_back_learns_no_first_token(
    encoder: Path, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """It sees no other one: all texts would have one embedding. By a mean, or the last token, it may learn."""
    student = _saved("GPT-2 encoder", tmp_path / "student", tokenizer, vocab_size=27)
    options: dict[str, Any] = {**QUICK, "student": student, "losses": {"attention": 0.0}}
    for mode in ("cls", "mean"):
        whole = Transformer(str(encoder))
        pooling = Pooling(48, pooling_mode=mode)
        SentenceTransformer(modules=[whole, pooling]).save(str(tmp_path / mode))
    with pytest.raises(UserError, match="all texts would have one embedding"):
        homodistil.distil(tmp_path / "cls", corpus, "0.5", tmp_path / "run", **options)
    assert homodistil.distil(tmp_path / "mean", corpus, "0.5", tmp_path / "run", **options).students


@pytest.mark.parametrize("name", ["BART", "T5 v1.1"])
def test_a_student_of_an_encoder_decoder_has_the_teachers_layers_on_each_side(
    name: str, corpus: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As many in all, one side the deeper in the other's stead, would be compared across the sides."""
    sides = ("encoder_layers", "decoder_layers") if name == "BART" else ("num_layers", "num_decoder_layers")
    teacher, alike, other = (
        _saved(name, tmp_path / f"{encoder}-{decoder}", tokenizer, **dict(zip(sides, (encoder, decoder), strict=True)))
        for encoder, decoder in ((3, 2), (3, 2), (2, 3))
    )
    assert homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", student=alike, **QUICK).students["0.5"].exists()
    with pytest.raises(UserError, match="other numbers of layers than its teacher"):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "other", student=other, **QUICK)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"hidden_size": 96}, {}, "must not be larger than its teacher"),
        ({"num_attention_heads": 2}, {}, "--losses.attention 0"),
        ({"num_hidden_layers": 3}, {}, "must not be larger than its teacher"),
        ({"vocab_size": 64}, {}, "with the teacher's vocabulary and labels"),
    ],
)
def test_a_student_that_does_not_fit_its_teacher_is_refused(
    changes: dict[str, int],
    options: dict[str, Any],
    said: str,
    masked_lm: Path,
    save_teacher: Callable[..., Path],
    corpus: Path,
    tmp_path: Path,
) -> None:
    """Larger ones, and ones whose heads cannot be told apart; nothing is written."""
    student = save_teacher(BertForMaskedLM, **changes)
    with pytest.raises(UserError, match=said):
        homodistil.distil(masked_lm, corpus, "1.0", tmp_path / "run", student=str(student), **QUICK, **options)
    assert not (tmp_path / "run").exists()


def test_a_language_model_of_another_family_is_no_student(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """What makes logits is asked for by the teacher's names."""
    student = tiny("DistilBERT")
    student.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(masked_lm).save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match="of its family"):
        homodistil.distil(masked_lm, corpus, "1.0", tmp_path / "run", student=str(tmp_path / "student"), **QUICK)
    assert not (tmp_path / "run").exists()
