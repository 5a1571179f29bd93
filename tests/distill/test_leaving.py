"""Layers that leave in a run: which, what the others are then compared with, and that nothing else is forgotten."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, BertModel, PreTrainedTokenizerBase

import homodistil
from homodistil.axes.layout import Layout
from homodistil.data.collate import batches
from homodistil.distill import learning, loop
from homodistil.distill.leaving import all_but_one, apart
from homodistil.distill.prepare import Run, prepare
from homodistil.errors import RunStopped
from homodistil.losses.descent import Descent
from homodistil.reading import build
from homodistil.reports.curves import units
from homodistil.reports.page import report
from zoo import deep

QUICK: dict[str, Any] = {"steps": 12, "batch": 4, "text": {"length": 32}, "precision": "fp32", "log_every": 3}


@pytest.fixture(scope="module")
def four(save_teacher: Callable[..., Path]) -> Path:
    """The folder of a tiny masked language model of four layers."""
    return save_teacher(BertForMaskedLM, num_hidden_layers=4)


@pytest.fixture
def idle(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder of a Llama of five layers, of which 1 and 3 do nothing."""
    model = deep("Llama", 5)
    with torch.no_grad():
        for k in (1, 3):
            model.model.layers[k].self_attn.o_proj.weight.zero_()
            model.model.layers[k].mlp.down_proj.weight.zero_()
    model.save_pretrained(tmp_path / "idle")
    tokenizer.save_pretrained(tmp_path / "idle")
    return tmp_path / "idle"


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _ready(teacher: Path, corpus: Path, out: Path, **options: Any) -> Run:
    values = {"teacher": str(teacher), "data": str(corpus), "target": "layers=1", "out": str(out), **QUICK}
    return prepare(build(values | options), resume=False, texts=None)


def test_layers_that_do_nothing_leave_first_and_are_not_missed(idle: Path, corpus: Path, tmp_path: Path) -> None:
    """They are the ones chosen, and without them every state is still exactly what it is compared with."""
    run = _ready(idle, corpus, tmp_path / "run")
    batch = next(batches(run.corpus.train, run.collate, 4, start=0))
    for left in ([0, 1, 2, 4], [0, 2, 4]):
        keep, caused = all_but_one(run, [batch])
        assert caused.min() == 0
        assert (caused > 0).sum() >= 3
        run.state.shrink(keep, compensate=False)
        assert run.descent.layers == left
        with torch.no_grad():
            mine, theirs = (run.runner(m, batch) for m in (run.state.student, run.teacher.model))
            terms = run.objective.terms(mine, theirs, batch, run.descent)
        assert run.objective.discrepancy({n: t.item() for n, t in terms.items()}) == 0
    assert all_but_one(run, [batch])[1].min() > 0


