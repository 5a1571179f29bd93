"""The command line: what it prints, how it leaves, and that it never shows a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import BertForMaskedLM

import homodistil
from homodistil.axes.families import FAMILIES
from homodistil.axes.stack import lists_of
from homodistil.cli import main
from homodistil.cli.distil import read_recipe
from homodistil.errors import UserError
from homodistil.reading import load, over
from homodistil.recipe import Recipe
from homodistil.settings import Losses, Optim, Text

QUICK = ["--steps", "4", "--batch", "4", "--text.length", "32", "--precision", "fp32"]


def _run(*words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "homodistil.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_help_is_printed_without_torch() -> None:
    """Help must come at once, so nothing heavy may be imported for it."""
    code = (
        "import sys; from homodistil.cli import main; from homodistil.cli.distil import read_recipe\n"
        "try: main(['distil', '--help'])\nexcept SystemExit as left: assert left.code == 0\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in Recipe.__dataclass_fields__:
        assert f"--{name}" in done.stdout


def test_plan_prints_the_json_that_programs_read(masked_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan --json` has the teacher and, for each target, five keys."""
    assert main(["plan", str(masked_lm), "--target", "0.5", "--target", "hidden=36", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["teacher", "targets"]
    assert printed["teacher"]["shape"] == {"hidden": 48, "heads": 4, "head_dim": 12, "ffn": 96, "layers": 2}
    assert [t["target"] for t in printed["targets"]] == ["hidden=36", "0.5"]
    for target in printed["targets"]:
        assert list(target) == ["target", "shape", "parameters", "flops_per_token", "memory_bytes"]
        assert target["memory_bytes"] == 4 * target["parameters"]


def test_plan_shows_layers_where_a_target_changes_them(masked_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of their own, and none where the depth stays."""
    assert main(["plan", str(masked_lm), "--target", "0.5"]) == 0
    assert "layers" not in capsys.readouterr().out
    assert main(["plan", str(masked_lm), "--target", "layers=1,hidden=24", "--target", "layers=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "layers" in line).split()[:2] == ["layers", "hidden"]
    assert [line.split()[1:3] for line in lines if line.strip().startswith("layers=1")] == [["1", "48"], ["1", "24"]]


def test_a_long_target_cuts_no_figure_off(masked_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is too long for a line is the name that was given, and it is broken."""
    target = "layers=1,hidden=16,heads=2,head_dim=8,ffn=24"
    main(["plan", str(masked_lm), "--target", target])
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(header in shown for header in ("layers", "hidden", "heads", "ffn", "parameters", "MFLOPs/token", "MB"))


def test_plan_compares_what_no_single_run_reaches(masked_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one size, deep and narrow or shallow and wide: both are shown, and that it takes a run for each."""
    assert main(["plan", str(masked_lm), "--target", "12k", "--target", "12k,layers=1"]) == 0
    shown = capsys.readouterr().out
    named = {line.split()[0] for line in shown.splitlines() if line.startswith("  12k")}
    assert named == {"12k", "12k,layers=1"}
    assert "One run only ever cuts" in shown


def test_families_say_where_layers_may_leave(capsys: pytest.CaptureFixture[str]) -> None:
    """As a width, and where the first or all of them have to stay."""
    assert main(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rules = next(line for line in lines if "rules" in line).index("rules")
    assert sum("layers" in line[:rules] for line in lines) == sum(len(lists_of(family)) == 1 for family in FAMILIES)
    said = " ".join(" ".join(line[rules:] for line in lines).split())
    assert said.count("all layers stay") == sum(bool(family.decoder) for family in FAMILIES)
    assert said.count("the first layer stays") == 1


def test_plan_says_how_far_a_budget_is_missed(masked_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a person, the miss stands in the table."""
    assert main(["plan", str(masked_lm), "--target", "30k"]) == 0
    shown = capsys.readouterr().out
    assert "off budget" in shown
    assert "%" in shown


def test_distil_writes_a_run_that_its_recipe_describes(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Options, repeated targets and a YAML file become one resolved recipe, and plain lines tell the progress."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"target": ["0.9"], "losses": {"attention": 0.5}, "log_every": 2}))
    out = tmp_path / "run"
    done = _run("distil", masked_lm, "--data", corpus, "--config", file, "--target", "0.75", "--target", "0.5",
                "--losses.hidden", "2", "--out", out, *QUICK)  # fmt: skip
    assert done.returncode == 0, done.stderr
    recipe = load(out / "recipe.yaml")
    assert recipe.target == ["0.75", "0.5"]
    assert (recipe.losses.attention, recipe.losses.hidden, recipe.losses.lm) == (0.5, 2.0, 1.0)
    assert recipe.teacher == str(masked_lm.resolve())
    assert "step 4/4" in done.stdout
    assert "tokens/s" in done.stdout
    assert "discrepancy" in done.stdout
    assert "Traceback" not in done.stderr
    card = (out / "students" / "0.5" / "README.md").read_text()
    assert "target:\n- '0.75'\n- '0.5'\n" in card
    assert "| parameters |" in card


def test_a_runs_own_recipe_starts_another_run(tmp_path: Path) -> None:
    """What recipe.yaml says, --config reads back; options win over it, and targets replace its targets."""
    recipe = Recipe(teacher="t", data="d", out="one", target=["0.5", "hidden=24,heads=2"], steps=7)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    again = read_recipe(["--config", str(file), "--out", "two"])
    assert again == replace(recipe, out="two")
    assert read_recipe(["--config", str(file), "--out", "two", "--target", "0.3"]).target == ["0.3"]


def test_what_was_asked_for_starts_another_run_that_chooses_anew(
    masked_lm: Path, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """With another budget, and of another kind of teacher, as if it had been asked for there; the place is its own."""
    words = ["distil", str(masked_lm), "--data", str(corpus), "--target", "0.5", "--tokens", "1k", "--seed", "3",
             "--text.length", "24", "--losses.attention", "0.5"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "first")]) == 0
    asked = ["distil", "--config", str(tmp_path / "first" / "asked.yaml"), "--tokens", "3k", "--out"]
    for teacher, name in ((masked_lm, "language"), (encoder, "encoder")):
        again, anew = tmp_path / f"{name}-again", tmp_path / f"{name}-anew"
        assert main([*asked, str(again), "--teacher", str(teacher)]) == 0
        assert main([words[0], str(teacher), *words[2:], "--tokens", "3k", "--out", str(anew)]) == 0
        assert replace(load(again / "recipe.yaml"), out=str(anew)) == load(anew / "recipe.yaml")
        assert (again / "asked.yaml").read_text() == (anew / "asked.yaml").read_text()
    assert yaml.safe_load((tmp_path / "first" / "asked.yaml").read_text()) == {
        "teacher": str(masked_lm), "data": str(corpus), "target": ["0.5"], "tokens": "1k", "seed": 3,
        "losses": {"attention": 0.5}, "text": {"length": 24},
    }  # fmt: skip
    # what the first run has chosen by itself would not have suited
    first, more = (load(tmp_path / name / "recipe.yaml").losses for name in ("first", "encoder-again"))
    assert (first.attention, first.prediction) == (more.attention, 2 * (more.prediction or 0.0))


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    """As `head` does, or a pager that is left."""
    command = f"{sys.executable} -m homodistil.cli families | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_options_win_over_recipes_wherever_they_stand(tmp_path: Path) -> None:
    """Before or behind --config and --preset; of a recipe and a preset the later one wins."""
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe(teacher="t", data="d", out="one", target=["0.5"], steps=7).to_yaml())
    made = read_recipe(["other", "--out", "two", "--target", "0.3", "--steps", "9", "--config", str(file)])
    assert (Path(made.teacher).name, made.out, made.target, made.steps) == ("other", "two", ["0.3"], 9)
    words = ["t", "--data", "d", "--out", "o", "--target", "0.5", "--optim.method", "muon", "--preset", "paper"]
    made = read_recipe(words)
    assert (made.optim.method, made.optim.width_power, made.cutting.every) == ("muon", 0.0, 1)


def test_a_number_of_tokens_wins_over_the_steps_of_a_recipe(tmp_path: Path) -> None:
    """An option is not ignored because a recipe says the same in another way; in Python over a preset, too."""
    file = tmp_path / "recipe.yaml"
    file.write_text(Recipe(teacher="t", data="d", out="one", target=["0.5"], steps=7).to_yaml())
    made = read_recipe(["--config", str(file), "--out", "two", "--tokens", "3k"])
    assert (made.tokens, made.steps) == ("3k", None)
    assert read_recipe(["--tokens", "3k", "--steps", "9", "--config", str(file), "--out", "two"]).steps == 9
    assert over({"steps": 7}, {"tokens": "3k"}) == {"tokens": "3k"}


def test_options_are_known_as_a_recipe_and_as_other_verbs_spell_them(
    masked_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dots, underscores or dashes; values stay as they are."""
    data = tmp_path / "my_data.v2.jsonl"
    data.write_text('{"my_text": "the cat sees a dog"}\n' * 4)
    for k, option in enumerate(("--text-column", "--text_column", "--text.column")):
        words = ["trim", str(masked_lm), f"--data={data}", f"{option}=my_text", "--out", str(tmp_path / f"out_{k}.a")]
        assert main([*words, "--trust_remote_code"]) == 0, capsys.readouterr().err
        assert (tmp_path / f"out_{k}.a" / "config.json").exists()


@pytest.mark.parametrize("lengths", ["abc", "32,0", "-1"])
def test_lengths_that_are_none_are_refused(lengths: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In words, before anything is opened."""
    assert main(["evaluate", "nowhere", f"--lengths={lengths}"]) == 2
    assert "Use --lengths 32,128." in capsys.readouterr().err


def test_a_runs_folder_is_no_model(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Where its students lie is said, by every verb that opens models."""
    result = homodistil.distil(masked_lm, corpus, "0.5", tmp_path / "run", steps=2, batch=4, text={"length": 32})
    for words in (["plan", "--target", "0.5"], ["evaluate"]):
        done = _run(words[0], tmp_path / "run", *words[1:])
        assert done.returncode == 2
        assert f"use {result.students['0.5']}" in done.stderr


def test_a_tilde_is_the_home_wherever_a_folder_is_named(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell leaves it as it is behind an equals sign, and Python does always; other paths stay relative."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["distil", str(masked_lm), f"--data={corpus}", "--target", "0.5", "--out=~/run", *QUICK]) == 0
    assert main(["distil", "--resume=~/run"]) == 0
    assert main(["trim", "~/run/students/0.5", f"--data={corpus}", "--out=~/trimmed"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(str(tmp_path / "home" / "trimmed"))
    quick = ["--lengths=4", f"--text={corpus}", "--json=~/numbers.json"]
    assert main(["evaluate", "~/run/students/0.5", *quick]) == 0
    assert main(["report", "~/run", "--evaluation=~/numbers.json", "--out=~/page"]) == 0
    assert (tmp_path / "home" / "page" / "index.html").exists()
    assert (tmp_path / "home" / "run" / "students" / "0.5" / "model.safetensors").exists()
    assert not list((tmp_path / "here").iterdir())
    assert read_recipe(["t", "--data", "d", "--target", "0.5", "--out", "runs/x"]).out == "runs/x"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["distill"], "Did you mean 'distil'"),
        (["resume", "runs/half"], "distil --resume"),
        (["distil"], "teacher"),
        (["distil", "x", "--dat", "y"], "Did you mean 'data'"),
        (["distil", "x", "--losses.hiden", "1"], "Did you mean 'losses.hidden'"),
        (["distil", "x", "--data", "y", "--out", "z", "--target", "0.5", "--batch", "many"], "batch"),
        (["distil", "x", "--data", "y", "--target", "0.5"], "--out runs/half"),
        (["distil", "x", "--data", "y"], "without --target, --out."),
        (["distil", "x", "y", "--target", "0.5", "--out", "z"], "--data y"),
        (["distil", "x", "--data", "y", "--out", "z", "--target"], "--target without a value"),
        (["distil", "x", "--data", "y", "--target", "--out", "z"], "--target without a value"),
        (["distil", "x", "--data", "y", "--target", "0.5", "--out"], "--out without a value"),
        (["distil", "x", "--data", "y", "--target", "0.5", "--preset"], "--preset without a value"),
        (["distil", "--config"], "--config without a value"),
        (["distil", "--resume"], "--resume without a value"),
        (["distil", "nowhere/at/all", "--data", "y", "--out", "z", "--target", "0.5"], "Cannot find the teacher"),
        (["distil", "--config", "no.yaml"], "Cannot read the recipe"),
        (["distil", "--resume", "nowhere"], "there is no run"),
        (["distil", "--resume", "nowhere", "--steps", "7"], "recipe that it was started with"),
        (["plan", "nowhere/at/all", "--target", "0.5"], "Cannot find the teacher"),
        (["plan", "~nobody-of-that-name/x", "--target", "0.5"], "Cannot find the teacher"),
        (["distil", "--config", "~nobody-of-that-name/x"], "Cannot read the recipe"),
    ],
)
def test_bad_input_is_answered_in_three_sentences(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Exit status 2, what is wrong, what must hold, what to do; no traceback, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert 3 <= len(said.strip().splitlines()) <= 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("steps", "ten", "a whole number"),
        ("steps", "2.5", "a whole number"),
        ("optim.learning_rate", "abc", "a number"),
        ("trim_vocab", "maybe", "true or false"),
        ("precision", "fp16", "one of auto, bf16, fp32"),
        ("text.prompts", "query: ", "a list of texts"),
        ("losses", "5", "a group"),
    ],
)
def test_a_value_of_another_kind_is_named_with_the_kind_that_it_must_be(option: str, value: str, rule: str) -> None:
    """In words, and not in those of a library."""
    with pytest.raises(UserError) as caught:
        read_recipe(["t", "--data", "d", "--target", "0.5", "--out", "o", f"--{option}", value])
    assert caught.value.refused == f"Cannot use {option} = {value.strip()}."
    assert rule in caught.value.rule
    assert "<class" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("lr", "'optim.learning_rate'"),
        ("learning_rate", "'optim.learning_rate'"),
        ("optim.lr", "'optim.learning_rate'"),
        ("seq_length", "'text.length'"),
        ("batch_size", "'batch'"),
        ("heldout", "'text.heldout' or 'images.heldout'"),
        ("zzz", None),
    ],
)
def test_an_unknown_option_is_answered_with_what_was_meant_and_where_all_are(option: str, meant: str | None) -> None:
    """By last parts and initials too."""
    with pytest.raises(UserError) as caught:
        read_recipe(["t", f"--{option}", "1"])
    listed = "`homodistil distil --help` lists them all."
    assert caught.value.remedy == (f"Did you mean {meant}? {listed}" if meant else listed)


def test_ctrl_c_after_a_stop_is_harmless() -> None:
    """Whoever presses it several times sees the one line, and no traceback of what is on its way out."""
    code = (
        "import atexit, os, signal, sys; from homodistil import cli\n"
        # whoever starts the tests in the background lets them ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interrupt = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "atexit.register(interrupt)\n"
        "cli.VERBS['plan'] = interrupt\n"
        "sys.exit(cli.main(['plan']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.splitlines() == ["Stopped before the next save; what was saved before is whole."]


def test_a_yaml_file_with_an_unknown_key_is_refused_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt key is never silently ignored."""
    file = tmp_path / "recipe.yaml"
    file.write_text("losses: {hiden: 3}")
    assert main(["distil", "--config", str(file)]) == 2
    assert "losses.hiden" in (said := capsys.readouterr().err)
    assert "'hidden'" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# Entwurf für später\nseed: 1".encode("latin-1"), "in UTF-8"),
        (b"\x00\x01\x02", "special characters are not allowed"),
        (b"- seed", "it holds no names with values, but a list"),
        (b"seed: 2020-13-01", "month must be in 1..12"),
        (b"seed: [", "while parsing"),
        (b"5: 3", "no key 5."),
        (b"text: {5: 3}", "no key text.5."),
        (b"text: 5", "text = 5"),
    ],
)
@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_a_recipe_that_cannot_be_read_is_answered_in_three_sentences(
    option: str, content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given as a file, and in a run's folder: what is in no encoding, no YAML, no mapping, and keys that are none."""
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    assert main(["distil", option, str(file if option == "--config" else tmp_path)]) == 2
    answer = capsys.readouterr().err.strip()
    assert said in answer
    assert len(answer.splitlines()) == 3


def test_a_yaml_file_may_hold_numbers_for_targets_and_tokens_and_groups_without_lines(tmp_path: Path) -> None:
    """As YAML reads what is written without quotes; all else goes through unchanged, and options win."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "teacher: größer/🐈\ndata: '0.5'\ntarget: [0.5, 8000000, 17.3M]\ntokens: 500000\n"
        "text:\n  # length: 64\noptim: {learning_rate: 1e-3}\nlosses: {hidden: 2}\n"
    )
    read = read_recipe(["--config", str(file), "--out", "o", "--losses.hidden", "3"])
    assert (read.teacher, read.data, read.tokens) == ("größer/🐈", "0.5", "500000")
    assert read.target == ["0.5", "8000000", "17.3M"]
    assert (read.text, read.optim.learning_rate, read.losses.hidden) == (Text(), 1e-3, 3.0)
    file.write_text("target: 0.5")
    assert read_recipe(["t", "--data", "d", "--out", "o", "--config", str(file)]).target == ["0.5"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_last_line_says_how_to_go_on(
    number: signal.Signals, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """SIGTERM and Ctrl-C leave with 128 + signal, a whole checkpoint and one clear line; resuming finishes."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "homodistil.cli", "distil", str(save_teacher(BertForMaskedLM)),
               "--data", str(corpus), "--target", "0.5", "--out", str(out), *QUICK,
               "--steps", "200", "--log_every", "1"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size == 0:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.strip().splitlines()[-1].endswith(f"homodistil distil --resume {out}")
    assert list((out / "checkpoints").glob("step-*"))
    done = _run("distil", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert "Going on from step" in done.stdout
    assert (out / "students" / "0.5" / "model.safetensors").exists()


def test_options_may_be_written_with_dashes_and_switches_without_a_value() -> None:
    """As other commands have them; values keep their dashes, and a switch may still be turned off."""
    given = ["t", "--data", "my-text", "--out", "o", "--target", "0.5"]
    read = read_recipe([*given, "--trim-vocab", "--log-every", "3", "--losses.similarity-temperature=0.1"])
    assert (read.trim_vocab, read.log_every, read.losses.similarity_temperature) == (True, 3, 0.1)
    assert read.data.endswith("my-text")
    assert read_recipe([*given, "--text.stream"]).text.stream
    assert not read_recipe([*given, "--trim_vocab", "false"]).trim_vocab


def test_a_preset_gives_way_to_options() -> None:
    """What comes after it wins; what it does not say is as by default."""
    words = ["teacher", "--data", "text", "--target", "0.5", "--out", "runs/x", "--preset", "paper"]
    read = read_recipe([*words, "--cutting.grain", "4"])
    assert (read.cutting.importance, read.cutting.compensate, read.cutting.grain) == ("sensitivity", "none", 4)
    assert read.optim == Optim(method="adamw", width_power=0.0)
    assert read.losses == Losses(cosine=0.0, masked=0.15)
    with pytest.raises(UserError, match="Did you mean 'paper'"):
        read_recipe([*words[:-1], "papper"])


@pytest.mark.parametrize("tokens", ["1e6", "1.0e6", "1_000_000", "1M"])
def test_a_recipe_says_to_config_what_it_says(tokens: str, tmp_path: Path) -> None:
    """Also numbers that one reader of YAML takes for texts and another for numbers, and names that look like one."""
    file = tmp_path / "recipe.yaml"
    for out in ("1e3", "😀 half"):
        made = Recipe(teacher="t", data="d", out=out, target=["0.5"], tokens=tokens)
        file.write_text(made.to_yaml(), encoding="utf-8")
        assert read_recipe(["--config", str(file)]) == made.resolved()
    file.write_text(f"teacher: t\ndata: d\nout: o\ntarget: [0.5]\ntokens: {tokens}\n")
    assert read_recipe(["--config", str(file)]).tokens.replace(".0", "") in ("1e6", "1000000", "1_000_000", "1M")


def test_data_behind_a_link_are_what_the_links_name_says(
    masked_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache of a hub holds links to files whose names have no ending."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "5e1f").write_text('{"body": "the man sees a cat"}\n' * 300)
    (tmp_path / "train.jsonl").symlink_to("blobs/5e1f")
    data, out = str(tmp_path / "train.jsonl"), str(tmp_path / "run")
    words = ["distil", str(masked_lm), "--data", data, "--target", "0.5", "--out", out, *QUICK]
    assert main(words) == 2
    assert "--text.column body" in capsys.readouterr().err
    assert main([*words, "--text.column", "body"]) == 0
    assert load(tmp_path / "run" / "recipe.yaml").data == data


def test_a_run_needs_nobody_who_reads_what_it_prints(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """As a service has nothing to print to, or a terminal that cannot show a name."""
    words = ["distil", str(masked_lm), "--data", str(corpus), "--target", "0.5", *QUICK]
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "homodistil.cli", *words])
    for k, how in enumerate((">&-", "> /dev/null")):
        out = tmp_path / f"数据{k}"
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(
            f"{command} --out '{out}' {how}", shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert (out / "students" / "0.5" / "model.safetensors").exists()


def test_a_run_goes_on_when_nobody_reads_what_it_prints_any_more(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """As behind `head`, which leaves after a line; the student is made all the same."""
    words = ["distil", str(masked_lm), "--data", str(corpus), "--target", "0.5", "--out", str(tmp_path / "run"), *QUICK]
    command = [sys.executable, "-m", "homodistil.cli", *words, "--log_every", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        said = run.stderr.read()
        assert run.wait(timeout=120) == 0, said
    assert (tmp_path / "run" / "students" / "0.5" / "model.safetensors").exists()
