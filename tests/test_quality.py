"""The comparison in benchmarks/: what is run, what is not run again, and how it is counted."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def _options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    values = {
        "seeds": [0, 1],
        "arms": ["teacher", "homotopic", "paper", "no-cosine"],
        "teachers": ["minilm", "rxnfp"],
        "targets": ["0.3", "0.5"],
        "tokens": "1M",
        "threads": 1,
        "data_dir": tmp_path / "data",
        "work": tmp_path / "work",
        "results": tmp_path / "results.jsonl",
        "tasks": False,
        "probes": False,
        "limit": 100,
    }
    return argparse.Namespace(**values | changes)


def _short(monkeypatch: pytest.MonkeyPatch, teacher: Path, text: Path) -> None:
    """Let the comparison have one arm, of a tiny teacher."""
    import quality

    monkeypatch.setattr(quality, "fetch", lambda _: teacher)
    monkeypatch.setattr(quality, "text_of", lambda *_: (text, text))
    monkeypatch.setattr(quality, "ARMS", {"short": ({"text": {"length": 32}}, None)})


def test_a_seed_is_finished_before_the_next_begins(tmp_path: Path) -> None:
    """So that arms can be compared whenever it is stopped; some need a language model, and one needs embeddings."""
    from quality import runs

    made = list(runs(_options(tmp_path)))
    assert [run.seed for run in made] == sorted(run.seed for run in made)
    assert len({run.name for run in made}) == len(made)
    assert {run.teacher for run in made if run.arm == "paper"} == {"rxnfp"}
    assert {run.teacher for run in made if run.arm == "no-cosine"} == {"minilm"}
    assert [run.target for run in made if run.arm == "teacher"] == ["1"] * 4
    # one set of weights for all layers has no fewer of them
    assert {r.teacher for r in runs(_options(tmp_path, arms=["layers"], teachers=["rxnfp", "rxnmapper"]))} == {"rxnfp"}


def test_atoms_are_counted_one_by_one_and_products_as_wholes() -> None:
    """A product with one atom that is mapped otherwise is mapped otherwise."""
    from atom_maps import agreement

    said = agreement([[4, 2], [0, 1], [7]], [[4, 2], [0, 3], [7]])
    assert said == {"atoms mapped": 0.8, "products mapped": pytest.approx(2 / 3)}


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what another process is at; all else is run once, and is a line."""
    from filelock import FileLock

    import quality

    options = _options(tmp_path, arms=["homotopic"], targets=["0.3"])
    done, busy, *left = quality.runs(options)
    options.results.write_text(json.dumps({**asdict(done), "kind": "distil", "values": {}}) + "\n")
    options.work.mkdir()
    seen = []

    def one(run: Any, *_: Path) -> dict[str, Any]:
        seen.append(run)
        return {"values": {"made": 1.0}}

    monkeypatch.setattr(quality, "one", one)
    with FileLock(options.work / f"{busy.name}.lock"):
        quality.work_through(options)
    assert seen == left
    lines = quality.finished(options.results)
    assert [{key: line[key] for key in asdict(run)} for run, line in zip([done, *left], lines, strict=True)] == [
        asdict(run) for run in [done, *left]
    ]


