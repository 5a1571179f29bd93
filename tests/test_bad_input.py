"""Bad input gets three sentences, and nothing is written or overwritten."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
)

import homodistil
from conftest import make
from homodistil.cli import main
from homodistil.distill import arrival
from homodistil.errors import UserError
from homodistil.losses import losses

QUICK: dict[str, Any] = {"steps": 4, "batch": 4, "text": {"length": 32}, "precision": "fp32"}


def _refused(out: Path, pattern: str, **values: Any) -> str:
    with pytest.raises(UserError, match=pattern) as caught:
        homodistil.distil(**{**QUICK, **values, "out": out})
    sentences = str(caught.value).splitlines()
    assert len(sentences) == 3
    assert all(sentence.strip() for sentence in sentences)
    assert max(map(len, sentences)) < 500
    return str(caught.value)


def _broken_teacher(kind: str, folder: Path, tokenizer: Any) -> None:
    folder.mkdir()
    if kind == "unknown family":
        BloomForCausalLM(BloomConfig(n_layer=1, hidden_size=8, n_head=2, vocab_size=50)).save_pretrained(folder)
    elif kind == "no loss":
        make(BertForNextSentencePrediction).save_pretrained(folder)
    else:
        model = make(BertForMaskedLM)
        model.save_pretrained(folder)
        if kind == "pickled":
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        elif kind == "truncated":
            whole = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        elif kind == "other weights":
            make(BertModel).save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
        elif kind == "broken configuration":
            (folder / "config.json").write_text("{")
        elif kind == "tokenizer of another":
            make(BertForMaskedLM, vocab_size=20).save_pretrained(folder)
    if kind != "no tokenizer":
        tokenizer.save_pretrained(folder)
    if kind in ("strange module", "module without weights"):
        parts = {"Transformer": "", "Pooling": "1_Pooling", "CNN" if kind == "strange module" else "Dense": "2_Last"}
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True})
        )
        modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for name, path in parts.items()]
        (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("unknown family", r"'bloom'(?s:.*)BERT, RoBERTa"),
        ("no loss", "Cannot distil a BertForNextSentencePrediction"),
        ("pickled", r"holds no safetensors(?s:.*)pickled"),
        ("truncated", "whole weights"),
        ("other weights", r"has no weights for cls"),
        ("broken configuration", "config.json"),
        ("no tokenizer", "tokenizer"),
        ("tokenizer of another", "vocabulary"),
        ("strange module", "a module CNN"),
        ("module without weights", "Cannot load the sentence encoder"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_refused(
    kind: str, pattern: str, corpus: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """Whatever is wrong with it is said before anything is written."""
    _broken_teacher(kind, tmp_path / "teacher", tokenizer)
    _refused(tmp_path / "run", pattern, teacher=tmp_path / "teacher", data=corpus, target="0.5")
    assert not (tmp_path / "run").exists()


def test_a_plan_for_a_text_asks_for_the_models_own_tokenizer(corpus: Path, tmp_path: Path, tokenizer: Any) -> None:
    """By another one it would count tokens that the run refuses to read."""
    _broken_teacher("tokenizer of another", tmp_path / "teacher", tokenizer)
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, its embeddings 20"):
        homodistil.plan(tmp_path / "teacher", "0.5", data=corpus)


@pytest.mark.parametrize("teacher", ["/nowhere/at/all", "./nowhere", "nobody/nothing"])
def test_a_teacher_that_does_not_exist_is_refused(
    teacher: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a path, and as a name on a hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = _refused(tmp_path / "run", "the teacher", teacher=teacher, data=corpus, target="0.5")
    assert ("no folder of that name here" in said) == (teacher == "nobody/nothing")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["distil", "{teacher}", "--data", "{long}", "--target", "0.5", "--out", "{out}"],
        ["distil", "{long}", "--data", "{corpus}", "--target", "0.5", "--out", "{out}"],
        ["plan", "{long}", "--target", "0.5"],
        ["trim", "{teacher}", "--data", "{long}", "--out", "{out}"],
        ["trim", "{long}", "--data", "{corpus}", "--out", "{out}"],
        ["evaluate", "{long}"],
        ["evaluate", "{teacher}", "--text", "{long}"],
        ["evaluate", "{teacher}", "--tasks", "{long}"],
    ],
)
def test_words_that_no_file_can_be_called_are_refused(
    words: list[str], masked_lm: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a text given in place of its file, or a place that may not be looked into: what the system says is ours to
    say.
    """
    given = {"{teacher}": masked_lm, "{corpus}": corpus, "{long}": "word " * 80, "{out}": tmp_path / "out"}
    assert main([str(given.get(word, word)) for word in words]) == 2
    refused, *rest = capsys.readouterr().err.strip().splitlines()[-3:]
    assert refused.startswith(("Cannot ", "There is no "))
    assert len(rest) == 2
    assert not (tmp_path / "out").exists()