def test_layers_are_weighed_on_what_was_just_learnt(
    four: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes next has not been read by then."""
    learnt, weighed = list[torch.Tensor](), list[bool]()
    learn, choose = learning.learn, all_but_one

    def learning_it(run: Run, batch: Any, step: int, **options: Any) -> Any:
        learnt.append(batch["input_ids"].clone())
        return learn(run, batch, step, **options)

    def choosing(run: Run, read: Any) -> Any:
        weighed.append(torch.equal(read[0]["input_ids"], learnt[-1]))
        return choose(run, read)

    monkeypatch.setattr(loop, "learn", learning_it)
    monkeypatch.setattr(loop, "all_but_one", choosing)
    homodistil.distil(four, corpus, "layers=2", tmp_path / "run", cutting={"ramp_end": 0.8}, **QUICK)
    assert weighed == [True, True]


@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertModel])
def test_choosing_changes_nothing_and_is_what_leaving_does(
    model_class: Any, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """The distance that was measured without a layer is the one that is there once it has left."""
    run = _ready(save_teacher(model_class, num_hidden_layers=4), corpus, tmp_path / "run")
    batch = next(batches(run.corpus.train, run.collate, 4, start=0))
    before = {n: p.clone() for n, p in run.state.student.state_dict().items()}
    with torch.no_grad():
        # matrices that differ, so that a wrong one would show
        for k, weight in enumerate(run.state.projections.weights):
            weight.mul_(1 + 0.1 * k)
    for depth in (4, 3, 2):
        keep, caused = all_but_one(run, [batch])
        twice = all_but_one(run, [batch])[1]
        assert torch.equal(caused, twice)
        assert len(caused) == depth
        if depth == 4:
            assert all(torch.equal(p, before[n]) for n, p in run.state.student.state_dict().items())
        run.state.shrink(keep, compensate=False)
        with torch.no_grad():
            mine, theirs = (run.runner(m, batch) for m in (run.state.student, run.teacher.model))
            now = apart(run.objective, mine, theirs, batch, run.state.projections[depth - 1])
        assert now == pytest.approx(caused.min().item())
    assert len(run.state.projections.weights) == 2 + (model_class is BertModel)
    tensors = [*run.state.student.parameters(), *run.state.projections.parameters()]
    assert {id(p) for p in tensors} == {id(p) for g in run.state.optimizer.param_groups for p in g["params"]}


def test_states_and_attention_are_compared_with_the_layers_they_come_from() -> None:
    """States with the last layer whose work was taken over, attention with the layer itself."""
    descent = Descent(6, [0, 1, 4], {2: torch.tensor([1])})
    assert descent.states(range(6)) == [0, 3, 5]
    assert descent.attention(range(6)) == [0, 1, 4]
    assert Descent(3).states(range(6)) == Descent(3).attention(range(6)) == [1, 3, 5]
    assert Descent(3, [0, 2]).states(range(6)) == [3, 5]
    assert Descent(4, [1, 2, 3]).states(range(4)) == [1, 2, 3]


@pytest.mark.parametrize("targets", [["layers=2"], ["layers=3", "layers=2,heads=2,ffn=40"]])
def test_a_run_reaches_its_depth_and_says_which_layers_stayed(
    targets: list[str], four: Path, corpus: Path, tmp_path: Path
) -> None:
    """Layers alone, and with widths and a head fewer: shape, count, the units' file, metrics and the page."""
    result = homodistil.distil(four, corpus, targets, tmp_path / "run", **QUICK)
    planned = {p.target: p for p in homodistil.plan(four, targets)[1]}
    for target, folder in result.students.items():
        model, info = BertForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert Layout.of(model).shape(model) == planned[target].shape
        assert sum(p.numel() for p in model.parameters()) == planned[target].parameters
        said = json.loads((tmp_path / "run" / "units" / f"{target}.json").read_text())
        layers = said["kept"]["layers"]
        assert len(layers) == planned[target].shape["layers"]
        assert said["teacher"]["layers"] == 4
        assert {int(a.partition(".")[2]) for a in said["kept"] if "." in a} == set(layers)
        assert all(len(said["kept"][f"ffn.{k}"]) == planned[target].shape["ffn"] for k in layers)
    assert _records(tmp_path / "run")[-1]["layers"] == layers
    figure = units(said["kept"], said["teacher"], said["parent"])
    drawn = {a.get_title(loc="left").partition(":")[0]: a for a in figure.axes}
    for kind, across in (("layers", 0), ("ffn", 1)):
        picture = drawn[kind].images[0].get_array()
        assert picture is not None
        dark = np.asarray(picture).any(axis=across).tolist()
        assert dark == [k in layers for k in range(4)]
    page = report([tmp_path / "run"], [], tmp_path / "report").read_text()
    assert f"in layers {', '.join(map(str, layers))} of 0 to 3" in page
    assert "4 to 2" in page


def test_a_stopped_run_without_layers_goes_on_to_the_same_student(
    four: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two layers that leave, it takes the same second one out, and ends bit for bit the same."""
    options = {**QUICK, "steps": 16, "cutting": {"ramp_end": 0.8}}
    targets = ["layers=2,hidden=24,ffn=48"]
    whole = homodistil.distil(four, corpus, targets, tmp_path / "whole", **options)
    real = learning.learn

    def learn(run: Any, batch: Any, step: int, **more: Any) -> Any:
        if step == 3:
            assert run.state.layout.depth == 3
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, batch, step, **more)

    monkeypatch.setattr(loop, "learn", learn)
    with pytest.raises(RunStopped):
        homodistil.distil(four, corpus, targets, tmp_path / "stopped", **options)
    monkeypatch.undo()
    resumed = homodistil.resume(tmp_path / "stopped")
    for name in ("model.safetensors", "config.json"):
        assert (resumed.students[targets[0]] / name).read_bytes() == (whole.students[targets[0]] / name).read_bytes()
    for name in ("metrics.jsonl", f"units/{targets[0]}.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_layers_alone_need_no_importance(four: Path, corpus: Path, tmp_path: Path) -> None:
    """Where no unit is cut, none is scored: nothing is measured that nothing reads."""
    run = _ready(four, corpus, tmp_path / "run")
    assert not run.schedule.cuts_units
    assert run.schedule.last_cut == 0
    assert run.schedule.widths(run.schedule.steps)["layers"] == 1
    assert not any(run.schedule.measured(step) for step in range(1, run.schedule.steps + 1))


def test_a_shallow_student_of_a_run_can_lose_more_layers(
    four: Path, save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """A start with fewer layers is compared with evenly spaced ones, and goes on from there."""
    shallow = save_teacher(BertForMaskedLM, num_hidden_layers=2)
    result = homodistil.distil(four, corpus, "layers=1", tmp_path / "run", student=str(shallow), **QUICK)
    assert BertForMaskedLM.from_pretrained(result.students["layers=1"]).config.num_hidden_layers == 1