def test_what_was_interrupted_goes_on(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it was stopped, with the student that it would have had; how long it took is not known."""
    import quality
    from homodistil.distill import loop
    from homodistil.distill.learning import learn
    from homodistil.errors import RunStopped
    from quality_arms import Run

    _short(monkeypatch, masked_lm, corpus)
    whole, run = (Run(seed=0, teacher=name, target="0.5", arm="short", tokens="6k") for name in "ab")
    done = quality.distilled(whole, tmp_path, tmp_path)
    assert done["seconds"] > 0
    steps: list[int] = []

    def stopped(run: Any, batch: Any, step: int, **options: Any) -> Any:
        steps.append(step)
        if steps == [1, 2, 3]:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(run, batch, step, **options)

    monkeypatch.setattr(loop, "learn", stopped)
    with pytest.raises(RunStopped):
        quality.distilled(run, tmp_path, tmp_path)
    assert quality.distilled(run, tmp_path, tmp_path) == {**done, "seconds": None}
    assert steps == sorted(set(steps))
    students = [quality.folder_of(made, tmp_path) / "model.safetensors" for made in (whole, run)]
    assert students[0].read_bytes() == students[1].read_bytes()


def test_a_kill_after_the_last_step_costs_no_run(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the student is kept or measured: it is taken out of the run, which goes when its line is written."""
    import quality
    from homodistil.distill import loop

    _short(monkeypatch, masked_lm, corpus)
    options = _options(tmp_path, arms=["short"], teachers=["any"], targets=["0.5"], seeds=[0], tokens="1k")
    (run,) = quality.runs(options)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for owner, step in ((shutil, "copytree"), (shutil, "copy"), (quality, "measure")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, killed)
            with pytest.raises(KeyboardInterrupt):
                quality.work_through(options)
        monkeypatch.setattr(loop, "prepare", lambda *_, **__: pytest.fail("distilled twice"))
    monkeypatch.setattr(quality, "measure", lambda *_: {})
    quality.work_through(options)
    assert [line["tokens_seen"] > 0 for line in quality.finished(options.results)] == [True]
    assert (quality.folder_of(run, options.work) / "model.safetensors").exists()
    assert quality.metrics_of(run, options.work)
    assert not (options.work / run.name).exists()


def test_an_arm_that_passes_another_target_has_as_many_tokens_for_each(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one run, of which the student of the last is kept; there is no such arm for the target that is passed."""
    import quality
    from quality_arms import Run

    monkeypatch.setattr(quality, "fetch", lambda _: masked_lm)
    monkeypatch.setattr(quality, "text_of", lambda *_: (corpus, corpus))
    seen = {}
    for arm, before in (("alone", ()), ("passes", ("0.75",))):
        monkeypatch.setattr(quality, "ARMS", {arm: ({"text": {"length": 32, "packing": "blocks"}}, None)})
        monkeypatch.setattr(quality, "BEFORE", {"passes": before})
        run = Run(seed=0, teacher="any", target="0.5", arm=arm, tokens="2560")
        seen[arm] = quality.distilled(run, tmp_path, tmp_path)["tokens_seen"]
        assert quality.metrics_of(run, tmp_path)[-1]["target"] == "0.5"
    assert seen["passes"] == 2 * seen["alone"] > 0
    passed = quality.runs(_options(tmp_path, arms=["passes"], targets=["0.75", "0.5"]))
    assert {made.target for made in passed} == {"0.5"}


def test_an_arm_learns_at_its_rate_and_no_other_does(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A multiple of the default one, whatever teacher and budget make of that; two arms have one."""
    import quality
    from homodistil.reading import load
    from quality_arms import ARMS, RATES, Run

    assert {"random", "paper"} == RATES.keys() <= ARMS.keys()
    _short(monkeypatch, masked_lm, corpus)
    rates: list[float] = []
    for times in (1.0, 3.0, 1.0):
        monkeypatch.setattr(quality, "RATES", {"short": times, "other": 5.0})
        run = Run(seed=len(rates), teacher="any", target="0.5", arm="short", tokens="2560")
        quality.distilled(run, tmp_path, tmp_path)
        rate = load(tmp_path / run.name / "recipe.yaml").optim.learning_rate
        assert rate is not None
        rates.append(rate)
    assert rates == [rates[0], pytest.approx(3 * rates[0]), rates[0]]


def test_a_scan_changes_one_option_and_runs_each_value_once(
    masked_lm: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate in times of the default one, in place of the arm's; others by name, in a section or out of one."""
    import quality
    from homodistil.distill import loop
    from homodistil.reading import load
    from scan import scan

    _short(monkeypatch, masked_lm, corpus)
    monkeypatch.setattr(quality, "RATES", {"short": 7.0})
    recipes = []
    monkeypatch.setattr("scan.forget", lambda run, work: recipes.append(load(work / run.name / "recipe.yaml")))
    options = _options(tmp_path, arms=["short"], teachers=["any"], targets=["0.5"], seeds=[0], tokens="2560")
    for option, values in (("rate", [1, 2]), ("losses.hidden", [3.0]), ("log_every", [2])):
        scan(argparse.Namespace(**vars(options) | {"option": option, "values": values}))
    once, twice, hidden, often = recipes
    assert once.optim.learning_rate is not None
    assert twice.optim.learning_rate == pytest.approx(2 * once.optim.learning_rate)
    assert hidden.optim.learning_rate == pytest.approx(7 * once.optim.learning_rate)
    assert (once.losses.hidden, hidden.losses.hidden, often.log_every) != (3.0, 3.0, 2)
    assert (hidden.losses.hidden, often.log_every) == (3.0, 2)

    monkeypatch.setattr(loop, "prepare", lambda *_, **__: pytest.fail("run twice"))
    capsys.readouterr()
    scan(argparse.Namespace(**vars(options) | {"option": "rate", "values": [2, 1]}))
    *_, first, second = capsys.readouterr().out.strip().splitlines()
    assert first.startswith("| any | 0.5 | short | 2560 | 0 | 1 | ")
    assert second.startswith("| any | 0.5 | short | 2560 | 0 | 2 | ")


def test_a_cell_is_the_mean_over_seeds_and_its_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher's own measures stand in all its tables and in no other's; the time of a paused run is not counted."""
    from quality_tables import table

    def line(teacher: str, target: str, arm: str, seed: int, accuracy: float, seconds: float | None) -> str:
        run = {"teacher": teacher, "target": target, "arm": arm, "seed": seed, "tokens": "1M", "kind": "distil"}
        return json.dumps({**run, "values": {"accuracy": accuracy}, "seconds": seconds, "parameters": 7})

    results = tmp_path / "results.jsonl"
    lines = [line("a", "0.3", "homotopic", 0, 0.5, 10), line("a", "0.3", "homotopic", 1, 0.7, None)]
    lines += [line("b", "0.3", "homotopic", 0, 0.1, 20), line("a", "1", "teacher", 0, 0.9, 0)]
    results.write_text("\n".join(lines) + "\n")
    table(results)
    first, second = capsys.readouterr().out.split("### b")
    assert "| accuracy | 0.9000 (1) | 0.6000 ± 0.1000 (2) |" in first
    assert "| seconds | 0 | 10 |" in first
    assert "| accuracy | 0.1000 (1) |" in second


def test_a_task_says_how_it_was_learnt_and_stands_where_a_student_learnt_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fine-tuned, or by a linear model; the teacher's scores are no row of their own at other budgets."""
    from quality_tables import table

    def line(kind: str, arm: str, tokens: str) -> str:
        run = {"teacher": "a", "target": "1" if arm == "teacher" else "0.3", "arm": arm, "seed": 0, "tokens": tokens}
        return json.dumps({**run, "kind": kind, "values": {"score": 81.24}, "seconds": 1, "parameters": 7})

    results = tmp_path / "results.jsonl"
    lines = [line("stsb probe", "teacher", "0"), line("stsb probe", "homotopic", "1M")]
    lines += [line("stsb", "homotopic", "1M"), line("distil", "homotopic", "100k")]
    results.write_text("\n".join(lines) + "\n")
    table(results)
    few, many = capsys.readouterr().out.split("### a to 0.3, 1M")
    assert "| stsb probe | 81.2 (1) | 81.2 (1) |" in many
    assert "| stsb, fine-tuned |  | 81.2 (1) |" in many
    assert "stsb" not in few


def test_the_mean_over_tasks_is_of_seeds_that_learnt_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the main measures stand in a row for each arm and budget, the smaller budget first."""
    from quality_tables import TASKS_OF_MEAN, main_table

    def line(kind: str, seed: int, tokens: str, **values: float) -> str:
        run = {"teacher": "minilm", "target": "0.3", "arm": "homotopic", "seed": seed, "tokens": tokens}
        return json.dumps({**run, "kind": kind, "values": values, "seconds": 5, "parameters": 7})

    lines = [line("distil", seed, "1M", **{"held-out text: similarity": 0.5 + seed / 10}) for seed in (0, 1, 2)]
    lines += [line(task, 0, "1M", score=60 + 4 * k) for k, task in enumerate(TASKS_OF_MEAN)]
    lines += [line(task, 1, "1M", score=70.0) for task in TASKS_OF_MEAN]
    lines += [line(task, 2, "1M", score=0.0) for task in TASKS_OF_MEAN[1:]]
    lines += [line("rte", 0, "1M", score=55.0), line("distil", 0, "300k", **{"held-out text: similarity": 0.2})]
    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(lines) + "\n")
    main_table(results)
    *_, few, many = capsys.readouterr().out.strip().splitlines()
    assert few.startswith("| 0.3 | 300k | homotopic | 5 | 0.200 (1) |")
    assert many.startswith("| 0.3 | 1M | homotopic | 5 | 0.600 ± 0.058 |")
    assert many.endswith("| 68.0 ± 2.0 (2) | 55.0 (1) |")


def test_budgets_are_drawn_against_each_other_where_there_are_several(tmp_path: Path) -> None:
    """In order of their numbers, not of their names, with the mean of each arm's seeds."""
    from quality_tables import DRAWN, budgets_figure, figures, gathered

    def line(teacher: str, tokens: str, seed: int, value: float) -> str:
        run = {"teacher": teacher, "target": "0.3", "arm": "homotopic", "seed": seed, "tokens": tokens}
        values = dict.fromkeys(DRAWN[teacher], value)
        return json.dumps({**run, "kind": "distil", "values": values, "seconds": 1, "parameters": 7})

    results = tmp_path / "results.jsonl"
    results.write_text("\n".join(line(teacher, "1M", 0, 0.8) for teacher in DRAWN) + "\n")
    figures(results, tmp_path / "one", tmp_path)
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["arms-0.3-1M.png"]
    with results.open("a") as file:
        file.writelines(line(teacher, "300k", seed, 0.2 + seed) + "\n" for teacher in DRAWN for seed in (0, 1))
    figures(results, tmp_path / "two", tmp_path)
    assert "budgets-0.3.png" in {p.name for p in (tmp_path / "two").iterdir()}

    drawn = budgets_figure(gathered(results), "0.3").axes[0].lines[0]
    tokens, means = (np.asarray(axis).tolist() for axis in (drawn.get_xdata(), drawn.get_ydata()))
    assert tokens == [300_000, 1_000_000]
    assert means == pytest.approx([0.7, 0.8])
