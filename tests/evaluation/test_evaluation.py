"""The verb `evaluate` from end to end, and that nothing finished is measured twice."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

import homodistil
from conftest import WORDS
from homodistil.cli import main
from homodistil.errors import UserError
from homodistil.evaluation import measuring
from homodistil.evaluation import records as kept_records
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.records import Records
from homodistil.reports.tables import rows
from zoo import tiny


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a classification task and judged pairs."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)
    for split, count in (("train", 24), ("validation", 12)):
        texts = [" ".join(draw.choices(WORDS, k=5)) for _ in range(count)]
        rows = {
            "sst2": [{"sentence": t, "label": i % 2} for i, t in enumerate(texts)],
            "glue/stsb": [{"sentence1": t, "sentence2": texts[-1], "label": i / 3} for i, t in enumerate(texts)],
        }
        for name, made in rows.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    return folder


def test_everything_is_measured_for_model_and_teacher_and_never_twice(
    masked_lm: Path, tasks: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks, pairs, text, size and speed; the file keeps it all; the second time nothing is measured."""
    student = tmp_path / "student"
    shutil.copytree(masked_lm, student)
    words = ["evaluate", student, "--against", masked_lm, "--tasks", "sst2,stsb", "--pairs", "stsb", "--text", corpus]
    words += ["--probes", "sst2,stsb"]
    words += ["--data-dir", tasks, "--seeds", "2", "--lengths", "8", "--json", tmp_path / "numbers.json"]
    assert main([str(w) for w in words]) == 0
    shown = capsys.readouterr()
    records = json.loads((tmp_path / "numbers.json").read_text())["records"]
    measures = {(r["measure"], r["role"]) for r in records}
    for measure in ("size", "language", "stsb pairs", "sst2 probe", "stsb probe", "sst2", "stsb", "speed at 8 tokens"):
        assert {(measure, "model"), (measure, "teacher")} <= measures
    assert ("agreement with the teacher", "model") in measures
    assert sum(r["measure"] == "sst2" for r in records) == 4
    by_role = {r["role"]: r["values"] for r in records if r["measure"] == "size"}
    assert by_role["model"]["parameters"] == by_role["teacher"]["parameters"] > 0
    assert by_role["model"]["file_bytes"] == (student / "model.safetensors").stat().st_size
    for word in ("matthews", "accuracy", "±", "x 1.00", "parameters", "pseudo-perplexity"):
        assert (word in shown.out) == (word != "matthews")
    assert "measuring" in shown.err
    assert main([str(w) for w in words]) == 0
    again = capsys.readouterr()
    assert "measuring" not in again.err
    assert again.out == shown.out


def test_python_measures_and_reports_by_paths_or_names_one_or_several(
    masked_lm: Path, tasks: Path, corpus: Path, tmp_path: Path
) -> None:
    """As the command line does, with what the program has at hand; what is there is not measured again."""
    numbers = tmp_path / "numbers.json"
    said: list[str] = []
    one = homodistil.evaluate(
        masked_lm, text=corpus, pairs="stsb", probes=["sst2"], data_dir=tasks, lengths=[8], json=numbers
    )
    assert [r["measure"] for r in one] == ["size", "language", "stsb pairs", "sst2 probe", "speed at 8 tokens"]
    again = homodistil.evaluate(
        str(masked_lm), text=str(corpus), pairs=["stsb"], probes="sst2", data_dir=str(tasks), lengths=[8],
        json=str(numbers), say=said.append,
    )  # fmt: skip
    assert (again, said) == (one, [])
    homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", steps=2, batch=4, text={"length": 32})
    page = homodistil.report(tmp_path / "run", numbers, tmp_path / "page")
    assert page == homodistil.report([str(tmp_path / "run")], [str(numbers)], str(tmp_path / "page"))
    assert "stsb pairs" in page.read_text()


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"limit": 2.5}, {"threads": True}, {"lengths": [8, 0]}])
def test_counts_that_are_none_are_refused_in_python_too(masked_lm: Path, wrong: dict[str, Any]) -> None:
    """Before the model is opened."""
    with pytest.raises(UserError, match="must be a whole number from 1 up"):
        homodistil.evaluate(masked_lm / "nowhere", **wrong)
    with pytest.raises(UserError, match="there is no folder"):
        homodistil.evaluate(masked_lm / "nowhere")


