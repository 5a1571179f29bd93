"""The whole job on tiny models: what comes out is what its users open, and stopping changes nothing."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import homodistil
from homodistil.axes.families.encoders import BERT
from homodistil.axes.layout import Layout
from homodistil.compress import importance
from homodistil.compress.compensate import FADING
from homodistil.data.corpus import STREAM_HELDOUT
from homodistil.distill import arrival, checkpoint, heldout, learning, loop
from homodistil.distill.optimizer import rate
from homodistil.distill.state import State
from homodistil.errors import RunStopped, UserError
from homodistil.models.student import save_student
from homodistil.models.teacher import load_teacher
from homodistil.reading import load
from homodistil.settings import Cutting
from runs import stages_of
from zoo import tiny

WORDS = "one two red blue old small big".split()

QUICK: dict[str, Any] = {"steps": 12, "batch": 4, "text": {"length": 32}, "precision": "fp32", "log_every": 3}

OPEN = """
import sys, torch, transformers
from safetensors.torch import load_file, save_file
model, info = getattr(transformers, sys.argv[1]).from_pretrained(sys.argv[2], output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
made = model(**load_file(sys.argv[3]))
save_file({k: v.contiguous() for k, v in made.items() if isinstance(v, torch.Tensor)}, sys.argv[4])
assert "homodistil" not in sys.modules
"""


@pytest.mark.parametrize(
    ("model_class", "target"),
    [
        (BertForMaskedLM, "0.5"),
        (BertForMaskedLM, "hidden=20,heads=2,ffn=48"),
        (BertModel, "hidden=36,heads=3,ffn=64"),
        (BertForSequenceClassification, "0.75"),
        (BertForTokenClassification, "0.5"),
        (BertForQuestionAnswering, "15k"),
    ],
)
def test_a_fresh_process_opens_the_student_and_computes_the_same(
    model_class: type[PreTrainedModel], target: str, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Plain transformers, no import of ours, outputs as in memory to 1e-5; also with other head dims and heads."""
    kept: dict[str, PreTrainedModel] = {}

    def save(path: Path, student: PreTrainedModel, *rest: Any) -> None:
        kept["s"] = student
        save_student(path, student, *rest)

    monkeypatch.setattr(arrival, "save_student", save)
    result = homodistil.distil(save_teacher(model_class), corpus, target, tmp_path / "run", **QUICK)
    inputs = {"input_ids": torch.randint(5, 20, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    inputs["attention_mask"][1, 7:] = 0
    save_file(inputs, tmp_path / "in.safetensors")
    files = (result.students[target], tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    command = [sys.executable, "-c", OPEN, model_class.__name__, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = kept["s"].eval()(**inputs)
    for name, value in load_file(tmp_path / "out.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_one_run_passes_through_all_its_targets(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Each is saved with exactly its shape, its units are the teacher's, and each is contained in the one before."""
    targets = ["0.75", "hidden=16,heads=2,ffn=48"]
    result = homodistil.distil(masked_lm, corpus, targets, tmp_path / "run", **QUICK)
    planned = {p.target: p for p in homodistil.plan(masked_lm, targets)[1]}
    units = {}
    for target, folder in result.students.items():
        model = BertForMaskedLM.from_pretrained(folder)
        assert Layout.of(model).shape(model) == planned[target].shape
        assert sum(p.numel() for p in model.parameters()) == planned[target].parameters
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        units[target] = json.loads((tmp_path / "run" / "units" / f"{target}.json").read_text())["kept"]
        assert len(units[target]["ffn.1"]) == planned[target].shape["ffn"]
    assert set(units[targets[1]]["hidden"]) < set(units[targets[0]]["hidden"])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("importance", ["sensitivity", "platon", "output", "magnitude"])
def test_distillation_brings_the_student_back_to_its_teacher(
    importance: str, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """By any importance, the discrepancy is nothing before the first cut, rises with the cuts, and falls after them."""
    result = homodistil.distil(
        encoder, corpus, "0.5", tmp_path / "run", **QUICK | {"steps": 60, "log_every": 1, "batch": 8},
        cutting={"importance": importance, "ramp_end": 0.2}, optim={"learning_rate": 3e-3},
    )  # fmt: skip
    assert result.heldout["0.5"]["hidden"] > 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    path = [r["discrepancy"] for r in records]
    # turned heads round otherwise
    assert abs(path[0]) < 1e-6
    after_cuts = path[15:20]
    assert sum(path[-5:]) < 0.9 * sum(after_cuts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_same_student(
    number: signal.Signals, masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of a step is obeyed at its end; the handlers of before are back afterwards."""
    whole = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "whole", **QUICK)
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    real = learning.learn

    def learn(run: Any, batch: Any, step: int, **options: Any) -> Any:
        if step == 5:
            os.kill(os.getpid(), number)
        return real(run, batch, step, **options)

    monkeypatch.setattr(loop, "learn", learn)
    with pytest.raises(RunStopped, match="Stopped at step 5 of 12") as stop:
        homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "stopped", **QUICK)
    assert stop.value.signal_number == number
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed = homodistil.resume(tmp_path / "stopped")
    for name in ("model.safetensors", "config.json"):
        assert (resumed.students["0.5"] / name).read_bytes() == (whole.students["0.5"] / name).read_bytes()
    assert resumed.heldout == whole.heldout
    again = homodistil.resume(tmp_path / "stopped")
    assert again == resumed


def test_a_stopped_run_on_texts_in_memory_says_how_it_goes_on(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Python, as no command has the texts."""
    _stopped_at(5, monkeypatch)
    texts = corpus.read_text().splitlines()
    with pytest.raises(RunStopped, match=r"homodistil\.resume\(.*, data=\.\.\.\)"):
        homodistil.distil(masked_lm, texts, "0.5", tmp_path / "run", **QUICK)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"texts in memory(?s:.*)data=\.\.\."):
        homodistil.resume(tmp_path / "run")
    assert homodistil.resume(tmp_path / "run", data=texts).students["0.5"].exists()


@pytest.mark.parametrize("trimmed", [False, True])
def test_data_in_memory_are_strings(trimmed: bool, masked_lm: Path, tmp_path: Path) -> None:
    """Rows of a dataset are none, and would be missing without a word; None is no text, as in a file."""
    options = {**QUICK, "trim_vocab": trimmed}
    texts: list[Any] = [*["the man sees a cat"] * 300, None, {"text": "a dog"}]
    with pytest.raises(UserError, match="Cannot read item 301 of the data: it is a dict"):
        homodistil.distil(masked_lm, texts, "0.5", tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    assert homodistil.distil(masked_lm, texts[:-1], "0.5", tmp_path / "run", **options).students


def test_a_shape_may_be_a_mapping(masked_lm: Path) -> None:
    """As `plan` gives it."""
    wanted = {"hidden": 24, "heads": 4, "ffn": 48}
    _, (planned,) = homodistil.plan(masked_lm, wanted)
    assert planned.target == "hidden=24,heads=4,ffn=48"
    assert homodistil.plan(masked_lm, [wanted, 0.75])[1][1] == planned


def _stopped_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run be asked to stop at a step."""
    real = learning.learn

    def learn(run: Any, batch: Any, number: int, **options: Any) -> Any:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batch, number, **options)

    monkeypatch.setattr(loop, "learn", learn)


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_run_does_not_go_on_with_other_data(
    trimmed: bool, masked_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text of the same length, or so much longer that all steps would be done: what was learnt stays where it is."""
    data, options = tmp_path / "data.txt", {**QUICK, "steps": None, "tokens": "1500", "trim_vocab": trimmed}
    data.write_text("the man sees a cat\n" * 400)
    _stopped_at(8, monkeypatch)
    with pytest.raises(RunStopped):
        homodistil.distil(masked_lm, data, "0.5", tmp_path / "run", **options)
    for other in ("the red dog likes a tree\n" * 400, "the man sees a cat near a big house\n" * 4000):
        data.write_text(other)
        with pytest.raises(UserError, match="the data has changed"):
            homodistil.resume(tmp_path / "run")
        assert any((tmp_path / "run" / "checkpoints").glob("step-*"))
    data.write_text("the man sees a cat\n" * 400)
    assert homodistil.resume(tmp_path / "run").students["0.5"].exists()


@pytest.mark.parametrize(("changed", "trimmed"), [("teacher", False), ("teacher", True), ("student", False)])
def test_a_run_does_not_go_on_with_other_weights(
    changed: str, trimmed: bool, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of the same shape under the same path; with those that it was started with it does."""
    models = {name: save_teacher(BertForMaskedLM) for name in ("teacher", "student")}
    options = {**QUICK, "trim_vocab": trimmed, "precision": "bf16", "student": str(models["student"])}
    _stopped_at(8, monkeypatch)
    with pytest.raises(RunStopped):
        homodistil.distil(models["teacher"], corpus, "0.5", tmp_path / "run", **options)
    monkeypatch.undo()
    file = models[changed] / "model.safetensors"
    whole = load_file(file)
    name = "bert.encoder.layer.1.output.dense.bias"
    save_file(whole | {name: whole[name] + 1e-3}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the teacher, or --student, has changed"):
        homodistil.resume(tmp_path / "run")
    save_file(whole, file, metadata={"format": "pt"})
    assert homodistil.resume(tmp_path / "run").students["0.5"].exists()


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_does_not_go_on_with_data_that_was_changed_where_it_has_learnt(
    stream: bool, masked_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lines exchanged of a file that is read whole; of a stream one text, far behind what is held out of it."""
    data, options = tmp_path / "data.txt", {**QUICK, "steps": 60, "text": {"length": 32, "stream": stream}}
    lines = [f"the {a} {b} sees a {c} near the house" for a in WORDS for b in WORDS for c in WORDS] * 4
    data.write_text("\n".join(lines))
    _stopped_at(30, monkeypatch)
    with pytest.raises(RunStopped):
        homodistil.distil(masked_lm, data, "0.5", tmp_path / "run", **options)
    monkeypatch.undo()
    others = [*lines[:200], "a dog", *lines[201:]] if stream else [lines[1], lines[0], *lines[2:]]
    data.write_text("\n".join(others))
    with pytest.raises(UserError, match="the data has changed"):
        homodistil.resume(tmp_path / "run")
    data.write_text("\n".join(lines))
    resumed = homodistil.resume(tmp_path / "run")
    whole = homodistil.distil(masked_lm, data, "0.5", tmp_path / "whole", **options)
    ours, theirs = (r.students["0.5"] / "model.safetensors" for r in (resumed, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_run_goes_on_with_its_teacher_and_data_wherever_they_lie(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as its recipe says where; it ends as it would have."""
    places = {"teacher": tmp_path / "teacher", "data": tmp_path / "data.txt"}
    shutil.copytree(masked_lm, places["teacher"])
    shutil.copy(corpus, places["data"])
    whole = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "whole", **QUICK)
    _stopped_at(5, monkeypatch)
    with pytest.raises(RunStopped):
        homodistil.distil(places["teacher"], places["data"], "0.5", tmp_path / "run", **QUICK)
    monkeypatch.undo()
    said = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    for name, place in places.items():
        said[name] = str(place.rename(tmp_path / f"moved-{place.name}"))
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(said))
    made = homodistil.resume(tmp_path / "run")
    ours, theirs = (r.students["0.5"] / "model.safetensors" for r in (made, whole))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("changed", ["configuration", "pooling", "family"])
def test_a_run_does_not_go_on_with_a_teacher_that_computes_otherwise(
    changed: str, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same weights: by another activation, another pooling, or another table of its family."""
    teacher, family = save_teacher(BertModel), tmp_path / "family.yaml"
    modules = [{"idx": k, "name": str(k), "path": p, "type": f"sentence_transformers.models.{t}"}
               for k, (p, t) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])]  # fmt: skip
    (teacher / "modules.json").write_text(json.dumps(modules))
    (teacher / "1_Pooling").mkdir()
    files = {"configuration": teacher / "config.json", "pooling": teacher / "1_Pooling" / "config.json",
             "family": family}  # fmt: skip
    files["pooling"].write_text(json.dumps({"word_embedding_dimension": 48, "pooling_mode": "mean"}))
    family.write_text(yaml.safe_dump(json.loads(json.dumps({**asdict(BERT), "name": "Mine"}))))
    others = {"configuration": ("gelu", "relu"), "pooling": ("mean", "cls"), "family": ("Mine", "Other")}
    _stopped_at(5, monkeypatch)
    with pytest.raises(RunStopped):
        homodistil.distil(teacher, corpus, "0.5", tmp_path / "run", family=str(family), **QUICK)
    monkeypatch.setattr(loop, "learn", learning.learn)
    before = files[changed].read_text()
    files[changed].write_text(before.replace(*others[changed]))
    assert files[changed].read_text() != before
    with pytest.raises(UserError, match="the teacher, or --student, has changed"):
        homodistil.resume(tmp_path / "run")
    files[changed].write_text(before)
    assert homodistil.resume(tmp_path / "run").students["0.5"].exists()


def test_a_run_without_a_checkpoint_is_trimmed_to_the_text_that_is_there(
    masked_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts anew, and so does its vocabulary."""
    data = tmp_path / "data.txt"
    data.write_text("the man sees a cat\n" * 200)

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as before:
        before.setattr(learning, "learn", broken)
        with pytest.raises(KeyboardInterrupt):
            homodistil.distil(masked_lm, data, "0.5", tmp_path / "run", trim_vocab=True, **QUICK)
    data.write_text("two red dogs find one tree\n" * 200)
    made = homodistil.resume(tmp_path / "run").students["0.5"]
    assert "tree" in load_teacher(str(made)).tokenizer.get_vocab()


def test_a_stream_that_ends_too_early_loses_nothing(masked_lm: Path, tmp_path: Path) -> None:
    """What was learnt is saved, and goes on with a longer one to what the longer one gives at once."""
    texts = [f"the {a} {b} sees a {c} near the house" for a in WORDS for b in WORDS for c in WORDS] * 4
    options = QUICK | {"steps": 60, "cutting": {"calibration": 2}}
    with pytest.raises(UserError, match="the stream of text has ended"):
        homodistil.distil(masked_lm, iter(texts[:500]), ["0.75", "0.5"], tmp_path / "run", **options)
    assert any((tmp_path / "run" / "checkpoints").glob("step-*"))
    resumed = homodistil.resume(tmp_path / "run", data=iter(texts))
    whole = homodistil.distil(masked_lm, iter(texts), ["0.75", "0.5"], tmp_path / "at once", **options)
    for target in ("0.75", "0.5"):
        ours, theirs = (r.students[target] / "model.safetensors" for r in (resumed, whole))
        assert ours.read_bytes() == theirs.read_bytes()


def test_what_was_learnt_is_saved_where_the_users_own_texts_fail(masked_lm: Path, tmp_path: Path) -> None:
    """By an error that is kept as the cause; with texts that come to their end the run goes on."""
    texts = [f"the {a} {b} sees a {c} near the house" for a in WORDS for b in WORDS for c in WORDS] * 4
    options = QUICK | {"steps": 60, "cutting": {"calibration": 2}}

    def broken() -> Iterator[str]:
        yield from texts[:500]
        raise ConnectionError("the line went dead")

    with pytest.raises(UserError, match="item 500 of the data: ConnectionError: the line went dead") as refusal:
        homodistil.distil(masked_lm, broken(), "0.5", tmp_path / "run", **options)
    assert isinstance(refusal.value.__cause__, ConnectionError)
    assert any((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert homodistil.resume(tmp_path / "run", data=iter(texts)).students["0.5"].exists()


def test_nobody_else_works_on_a_run(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it is new nor when it goes on, and it ends as if nobody had tried."""
    tried: list[str] = []
    _stopped_at(8, monkeypatch)
    stopping = vars(loop)["learn"]

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(UserError) as refusal:
            homodistil.resume(tmp_path / "run")
        tried.append(refusal.value.refused)
        return stopping(*arguments, **options)

    monkeypatch.setattr(loop, "learn", meanwhile)
    with pytest.raises(RunStopped):
        homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", **QUICK)
    homodistil.resume(tmp_path / "run")
    assert len(tried) == QUICK["steps"]
    assert all("another process works on it" in said for said in tried)
    monkeypatch.undo()
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "at once", **QUICK)
    for file in ("metrics.jsonl", "students/0.5/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "at once" / file).read_bytes()


def test_a_finished_run_keeps_no_checkpoint(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Also where it was killed between its last student and its end."""
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", **QUICK)
    (tmp_path / "run" / "checkpoints" / "step-00000008").mkdir(parents=True)
    homodistil.resume(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_finished_run_without_one_of_its_students_is_refused(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Nothing is trained anew and nothing changes; with the folder back in its place the run is returned."""
    result = homodistil.distil(masked_lm, corpus, ["0.75", "0.5"], tmp_path / "run", **QUICK)
    result.students["0.75"].rename(tmp_path / "away")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"has made a student(?s:.*)students/0\.75\.(?s:.*)Put the folder back"):
        homodistil.resume(tmp_path / "run")
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    (tmp_path / "away").rename(result.students["0.75"])
    assert homodistil.resume(tmp_path / "run") == result


def test_a_run_that_has_passed_a_target_needs_its_student_to_go_on(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not be made again; of a target that is still ahead nothing is asked."""
    options = QUICK | {"checkpoint_minutes": 0}
    with monkeypatch.context() as patch:
        patch.setattr(arrival, "save_target", _pulled_at("0.5", arrival.save_target))
        with pytest.raises(RuntimeError, match="pulled"):
            homodistil.distil(masked_lm, corpus, ["0.75", "0.5"], tmp_path / "run", **options)
    made = tmp_path / "run" / "students" / "0.75"
    made.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"has made a student, and there is none in \S+/students/0\.75\."):
        homodistil.resume(tmp_path / "run")
    (tmp_path / "away").rename(made)
    assert all((folder / "config.json").exists() for folder in homodistil.resume(tmp_path / "run").students.values())


def _pulled_at(target: str, save: Callable[..., None]) -> Callable[..., None]:
    def saving(run: Any, reached: str) -> None:
        if reached == target:
            raise RuntimeError("pulled")
        save(run, reached)

    return saving


@pytest.mark.parametrize("what", ["metrics.jsonl", "units"])
def test_a_place_in_the_folder_that_cannot_be_written_to_is_named(
    what: str, masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In our words, and the run goes on from there when it can be."""
    opened, out = Path.open, tmp_path / "run"

    def refused(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if what in path.parts and set(mode) & {"w", "a"}:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(UserError, match=f"{what}(?s:.*)Make it writable"):
            homodistil.distil(masked_lm, corpus, "0.5", out, **QUICK)
    assert (homodistil.resume(out).students["0.5"] / "config.json").exists()


def test_a_run_that_was_killed_while_its_folder_was_made_goes_on(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """From its start, with the recipe alone."""
    whole = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "whole", **QUICK)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "whole" / "recipe.yaml", tmp_path / "run")
    made = homodistil.resume(tmp_path / "run")
    ours, theirs = (r.students["0.5"] / "model.safetensors" for r in (made, whole))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_name_that_is_no_text_costs_no_run(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Of a file of another time or system, in the recipe and on the student's card."""
    data = shutil.copy(corpus, tmp_path / os.fsdecode(b"caf\xe9.txt"))
    result = homodistil.distil(masked_lm, data, "0.5", tmp_path / "run", **QUICK)
    assert "\\udce9" in (result.students["0.5"] / "README.md").read_text(encoding="utf-8")
    assert load(tmp_path / "run" / "recipe.yaml").data == str(data)


def test_accumulated_batches_make_the_step_of_one_large_batch(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    """Without a similarity loss, which compares within a batch, two halves learn what the whole learns, and tell the
    same losses, which are means over steps and batches.
    """
    options = QUICK | {"text": {"length": 16, "packing": "blocks"}, "losses": {"prediction": 0}, "steps": 6,
                       "cutting": {"importance": "magnitude", "compensate": "none", "basis": "teacher"}}  # fmt: skip
    one = homodistil.distil(encoder, corpus, "0.5", tmp_path / "one", **options | {"batch": 8})
    two = homodistil.distil(encoder, corpus, "0.5", tmp_path / "two", **options | {"batch": 4, "accumulate": 2})
    ours, theirs = (load_file(r.students["0.5"] / "model.safetensors") for r in (one, two))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)
    told, same = ([json.loads(line) for line in (r.out / "metrics.jsonl").read_text().splitlines()] for r in (one, two))
    # before the first cut there is none
    assert all(term > 0 for term in told[-1]["terms"].values())
    for record, other in zip(told, same, strict=True):
        assert other["terms"] == pytest.approx(record["terms"], rel=1e-3, abs=1e-5)


def test_tokens_and_streams_set_the_length_of_a_run(encoder: Path, tmp_path: Path) -> None:
    """A budget in tokens becomes steps; texts may come from anywhere and be of unknown number."""
    texts = ["the man sees a cat and the dog near a big house" for _ in range(300)]
    result = homodistil.distil(encoder, iter(texts), "0.5", tmp_path / "run", tokens="1k", batch=8, precision="fp32",
                               text={"length": 32})  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert abs(records[-1]["tokens"] - 1000) < 200
    assert result.students["0.5"].exists()


def test_the_weights_that_a_teacher_decides_are_written_down(
    masked_lm: Path, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """A run says by which losses its student learnt, those that were left open too, and goes on with them."""
    for source, prediction in ((masked_lm, 1.0), (encoder, 0.5)):
        out = tmp_path / source.name
        result = homodistil.distil(source, corpus, "0.5", out, losses={"attention": 0.125}, **QUICK)
        written = yaml.safe_load((out / "recipe.yaml").read_text())["losses"]
        assert (written["prediction"], written["attention"], written["hidden_kind"]) == (prediction, 0.125, "mse")
        assert None not in written.values()
        assert homodistil.resume(out) == result


def test_the_batch_that_a_budget_leaves_is_written_down_and_kept(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """A run says what it took, and goes on with that."""
    result = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", tokens="2k", text={"length": 32})
    written = yaml.safe_load((result.out / "recipe.yaml").read_text())
    assert (written["batch"], written["accumulate"]) == (16, 1)
    assert homodistil.resume(result.out) == result


def test_a_student_lies_in_the_precision_of_its_teacher_and_is_measured_as_it_lies(
    save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the bytes for each number of a teacher in bf16, as it had them, or the student might be the larger file.

    Positions and types that no text has aside: they are none of those that are measured.
    """
    source, measured = save_teacher(BertForMaskedLM), {}
    BertForMaskedLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)

    def measure(runner: Any, student: Any, *others: Any) -> dict[str, float]:
        measured.update({n: p.clone() for n, p in student.named_parameters()})
        return whole(runner, student, *others)

    whole = heldout.measure
    monkeypatch.setattr(loop, "measure", measure)
    student = homodistil.distil(source, corpus, "0.5", tmp_path / "run", **QUICK).students["0.5"]
    assert {t.dtype for t in load_file(student / "model.safetensors").values()} == {torch.bfloat16}
    opened = BertForMaskedLM.from_pretrained(student)
    assert opened.dtype == torch.bfloat16
    read = {"position_embeddings.weight": slice(16), "token_type_embeddings.weight": slice(1)}
    for name, parameter in opened.named_parameters():
        rows = read.get(name.removeprefix("bert.embeddings."), slice(None))
        assert torch.equal(parameter[rows].float(), measured[name][rows]), name


def test_a_copy_of_a_teacher_in_bf16_is_measured_with_the_positions_that_its_users_get(
    tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Frequencies of rotary positions are not saved, and so never rounded."""
    tiny("Llama").to(torch.bfloat16).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    options = QUICK | {"steps": 2, "optim": {"learning_rate": 1e-9}}
    found = homodistil.distil(tmp_path / "teacher", corpus, "1.0", tmp_path / "run", **options).heldout["1.0"]
    assert (found["prediction"], found["hidden"], found["agreement"]) == (0, 0, 1)


def test_a_stream_with_as_much_text_as_the_run_learns_from_is_enough(masked_lm: Path, tmp_path: Path) -> None:
    """Nothing is measured on text that the run would not come to."""
    texts = [f"the {a} {b} sees a {c} near the house" for a in WORDS for b in WORDS for c in WORDS]
    options = QUICK | {"steps": 4, "batch": 8, "text": {"length": 32, "packing": "texts"}}
    enough = iter(texts[: STREAM_HELDOUT + 4 * 8])
    result = homodistil.distil(masked_lm, enough, "0.5", tmp_path / "run", **options)
    assert result.students["0.5"].exists()


def test_everything_is_saved_every_few_minutes(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute has passed since the start, or since the last time, at every second step of 40 seconds."""
    clock, saved = itertools.count(0, 40), []
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=clock.__next__, perf_counter=time.perf_counter))
    monkeypatch.setattr(checkpoint, "save", lambda folder, state, *_: saved.append(state.step))
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", checkpoint_minutes=1, **QUICK)
    assert saved == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(("kind", "taken_over"), [("least-squares", True), ("mean", True), ("none", False)])
def test_layers_take_over_what_is_cut_unless_they_are_told_not_to(
    kind: str, taken_over: bool, masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever units leave."""
    asked: list[bool] = []
    shrink = State.shrink

    def spied(state: State, keep: Any, *, compensate: bool) -> None:
        asked.append(compensate)
        shrink(state, keep, compensate=compensate)

    monkeypatch.setattr(State, "shrink", spied)
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", cutting={"compensate": kind}, **QUICK)
    assert set(asked) == {taken_over}


@pytest.mark.parametrize(("calibration", "asked"), [(3, 3), (0, 4)])
def test_outputs_are_asked_of_the_uncut_student_alone(
    calibration: int, asked: int, encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the calibration; where there is none, wherever importance is measured: at the first step and on the ramp.

    Each time by noise of its own.
    """
    widths: list[int] = []
    seeds: list[int] = []
    measured = importance.output

    def output(layout: Layout, student: PreTrainedModel, hidden: Any, mask: Any, seed: int) -> Any:
        widths.append(layout.shape(student)["hidden"])
        seeds.append(seed)
        return measured(layout, student, hidden, mask, seed)

    monkeypatch.setattr(importance, "output", output)
    cutting = {"calibration": calibration, "ramp_end": 0.34}
    homodistil.distil(encoder, corpus, "0.5", tmp_path / "run", cutting=cutting, **QUICK)
    assert len(widths) == asked == len(set(seeds))
    assert (set(widths) == {48}) == (calibration > 0)


def test_what_layers_read_weighs_less_at_each_later_measurement(
    encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine tenths of it each time, because a student that is cut reads something else."""
    read, kept = list[int](), list[float]()
    learn, score = learning.learn, learning.score

    def reading(run: Any, batch: Any, *rest: Any, **options: Any) -> Any:
        read.append(int(batch["ordinary"].sum()))
        return learn(run, batch, *rest, **options)

    def scoring(state: Any) -> None:
        kept.append(max(float(count) for count in state.moments.counts.values()))
        score(state)

    monkeypatch.setattr(loop, "learn", reading)
    monkeypatch.setattr(loop, "score", scoring)
    homodistil.distil(encoder, corpus, "0.5", tmp_path / "run", cutting={"ramp_end": 0.5}, **QUICK)
    assert len(kept) == 6
    for before, now, new in zip(kept[:-1], kept[1:], read[1:], strict=False):
        assert now == pytest.approx(FADING * before + new)


@pytest.mark.parametrize(("target", "narrower"), [("0.5", 2.0), ("layers=1", 1.0)])
def test_a_run_learns_faster_as_its_student_gets_narrower(
    target: str, narrower: float, masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """By the width that the student has at that step; layers that leave change nothing."""
    homodistil.distil(masked_lm, corpus, target, tmp_path / "run", **{**QUICK, "log_every": 1})
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    optim, steps = load(tmp_path / "run" / "recipe.yaml").optim, len(records)
    assert optim.learning_rate == pytest.approx(0.384 / 48)
    first, last = (records[k]["learning_rate"] for k in (0, -1))
    (stage,) = stages_of(target, steps=steps)
    assert first == pytest.approx(rate(optim, stage, 1))
    assert last == pytest.approx(narrower * rate(optim, stage, steps))


def test_a_run_may_start_from_a_student_of_its_teacher(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """A student of an earlier run is narrowed further; its targets are shares of its own widths, and it resumes."""
    half = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "half", **QUICK).students["0.5"]
    result = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "quarter", student=half, **QUICK)
    made = BertForMaskedLM.from_pretrained(result.students["0.5"])
    assert (made.config.hidden_size, made.config.intermediate_size) == (12, 24)
    assert result.heldout["0.5"]["hidden"] > 0


def test_a_student_with_fewer_layers_learns_from_its_teacher(
    masked_lm: Path, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """Half the layers, random weights: every loss is there, and falls, as often as it was asked for."""
    shallow = save_teacher(BertForMaskedLM, num_hidden_layers=1)
    options = {**QUICK, "steps": 60, "evaluations": 12, "student": str(shallow)}
    homodistil.distil(masked_lm, corpus, "1.0", tmp_path / "run", **options)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    measured = [record for line in lines if "heldout" in (record := json.loads(line))]
    assert [record["step"] for record in measured] == list(range(5, 61, 5))
    held = [record["heldout"] for record in measured]
    for name in ("hidden", "attention", "prediction"):
        assert held[-1][name] < held[0][name]


def test_options_win_over_a_preset_one_by_one(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """As they do on the command line."""
    homodistil.distil(
        masked_lm,
        corpus,
        "0.5",
        tmp_path / "run",
        preset="paper",
        losses={"attention": 0},
        cutting={"grain": 8},
        **QUICK,
    )
    written = load(tmp_path / "run" / "recipe.yaml")
    assert (written.losses.attention, written.losses.masked) == (0, 0.15)
    assert (written.cutting.grain, written.cutting.importance) == (8, "sensitivity")
    with pytest.raises(UserError, match="Cannot lay a Cutting over the preset"):
        homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "other", preset="paper", cutting=Cutting(), **QUICK)


def test_the_preset_of_the_paper_runs_and_is_written_down(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Its values are in the recipe, and options win over them."""
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", preset="paper", **QUICK)
    written = load(tmp_path / "run" / "recipe.yaml")
    cutting = written.cutting
    assert (cutting.importance, cutting.compensate, cutting.grain) == ("sensitivity", "none", 1)
    assert cutting.every == 1
    assert (written.optim.method, written.optim.width_power) == ("adamw", 0.0)
    with pytest.raises(UserError, match="There is no preset 'papers'"):
        homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "other", preset="papers", **QUICK)


@pytest.mark.parametrize("calibration", [0, 2])
def test_everything_can_be_cut_before_the_first_step(
    calibration: int, masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """With a ramp of no length the student has its target's widths from the first record on; it is measured before."""
    cutting = {"ramp_start": 0.0, "ramp_end": 0.0, "calibration": calibration}
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", cutting=cutting, **{**QUICK, "log_every": 1})
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["widths"]["hidden"] == 24
    assert first["discrepancy"] > 0