def _bad_data(kind: str, folder: Path) -> Path:
    folder.mkdir()
    path = folder / {"no column": "a.jsonl", "numbers": "a.jsonl", "broken": "a.jsonl"}.get(kind, "a.txt")
    content: dict[str, bytes] = {
        "empty": b"",
        "blank": b"\n \n\n",
        "binary": b"abc\0def\xff" * 100,
        "latin": "caf\xe9 au lait\n".encode("latin-1") * 100,
        "short": b"a cat\n",
        "no column": b'{"sentence": "a cat"}\n' * 10,
        "numbers": b'{"text": 7}\n' * 10,
        "broken": b'{"text": "a cat"\n{{{',
    }
    if kind == "folder without text":
        (folder / "picture.png").write_bytes(b"x")
        return folder
    if kind == "folder of two kinds":
        (folder / "a.txt").write_text("a cat")
        (folder / "b.jsonl").write_text('{"text": "a cat"}')
        return folder
    if kind != "missing":
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("missing", "Cannot find the data"),
        ("empty", "it is empty"),
        ("blank", "fills 0 blocks of 32 tokens"),
        ("binary", "binary"),
        ("latin", "not in UTF-8"),
        ("short", "fills 0 blocks of 32 tokens"),
        ("no column", r"'text'(?s:.*)--text.column sentence"),
        ("numbers", "it holds int"),
        ("broken", "Cannot read"),
        ("folder without text", "no text file"),
        ("folder of two kinds", "2 kinds"),
    ],
)
def test_data_that_cannot_be_used_is_refused(kind: str, pattern: str, masked_lm: Path, tmp_path: Path) -> None:
    """Whatever is wrong with it is said before anything is written."""
    _refused(tmp_path / "run", pattern, teacher=masked_lm, data=_bad_data(kind, tmp_path / "data"), target="0.5")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"target": "2.0"}, "Use a ratio"),
        ({"target": "900M"}, "nearest possible"),
        ({"target": "10"}, "nearest possible"),
        ({"target": "small"}, "Cannot read the target"),
        ({"target": "hidden=42,heads=4"}, "no multiple of 4"),
        ({"target": []}, "There is no target"),
        ({"target": "0.5", "steps": 1}, "at least two steps"),
        ({"target": "0.5", "optim": {"scale": 0.0}}, r"optim.scale = 0.0(?s:.*)above 0"),
        ({"target": "0.5", "optim": {"momentum": 1.0}}, r"optim.momentum = 1.0(?s:.*)below 1"),
        ({"target": "0.5", "text": {"length": 65}}, "at most 64|positions for 64"),
        ({"target": "0.5", "text": {"length": 2}}, "special tokens"),
        ({"target": "0.5", "losess": {}}, "Did you mean 'losses'"),
        ({"target": "0.5", "losses": {"hiden": 1}}, "Did you mean 'hidden'"),
        ({"target": "0.5", "batch": "many"}, "batch"),
        ({"target": "0.5", "batch": -1}, "batch = -1"),
        ({"target": "0.5", "text": {"workers": -1}}, "text.workers = -1"),
        ({"target": "0.5", "tokens": "lots"}, "tokens = lots"),
        ({"target": "0.5", "tokens": "2KM"}, "tokens = 2KM"),
        ({"target": "0.5", "tokens": "5MB"}, "tokens = 5MB"),
        ({"target": "0.5", "tokens": 0.5}, "tokens = 0.5"),
        ({"target": "0.5", "seed": -1}, r"seed = -1(?s:.*)from 0 to below 2\*\*63"),
        ({"target": "0.5", "seed": 2**63}, "seed = 9223372036854775808"),
        ({"target": 2.5}, "Use a ratio"),
        ({"target": None}, "Cannot read the target None"),
        ({"target": "0.5", "steps": 2.0}, "steps = 2.0(?s:.*)a whole number"),
        ({"target": "0.5", "steps": "two"}, "steps = two(?s:.*)a whole number"),
        ({"target": "0.5", "batch": None}, "batch = None(?s:.*)a whole number"),
        ({"target": "0.5", "text": 5}, r"text = 5(?s:.*)a group"),
        ({"target": "0.5", "losses": {"masked": 0.0}}, r"losses.masked = 0.0(?s:.*)above 0 and below 1"),
        ({"target": "0.5", "losses": {"masked": 1.0}}, r"losses.masked = 1.0(?s:.*)above 0 and below 1"),
        ({"target": "0.5", "losses": {"lm": -1}}, "losses.lm = -1"),
        ({"target": "0.5", "losses": {"hidden": -1}}, "losses.hidden = -1"),
        ({"target": "0.5", "losses": dict.fromkeys(("lm", "prediction", "hidden", "embedding"), 0)}, "weight above 0"),
        ({"target": "0.5", "cutting": {"ramp_start": 0.5, "ramp_end": 0.2}}, "ramp_end = 0.2"),
        ({"target": "0.5", "cutting": {"ramp_start": 1.5}}, "ramp_start = 1.5"),
        ({"target": ["layers=1", "ffn=5"]}, "would have to grow"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    options: dict[str, Any], pattern: str, masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """Targets, budgets, unknown keys, wrong types and values out of range."""
    _refused(tmp_path / "run", pattern, teacher=masked_lm, data=corpus, **options)
    assert not (tmp_path / "run").exists()


def test_a_run_inside_its_data_is_refused(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Its own files would be read as data when it is resumed."""
    (tmp_path / "corpus.txt").write_bytes(corpus.read_bytes())
    _refused(tmp_path / "runs" / "half", "inside the folder", teacher=masked_lm, data=tmp_path, target="0.5")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_breaks_before_its_first_checkpoint_promises_none(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to go on from."""
    real = losses.hidden
    monkeypatch.setattr(losses, "hidden", lambda *given, **options: real(*given, **options) * torch.nan)
    said = _refused(tmp_path / "run", "became nan", teacher=masked_lm, data=corpus, target="0.5")
    assert "there is no checkpoint before it" in said
    assert "is whole" not in said


@pytest.mark.parametrize("model_class", [BertModel, BertForSequenceClassification])
def test_a_run_whose_losses_all_weigh_nothing_is_refused(
    model_class: Any, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """That of a language model counts for nothing where there is none."""
    none = dict.fromkeys(("prediction", "hidden", "attention", "embedding"), 0)
    teacher = save_teacher(model_class)
    said = _refused(tmp_path / "run", "weight of each", teacher=teacher, data=corpus, target="0.5", losses=none)
    assert "prediction, hidden, attention, embedding" in said
    assert not (tmp_path / "run").exists()


def test_an_encoder_with_a_head_for_next_tokens_is_refused(
    save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """It would be distilled as if it embedded texts, and its head would never learn."""
    teacher = save_teacher(BertLMHeadModel, is_decoder=True)
    _refused(tmp_path / "run", "as a BertLMHeadModel", teacher=teacher, data=corpus, target="0.5")


def test_a_run_never_overwrites_another(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """A folder with a run, with something else, or a file in its place: all stay as they are."""
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", **QUICK)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert "--resume" in _refused(tmp_path / "run", "holds one already", teacher=masked_lm, data=corpus, target="0.5")
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    (tmp_path / "file").write_text("mine")
    _refused(tmp_path / "file", "something else", teacher=masked_lm, data=corpus, target="0.5")
    _refused(tmp_path, "something else", teacher=masked_lm, data=corpus, target="0.5")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", ["file/x", "x" * 300])
def test_a_run_needs_a_place_that_can_be_written_to(place: str, masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Neither under a file, nor where the name is too long to be looked for; nor does a run lie there to go on with."""
    (tmp_path / "file").write_text("mine")
    _refused(tmp_path / place, "can be written to", teacher=masked_lm, data=corpus, target="0.5")
    with pytest.raises(UserError, match="there is no run"):
        homodistil.resume(tmp_path / place)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (lambda loss: loss * torch.nan, "hidden loss became nan"),
        (lambda loss: loss + 1e30 * (loss - loss.detach()), "norm of the gradients became inf"),
    ],
    ids=["loss", "gradient"],
)
def test_a_loss_or_gradient_that_is_no_number_stops_before_it_does_harm(
    broken: Any, named: str, masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It and the step are named, and the checkpoint before is whole and can be resumed."""
    real, calls = losses.hidden, iter(range(10**6))

    def breaks(*arguments: Any, **options: Any) -> torch.Tensor:
        # three hidden states, embeddings included, a batch: the seventh call is in the third step
        loss = real(*arguments, **options)
        return broken(loss) if next(calls) == 6 else loss

    monkeypatch.setattr(losses, "hidden", breaks)
    often = {"checkpoint_minutes": 0, "evaluations": 0, "cutting": {"calibration": 0, "ramp_end": 0.4}}
    said = _refused(tmp_path / "run", "step 3", teacher=masked_lm, data=corpus, target="0.5", **often)
    assert named in said
    assert "the last checkpoint in" in said
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").exists()
    monkeypatch.setattr(losses, "hidden", real)
    assert homodistil.resume(tmp_path / "run").students["0.5"].exists()


def test_a_changed_recipe_cannot_be_resumed(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on as it began, or not at all."""

    def stop(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(arrival, "save_target", stop)
        with pytest.raises(RuntimeError):
            homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", **QUICK, checkpoint_minutes=0)
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="another recipe"):
        homodistil.resume(tmp_path / "run")
    recipe.write_text(recipe.read_text().replace("seed: 1", "seed: 0"))
    assert homodistil.resume(tmp_path / "run").students["0.5"].exists()


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    """A folder without a run."""
    with pytest.raises(UserError, match="there is no run"):
        homodistil.resume(tmp_path)


MODEL = make(BertModel)
UNTYPED: Any = homodistil
"""As those see it who check no types."""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: UNTYPED.distil(MODEL, "corpus.txt", "0.5", "o"), "Cannot use a BertModel as the model"),
        (lambda: UNTYPED.distil("tiny", 5, "0.5", "o"), "Cannot read text from 5"),
        (lambda: UNTYPED.distil("tiny", {"train": ["a cat"]}, "0.5", "o"), "Cannot read text from a dict"),
        (lambda: UNTYPED.distil("tiny", "corpus.txt", [["0.5"]], "o"), r"Cannot read the target \['0.5'\]"),
        (lambda: UNTYPED.distil("tiny", "corpus.txt", "0.5", None), "Cannot use None as the folder"),
        (lambda: UNTYPED.distil("tiny", "corpus.txt", "0.5", "o", preset=5), "There is no preset 5"),
        (lambda: UNTYPED.resume(None), "Cannot use None as the folder"),
        (lambda: UNTYPED.plan(MODEL, "0.5"), "Cannot use a BertModel as the model"),
        (lambda: UNTYPED.plan("tiny", "0.5", family=MODEL), "Cannot use a BertModel as the family"),
        (lambda: UNTYPED.trim_vocabulary("tiny", 5, "o"), "Cannot read text from 5"),
        (lambda: UNTYPED.shrink("tiny", "0.5"), "Cannot shrink a str"),
        (lambda: UNTYPED.shrink(torch.nn.Linear(2, 2), "0.5"), "Cannot shrink a Linear"),
        (lambda: UNTYPED.shrink(MODEL, ["0.5"]), r"Cannot read the target \['0.5'\]"),
        (lambda: UNTYPED.register(None), "Cannot register a NoneType"),
        (lambda: UNTYPED.read_family(5), "Cannot read the family 5"),
        (lambda: UNTYPED.Recipe(teacher="t", data="d", out="o", target=None), "Cannot read the target None"),
        (lambda: UNTYPED.Recipe(teacher="t", data="d", out="o", target="1", steps="2"), "Cannot use steps = 2"),
        (lambda: UNTYPED.Recipe(teacher="t", data="d", out="o", target="1", losses={}), "losses is a group"),
        (lambda: UNTYPED.Recipe(teacher="t", data="d", out="o", target="1", seed=True), "Cannot use seed = True"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_words(
    call: Callable[[], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in memory for its folder, a list for one target, and what no library below us would name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["0.5", 0.5, ["0.5"], (0.5,), np.array(0.5), [np.float64(0.5)], torch.tensor(0.5)])
def test_a_recipe_takes_a_single_target_as_a_list_of_one(target: Any) -> None:
    """As `distil` and YAML do."""
    assert homodistil.Recipe(teacher="t", data="d", out="o", target=target).target == ["0.5"]


def test_all_public_names_are_listed() -> None:
    """Before they are imported, too, so that a notebook completes them."""
    program = "import homodistil; print(*set(homodistil.__all__) - set(dir(homodistil)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_number_of_tokens_is_read_to_the_token() -> None:
    """8.2 million in float64 is a little less."""
    said = [homodistil.Recipe(teacher="t", data="d", out="o", target=["0.5"], tokens=t) for t in ("8.2M", "500k", "7")]
    assert [recipe.token_budget() for recipe in said] == [8_200_000, 500_000, 7]


def test_remote_code_is_off_by_default() -> None:
    """Nobody's code is run unasked."""
    recipe = homodistil.Recipe(teacher="t", data="d", out="o", target=["0.5"])
    assert recipe.trust_remote_code is False
    for verb in (homodistil.plan, homodistil.trim_vocabulary, homodistil.evaluate):
        assert inspect.signature(verb).parameters["trust_remote_code"].default is False


def test_text_of_another_language_is_refused_before_anything_is_learnt(masked_lm: Path, tmp_path: Path) -> None:
    """Unknown tokens are never masked, and without one to predict a language model learns nothing."""
    (tmp_path / "corpus.txt").write_text("слова и слова\n" * 200)
    said = _refused(
        tmp_path / "run", "no token to predict", teacher=masked_lm, data=tmp_path / "corpus.txt", target="0.5"
    )
    assert "text of the model's language" in said
    assert not (tmp_path / "run").exists()


def test_a_saved_dataset_without_the_column_is_refused(masked_lm: Path, tmp_path: Path) -> None:
    """Saved datasets are checked like files."""
    Dataset.from_dict({"body": ["a cat"] * 50}).save_to_disk(str(tmp_path / "data"))
    _refused(tmp_path / "run", "--text.column body", teacher=masked_lm, data=tmp_path / "data", target="0.5")


def test_a_plan_needs_no_weights(save_teacher: Callable[..., Path]) -> None:
    """Planning reads the configuration alone."""
    folder = save_teacher(BertForMaskedLM)
    (folder / "model.safetensors").unlink()
    teacher, targets = homodistil.plan(folder, "0.5")
    assert targets[0].parameters < teacher.parameters


def test_a_refusal_says_the_same_in_another_process() -> None:
    refusal = UserError("Cannot do it.", "It must be so.", "Do that.")
    there = pickle.loads(pickle.dumps(refusal))
    assert str(there) == str(refusal)
    assert (there.refused, there.rule, there.remedy) == (refusal.refused, refusal.rule, refusal.remedy)