def test_what_texts_tell_at_their_end_is_learnt_as_far_as_they_are_read(
    save_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    """By default all of it; by fewer tokens nothing, which is said."""
    learner = save_teacher(BertModel, initializer_range=0.05, max_position_embeddings=160, num_hidden_layers=1)
    AutoTokenizer.from_pretrained(learner, model_max_length=160).save_pretrained(learner)
    draw, file = random.Random(0), tmp_path / "own.jsonl"
    texts = [" ".join(["the"] * 130 + [draw.choice(["cat", "dog"])] * draw.randint(20, 25)) for _ in range(300)]
    file.write_text("".join(json.dumps({"text": t, "label": int("dog" in t)}) + "\n" for t in texts))
    ask = functools.partial(evaluate, str(learner), tasks=[str(file)], seeds=1, time=False)
    assert ask()[-1]["values"]["accuracy"] > 0.9
    with pytest.warns(UserWarning, match=r"300 of 300 rows of own fill all 128 tokens .* \(--max-length\)"):
        assert ask(max_length=128)[-1]["values"]["accuracy"] < 0.7


def test_a_length_without_room_for_text_is_refused(masked_lm: Path) -> None:
    """Before anything is measured."""
    with pytest.raises(UserError, match=r"--max-length 15\.\n.*from 16 up"):
        homodistil.evaluate(masked_lm, max_length=15)


def test_a_model_in_memory_is_told_to_be_saved() -> None:
    """Its numbers are kept beside the name of its folder."""
    with pytest.raises(UserError, match="Cannot use a T5ForConditionalGeneration as the model"):
        homodistil.evaluate(tiny("T5"))


def test_a_finished_part_survives_a_failure(tmp_path: Path, masked_lm: Path) -> None:
    """What was measured before an error is in the file, and is not measured again; another model is."""
    file = tmp_path / "numbers.json"
    asked: list[str] = []
    records = Records(file, None, asked.append)
    records.measure(str(masked_lm), "first", {"a": 1}, lambda: {"x": 2.5})
    with pytest.raises(ZeroDivisionError):
        records.measure(str(masked_lm), "second", {}, lambda: {"x": 1 / 0})
    records = Records(file, None, asked.append)
    records.measure(str(masked_lm), "first", {"a": 1}, lambda: pytest.fail("measured twice"))
    assert records.used[0]["values"] == {"x": 2.5}
    changed = tmp_path / "changed"
    shutil.copytree(masked_lm, changed)
    records.measure(str(changed), "first", {"a": 1}, lambda: {"x": 3.0})
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    records.measure(str(changed), "first", {"a": 1}, lambda: {"x": 4.0})
    records.measure(str(changed), "first", {"a": 2}, lambda: {"x": 5.0})
    assert [r["values"]["x"] for r in records.used] == [2.5, 3.0, 4.0, 5.0]


def test_a_model_that_is_put_back_is_what_a_report_shows(masked_lm: Path, encoder: Path, tmp_path: Path) -> None:
    """Its numbers are in the file and are not measured again, and yet they are the last."""
    folder, file = tmp_path / "student", tmp_path / "numbers.json"
    for there in (masked_lm, encoder, masked_lm):
        shutil.copytree(there, folder, dirs_exist_ok=True)
        used = evaluate(str(folder), time=False, json=file)
    records = json.loads(file.read_text())["records"]
    assert len(records) == 2
    assert {row.value: row.cells[str(folder)].mean for row in rows(records)} == used[0]["values"]


def test_what_models_say_of_other_tokens_is_not_compared(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """A trimmed one chooses among fewer, and what is special to one is not asked for; all else is compared."""
    homodistil.trim_vocabulary(masked_lm, [" ".join(WORDS[:12])] * 9, tmp_path / "trimmed")
    for name in ("special", "whole"):
        shutil.copytree(masked_lm, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(masked_lm)
    tokenizer.add_special_tokens({"additional_special_tokens": ["cat"]})
    tokenizer.save_pretrained(tmp_path / "special")
    for name in ("trimmed", "special", "whole"):
        used = evaluate(str(tmp_path / name), against=str(masked_lm), text=str(corpus), time=False)
        compared = {row.measure: row.comparable for row in rows(used)}
        assert compared == {"size": True, "language": name == "whole", "agreement with the teacher": True}


def test_a_path_from_home_is_the_folder_that_it_names(
    encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that embeds by its first token does so by either name."""
    folder = tmp_path / "teacher"
    made = SentenceTransformer(str(encoder))
    made[1] = type(made[1])(48, pooling_mode="cls")
    made.save_pretrained(str(folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    used = [evaluate(str(encoder), against=name, text=str(corpus), time=False) for name in (str(folder), "~/teacher")]
    assert [(r["model"], r["values"]) for r in used[0]] == [(r["model"], r["values"]) for r in used[1]]


def test_pairs_without_judgements_are_refused(masked_lm: Path, tasks: Path) -> None:
    """A classification task has no similarities to compare with."""
    with pytest.raises(UserError, match="--pairs stsb"):
        evaluate(str(masked_lm), pairs=["sst2"], data_dir=str(tasks), time=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "sst2"], "there is no folder sst2"),
        (["--tasks", "nosuchtask"], "There is no task"),
        (["--tasks", "~nobodyhere/own.jsonl"], "own.jsonl: there is no such file"),
        (["--tasks", "nosuchfile.jsonl"], "nosuchfile.jsonl: there is no such file"),
        (["--probes", "nosuchfile.jsonl"], "nosuchfile.jsonl: there is no such file"),
        (["--probes", "folder/none"], "none: there is no such file or folder"),
        (["--against", "~nobodyhere/model"], "model: there is no folder of that name here"),
        (["--tasks", "sst2", "--data-dir", "~nobodyhere"], "there is no folder sst2"),
        (["--seeds", "0"], "--seeds 0"),
        (["--text", "nosuchfile.txt"], "nosuchfile.txt"),
        (["--json", "README.md"], "it holds no evaluation"),
        (["--json", "README.md/deep/numbers.json"], "README.md is no folder"),
        (["--text", "own.jsonl", "--text-column", "nope"], "--text-column words"),
        (["--text", "empty.txt"], "Cannot read empty.txt: it is empty"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    words: list[str],
    said: str,
    masked_lm: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 2, three sentences, and no measurement begun."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "own.jsonl").write_text('{"words": "the cat"}\n')
    (tmp_path / "empty.txt").touch()
    assert main(["evaluate", str(masked_lm), "--data-dir", str(tmp_path), "--no-speed", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert "measuring" not in shown.err


def test_other_data_under_one_name_is_measured_anew(masked_lm: Path, tmp_path: Path) -> None:
    """A task's file that has changed gives new numbers, and the chosen learning rate is not searched for twice."""
    rows = [{"text": f"{a} {b} cat", "label": a} for a in WORDS[:4] for b in WORDS[4:12]]
    file, numbers, said = tmp_path / "own.jsonl", tmp_path / "numbers.json", list[str]()

    def ask() -> list[str]:
        said.clear()
        evaluate(
            str(masked_lm), tasks=[str(file)], seeds=1, grid=True, limit=16, time=False, json=numbers, say=said.append
        )
        return [what.partition(": ")[2] for what in said]

    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ask() == ["size", "own, best of the grid", "own, seed 0"]
    assert ask() == []
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    assert ask() == ["own, best of the grid", "own, seed 0"]


def test_two_labels_and_columns_of_one_file_are_several_measurements(encoder: Path, tmp_path: Path) -> None:
    """What is kept of one label or column is not taken for the numbers of another."""
    draw, file = random.Random(0), tmp_path / "own.jsonl"
    texts = [" ".join(draw.choices(WORDS, k=4)) for _ in range(41)]
    rows = [
        {"a": a, "b": b, "cat": "cat" in a, "dog": "dog" in a, "near": k / 3, "far": k % 7 / 3}
        for k, (a, b) in enumerate(itertools.pairwise(texts))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ask(kind: str, columns: list[str], label: str) -> list[str]:
        said: list[str] = []
        options: dict[str, Any] = {kind: [str(file)], "columns": columns, "label": label, "say": said.append}
        evaluate(str(encoder), time=False, json=tmp_path / "numbers.json", **options)
        return [what for what in said if "size" not in what]

    asked = [("probes", ["a"], "cat"), ("probes", ["a"], "dog"), ("probes", ["b"], "dog")]
    asked += [("pairs", ["a", "b"], "near"), ("pairs", ["a", "b"], "far"), ("pairs", ["b", "a"], "far")]
    assert [len(ask(*words)) for words in asked] == [1] * 6
    assert [len(ask(*words)) for words in asked] == [0] * 6


def test_a_model_measured_alone_is_a_teacher_when_it_stands_beside(masked_lm: Path, tmp_path: Path) -> None:
    """The role is the one in which it is used now."""
    student, numbers = tmp_path / "student", tmp_path / "numbers.json"
    shutil.copytree(masked_lm, student)
    evaluate(str(masked_lm), time=False, json=numbers)
    used = evaluate(str(student), against=str(masked_lm), time=False, json=numbers)
    assert [r["role"] for r in used if r["measure"] == "size"] == ["model", "teacher"]
    # in the file as well, where nothing new is measured
    evaluate(str(masked_lm), time=False, json=numbers)
    evaluate(str(student), against=str(masked_lm), time=False, json=numbers)
    roles = {r["model"]: r["role"] for r in json.loads(numbers.read_text())["records"]}
    assert roles == {str(student): "model", str(masked_lm): "teacher"}


def test_two_evaluations_keep_what_both_have_measured(masked_lm: Path, encoder: Path, tmp_path: Path) -> None:
    """Numbers that another one has put into the file meanwhile stay there."""
    numbers = tmp_path / "numbers.json"
    both = [Records(numbers, None, lambda _: None) for _ in range(2)]
    for records, model in zip(both, (masked_lm, encoder), strict=True):
        records.measure(str(model), "size", {}, lambda: {"parameters": 1.0})
    kept = json.loads(numbers.read_text())["records"]
    assert {r["model"] for r in kept} == {str(masked_lm), str(encoder)}


def test_a_file_that_cannot_be_written_is_named(
    masked_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full while numbers are measured."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(kept_records, "write_text", full)
    with pytest.raises(UserError, match=r"room on the disk(?s:.*)evaluate again"):
        evaluate(str(masked_lm), time=False, json=tmp_path / "numbers.json")


def test_speeds_of_another_machine_are_measured_anew(
    masked_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was moved says nothing of how fast a model is here."""
    asked: list[str] = []
    evaluate(str(masked_lm), lengths=(4,), json=tmp_path / "numbers.json")
    evaluate(str(masked_lm), lengths=(4,), json=tmp_path / "numbers.json", say=asked.append)
    assert not asked
    monkeypatch.setattr(measuring, "machine", lambda: {"processor": "another"})
    evaluate(str(masked_lm), lengths=(4,), json=tmp_path / "numbers.json", say=asked.append)
    assert [name.partition(": ")[2] for name in asked] == ["speed at 4 tokens"]


@pytest.mark.parametrize("what", ["--text", "--probes", "--pairs"])
def test_texts_are_read_as_far_as_positions_reach(
    what: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Also of an encoder whose tokenizer knows no limit, and whose padding takes positions."""
    tiny("RoBERTa", pad_token_id=1).base_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tmp_path / "model", model_max_length=int(1e30)).save_pretrained(tmp_path / "model")
    rows = [{"text": "a cat " * 100, "other": "two dog " * 90, "label": k % 3 + 0.5} for k in range(20)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", str(tmp_path / "model"), "--no-speed", what, str(tmp_path / "own.jsonl")]
    assert main(words) == 0
