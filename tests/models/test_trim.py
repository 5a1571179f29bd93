"""A run, and a model, with the vocabulary of the text: what its users open, budgets, resuming, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
)

import homodistil
from conftest import WORDS
from homodistil.cli import main
from homodistil.distill import learning, loop
from homodistil.errors import RunStopped, UserError
from homodistil.evaluation.agreement import agreement
from homodistil.evaluation.language import blocks
from homodistil.evaluation.models import open_model
from zoo import tiny

QUICK: dict[str, Any] = {"steps": 8, "batch": 4, "text": {"length": 32}, "precision": "fp32", "log_every": 3}
LEFT = 5 + 12 + 1
"""Special tokens, words of the text, and the one letter that is a token."""

OPEN = """
import sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["the red cat man", "one tree"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape[-1] == len(tokenizer)
    print(len(tokenizer), model.config.vocab_size, *model.get_input_embeddings().weight.shape,
          tokenizer.convert_ids_to_tokens(batch["input_ids"][1].tolist()))
assert "homodistil" not in sys.modules
"""


@pytest.fixture(scope="module")
def few(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus without half of its words, among them the one with a single letter."""
    path = tmp_path_factory.mktemp("few") / "few.txt"
    lines = [" ".join(w for w in line.split() if w in WORDS[1:13]) for line in corpus.read_text().splitlines()]
    path.write_text("\n".join(line for line in lines if line) + "\n")
    return path


def test_a_trimmed_student_opens_in_a_fresh_process(masked_lm: Path, few: Path, tmp_path: Path) -> None:
    """After distillation and without: plain transformers, with a tokenizer and embeddings of the tokens left."""
    result = homodistil.distil(masked_lm, few, "0.5", tmp_path / "run", trim_vocab=True, **QUICK)
    trimmed = homodistil.trim_vocabulary(masked_lm, few, tmp_path / "trimmed")
    assert trimmed.tokens == (27, LEFT)
    assert trimmed.parameters[0] - trimmed.parameters[1] == (27 - LEFT) * (48 + 1)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(result.students["0.5"]), str(trimmed.folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokens = ["[CLS]", "one", "tree", "[SEP]", "[PAD]", "[PAD]"]
    assert done.stdout.splitlines() == [f"{LEFT} {LEFT} {LEFT} {width} {tokens}" for width in (24, 48)]
    card = (result.students["0.5"] / "README.md").read_text()
    assert f"| tokens in the vocabulary | 27 | {LEFT} |" in card
    assert "trim_vocab: true" in card
    kept = json.loads((tmp_path / "run" / "vocabulary.json").read_text())
    assert (kept["teacher"], len(kept["kept"])) == (27, LEFT)


def test_a_trimmed_teacher_and_its_student_begin_as_one(masked_lm: Path, few: Path, tmp_path: Path) -> None:
    """Both number tokens alike: before anything is cut, nothing tells the student from its teacher."""
    options = QUICK | {"log_every": 1, "optim": {"warmup": 0.5}}
    homodistil.distil(masked_lm, few, "0.5", tmp_path / "run", trim_vocab=True, **options)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    # turned heads round otherwise
    assert abs(first["discrepancy"]) < 1e-6
    assert first["terms"]["lm"] > 0


def test_budgets_count_the_tokens_that_are_left(masked_lm: Path, few: Path, tmp_path: Path) -> None:
    """The plan with the text, and the run, come to the same number; the teacher's own figures are whole."""
    teacher, (planned,) = homodistil.plan(masked_lm, "15k", data=few)
    assert teacher.parameters == sum(p.numel() for p in BertForMaskedLM.from_pretrained(masked_lm).parameters())
    result = homodistil.distil(masked_lm, few, "15k", tmp_path / "run", trim_vocab=True, **QUICK)
    student = AutoModelForMaskedLM.from_pretrained(result.students["15k"])
    assert student.num_parameters() == planned.parameters
    assert homodistil.plan(masked_lm, "15k")[1][0].shape != planned.shape
    assert f"{teacher.parameters:,}" in (result.students["15k"] / "README.md").read_text()


def test_a_run_with_a_trimmed_vocabulary_resumes_bit_for_bit(
    masked_lm: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a step; what was kept is read from the run's folder and not counted again."""
    options = QUICK | {"trim_vocab": True}
    whole = homodistil.distil(masked_lm, few, "0.5", tmp_path / "whole", **options)
    real = learning.learn

    def learn(run: Any, batch: Any, step: int, **rest: Any) -> Any:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batch, step, **rest)

    monkeypatch.setattr(loop, "learn", learn)
    with pytest.raises(RunStopped, match="Stopped at step 5"):
        homodistil.distil(masked_lm, few, "0.5", tmp_path / "stopped", **options)
    monkeypatch.setattr("homodistil.distill.prepare.trim_to", lambda *_: pytest.fail("counted again"))
    resumed = homodistil.resume(tmp_path / "stopped")
    files = [p.name for p in whole.students["0.5"].iterdir() if p.name != "README.md"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= set(files)
    for name in files:
        assert (resumed.students["0.5"] / name).read_bytes() == (whole.students["0.5"] / name).read_bytes()
    assert resumed.heldout == whole.heldout


@pytest.mark.parametrize("trimmed_before", [False, True])
def test_a_run_may_start_from_a_student_whose_tokens_are_whole_or_the_same(
    trimmed_before: bool, masked_lm: Path, few: Path, tmp_path: Path
) -> None:
    """A student with the teacher's vocabulary is trimmed too; one that was trimmed to this text is taken as it is."""
    first = homodistil.distil(masked_lm, few, "0.75", tmp_path / "a", trim_vocab=trimmed_before, **QUICK)
    second = homodistil.distil(
        masked_lm, few, "0.5", tmp_path / "b", student=str(first.students["0.75"]), trim_vocab=True, **QUICK
    )
    assert AutoModelForMaskedLM.from_pretrained(second.students["0.5"]).config.vocab_size == LEFT


def test_a_student_gives_no_role_to_a_token_that_is_gone(
    masked_lm: Path, save_teacher: Callable[..., Path], few: Path, tmp_path: Path
) -> None:
    """What is kept are the tokens of the text and of the teacher's roles; others would become what they are not."""
    for number, kept in ((5 + 12, True), (5 + 20, False)):
        student = save_teacher(BertForMaskedLM, bos_token_id=number)
        options = QUICK | {"student": str(student), "trim_vocab": True}
        if kept:
            made = homodistil.distil(masked_lm, few, "0.5", tmp_path / "run", **options).students["0.5"]
            words = AutoTokenizer.from_pretrained(made)
            begins = AutoModelForMaskedLM.from_pretrained(made).config.bos_token_id
            assert words.convert_ids_to_tokens(begins) == WORDS[12]
        else:
            with pytest.raises(UserError, match="names the token 25, which is not kept"):
                homodistil.distil(masked_lm, few, "0.5", tmp_path / "other", **options)
            assert not (tmp_path / "other").exists()


def test_texts_of_ones_own_are_counted_and_iterators_are_refused(
    encoder: Path, tmp_path: Path, save_teacher: Callable[..., Path]
) -> None:
    """A list can be read twice; what can be read once only is refused, before anything is written."""
    texts = ["the man sees a cat", "two cat"] * 40
    result = homodistil.distil(encoder, texts, "0.5", tmp_path / "run", trim_vocab=True, **QUICK)
    assert len(AutoTokenizer.from_pretrained(result.students["0.5"])) == 5 + 6
    with pytest.raises(UserError, match="to a stream of text"):
        homodistil.distil(encoder, iter(texts), "0.5", tmp_path / "other", trim_vocab=True, **QUICK)
    options = QUICK | {"text": {"stream": True}}
    with pytest.raises(UserError, match=r"--text.stream false"):
        homodistil.distil(encoder, texts, "0.5", tmp_path / "other", trim_vocab=True, **options)
    assert not (tmp_path / "other").exists()


def test_a_sentence_encoder_stays_one(encoder: Path, few: Path, tmp_path: Path) -> None:
    """The folder's other modules come along."""
    source = tmp_path / "source"
    shutil.copytree(encoder, source)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 48, "pooling_mode_cls_token": True})
    )
    made = homodistil.trim_vocabulary(source, few, tmp_path / "made")
    assert json.loads((made.folder / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 48
    assert json.loads((made.folder / "modules.json").read_text()) == modules


def test_a_model_is_trimmed_in_its_own_precision(save_teacher: Callable[..., Path], few: Path, tmp_path: Path) -> None:
    """What was saved in bfloat16 comes out in bfloat16, with the same values."""
    source = tmp_path / "half"
    shutil.copytree(save_teacher(BertModel), source)
    model = BertModel.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(source)
    made = homodistil.trim_vocabulary(source, few, tmp_path / "made")
    again = BertModel.from_pretrained(made.folder, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(again.encoder.layer[0].output.dense.weight, model.encoder.layer[0].output.dense.weight)


def test_a_trimmed_model_agrees_with_its_teacher(masked_lm: Path, few: Path, tmp_path: Path) -> None:
    """Though it numbers tokens otherwise: all predictions alike, and no divergence among the tokens left."""
    folder = homodistil.trim_vocabulary(masked_lm, few, tmp_path / "made").folder
    student, teacher = open_model(str(folder)), open_model(str(masked_lm))
    texts = few.read_text().splitlines()[:30]
    found = agreement(student, teacher, blocks(student, texts, 16, 4), texts[:9])
    assert found["top1"] == 1
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["hidden_cka"] == pytest.approx(1)
    assert found["similarity"] == pytest.approx(1)
    with pytest.raises(UserError, match="a part of it"):
        agreement(teacher, student, blocks(teacher, texts, 16, 4), texts[:9])


@pytest.mark.parametrize("place", ["file/x", "file/x/y", "x" * 300])
def test_a_place_that_cannot_be_written_to_is_told_from_a_full_disk(
    place: str, masked_lm: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another place is what helps, and there is no run to go on with."""
    (tmp_path / "file").write_text("mine")
    assert main(["trim", str(masked_lm), "--data", str(few), "--out", str(tmp_path / place)]) == 2
    said = capsys.readouterr().err
    assert "a place that can be written to" in said
    assert said.rstrip().endswith("Make it writable, or give --out another place.")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_no_half_of_a_trimmed_model(
    masked_lm: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room is what helps, and there is no run to go on with."""

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", full)
    with pytest.raises(UserError, match=r"needs room on the disk(?s:.*)Make room, or give --out another place\.$"):
        homodistil.trim_vocabulary(masked_lm, few, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_all_that_a_run_reads_is_counted_before_it(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Targets of pairs, and prompts: plan, trim and the run that follows come to the same tokens."""
    tiny("T5").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rows = [{"source": f"the {word} cat", "said": "near house"} for word in ("red", "old", "big")] * 12
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model, data = str(tmp_path / "teacher"), str(tmp_path / "pairs.jsonl")
    read = {"column": "source", "target": "said", "prompts": ["one: "], "length": 16}
    made = homodistil.distil(model, data, "0.5", tmp_path / "run", trim_vocab=True, **QUICK | {"text": read})
    student = AutoTokenizer.from_pretrained(made.students["0.5"])
    words = ["--data", data, "--text-column", "source", "--text-target", "said", "--text-prompt", "one: "]
    assert main(["trim", model, *words, "--out", str(tmp_path / "made")]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "made").get_vocab() == student.get_vocab()
    assert {"one", "red", "house"} < set(student.get_vocab())
    capsys.readouterr()
    assert main(["plan", model, *words, "--target", "0.5", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["targets"][0]["parameters"]
    assert planned == T5ForConditionalGeneration.from_pretrained(made.students["0.5"]).num_parameters()


def test_a_column_that_is_missing_is_asked_for_by_the_verbs_own_options(
    masked_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run calls --text.column is --text-column of `trim` and `plan`."""
    (tmp_path / "own.csv").write_text("body,reply\nthe cat,a dog\n")
    data = ["--data", str(tmp_path / "own.csv")]
    for verb in (
        ["trim", str(masked_lm), "--out", str(tmp_path / "made")],
        ["plan", str(masked_lm), "--target", "0.5"],
    ):
        assert main([*verb, *data]) == 2
        assert "Name it with --text-column, for example --text-column body." in capsys.readouterr().err
        assert main([*verb, *data, "--text-column", "body", "--text-target", "said"]) == 2
        assert "--text-target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [({"target_column": "said"}, "second column of texts in memory"), ({"prompts": "one: "}, "'one: ' before texts")],
)
def test_what_cannot_be_read_beside_texts_is_refused(
    options: dict[str, Any], said: str, masked_lm: Path, tmp_path: Path
) -> None:
    """A list has no columns, and of a text the letters would be prompts."""
    with pytest.raises(UserError, match=said):
        homodistil.trim_vocabulary(masked_lm, ["the cat"], tmp_path / "made", **options)
    with pytest.raises(UserError, match=said):
        homodistil.plan(masked_lm, "0.5", data=["the cat"], **options)


def test_the_command_line_trims_and_plans(
    masked_lm: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without training; and never over something that is there."""
    words = ["trim", str(masked_lm), "--data", str(few), "--out", str(tmp_path / "made")]
    assert main(words) == 0
    assert f"tokens: {LEFT} of 27 (66.7%)" in capsys.readouterr().out
    assert main(words) == 2
    assert "something is there" in capsys.readouterr().err
    assert main(["plan", str(masked_lm), "--target", "1.0", "--data", str(few), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    lost = printed["teacher"]["parameters"] - printed["targets"][0]["parameters"]
    assert lost == (27 - LEFT) * (48 + 1)
