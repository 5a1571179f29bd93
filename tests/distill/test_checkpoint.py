"""Checkpoints: whole or not at all, found again, and never of another run."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from homodistil.compress.cut import select
from homodistil.compress.importance import magnitude, sensitivity
from homodistil.data.collate import batches
from homodistil.distill import checkpoint
from homodistil.distill.learning import learn
from homodistil.distill.prepare import Run, prepare
from homodistil.distill.state import State
from homodistil.errors import UserError
from homodistil.reading import build
from zoo import deep


@pytest.fixture
def fresh(save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run at step 0; each call gives another of the same recipe."""
    teacher = save_teacher(BertForMaskedLM, num_hidden_layers=4)
    count = iter(range(100))

    def make_run(source: Path = teacher) -> Run:
        values = {"teacher": str(source), "data": str(corpus), "target": "0.5", "steps": 10, "batch": 4,
                  "out": str(tmp_path / f"run{next(count)}"), "precision": "fp32", "text": {"length": 32}}  # fmt: skip
        return prepare(build(values), resume=False, texts=None)

    return make_run


def _advance(run: Run, shape: dict[str, int]) -> State:
    """Learn once, score, step, and cut to a shape."""
    state = run.state
    learn(run, next(batches(run.corpus.train, run.collate, 4, start=state.step)), state.step + 1, scored=True)
    state.importance.update(sensitivity(state.layout, state.student))
    state.optimizer.step()
    state.optimizer.zero_grad()
    layout = state.layout
    keep = select(layout, layout.sizes(state.student), magnitude(layout, state.student), shape)
    state.shrink(keep, compensate=True)
    state.step += 1
    state.tokens += 128
    state.sums, state.batches, state.seen = {"lm": 1 / 3}, 1, "seen"
    return state


def _tensors(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """Whatever a state holds, by what holds it."""
    scores, moments, moved = state.importance, state.moments, state.optimizer.state
    weights = {"student": dict(state.student.named_parameters()), "W": dict(state.projections.named_parameters())}
    own = {f"optimizer of {k} {name}": moved.get(p, {}) for k, named in weights.items() for name, p in named.items()}
    read = {"read": moments.sums, "products": moments.products, "tokens": moments.counts}
    smoothed = {"sum": scores.sum, "mean": scores.mean, "uncertainty": scores.uncertainty}
    return {**weights, **own, **read, **smoothed, "origin": state.origin}


def _same(one: State, other: State) -> None:
    ours, theirs = _tensors(one), _tensors(other)
    assert ours.keys() == theirs.keys()
    for group, tensors in ours.items():
        assert tensors.keys() == theirs[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, theirs[group][name]), f"{group}: {name}"
    counted = [(s.step, s.tokens, s.sums, s.batches, s.seen, s.importance.count) for s in (one, other)]
    assert counted[0] == counted[1]
    assert one.layout.shape(one.student) == other.layout.shape(other.student)


def test_what_is_saved_comes_back_to_the_bit(fresh: Callable[[], Run], tmp_path: Path) -> None:
    """Weights, moments, scores, means, origins and counters, after cuts of every axis and of layers; it learns on."""
    run, again = fresh(), fresh()
    _advance(run, {"hidden": 40, "heads": 3, "head_dim": 10, "ffn": 80, "layers": 3})
    _advance(run, {"hidden": 32, "heads": 2, "head_dim": 9, "ffn": 72, "layers": 2})
    assert run.state.origin["layers"].tolist() == [2, 3]
    checkpoint.save(tmp_path, run.state, "digest", "data", "weights")
    checkpoint.restore(tmp_path, again.state, "digest", "data", "weights")
    _same(run.state, again.state)
    for either in (run, again):
        _advance(either, {"hidden": 24, "heads": 2, "head_dim": 8, "ffn": 64, "layers": 1})
    _same(run.state, again.state)


@torch.no_grad()
def test_layers_come_back_as_what_they_were(
    fresh: Callable[..., Run], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Where they attend in turns, those that are left do so as before."""
    deep("Gemma2").save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    run, again = (fresh(tmp_path / "teacher") for _ in range(2))
    run.state.shrink({"layers": torch.tensor([1, 3])}, compensate=False)
    checkpoint.save(tmp_path, run.state, "digest", "data", "weights")
    checkpoint.restore(tmp_path, again.state, "digest", "data", "weights")
    ours, theirs = run.state.student, again.state.student
    assert theirs.config.layer_types == ours.config.layer_types == ["full_attention"] * 2
    batch = next(batches(run.corpus.train, run.collate, 4, start=0))
    mine, other = (run.runner(student, batch).hidden[-1] for student in (ours, theirs))
    assert torch.equal(mine, other)


def test_only_the_two_newest_are_kept(fresh: Callable[[], Run], tmp_path: Path) -> None:
    """One to resume from and one in case it is torn."""
    run = fresh()
    for step in (1, 2, 30, 100):
        run.state.step = step
        checkpoint.save(tmp_path, run.state, "digest", "data", "weights")
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000030", "step-00000100"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest", "half a manifest"])
def test_a_torn_checkpoint_is_recognised_and_the_one_before_is_used(
    damage: str, fresh: Callable[[], Run], tmp_path: Path
) -> None:
    """However it was torn; and with all of them torn, the run is not silently started anew."""
    run = fresh()
    for step in (1, 2):
        run.state.step = step
        checkpoint.save(tmp_path, run.state, "digest", "data", "weights")

    def tear(folder: Path) -> None:
        file = folder / ("manifest.json" if "manifest" in damage else "optimizer.safetensors")
        content = (folder / "student.safetensors").read_bytes() if damage == "flipped" else file.read_bytes()
        if damage in ("missing", "no manifest"):
            file.unlink()
        elif damage == "flipped":
            (folder / "student.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            file.write_bytes(content[: len(content) // 2])

    tear(tmp_path / "step-00000002")
    again = fresh()
    checkpoint.restore(tmp_path, again.state, "digest", "data", "weights")
    assert again.state.step == 1
    tear(tmp_path / "step-00000001")
    with pytest.raises(UserError, match="none of its 2 checkpoints is whole"):
        checkpoint.restore(tmp_path, fresh().state, "digest", "data", "weights")


def test_a_checkpoint_of_another_recipe_is_refused(fresh: Callable[[], Run], tmp_path: Path) -> None:
    """A run whose recipe.yaml was changed would end as neither recipe's."""
    checkpoint.save(tmp_path, fresh().state, "one", "data", "weights")
    with pytest.raises(UserError, match="another recipe"):
        checkpoint.restore(tmp_path, fresh().state, "other", "data", "weights")


def test_a_checkpoint_of_other_data_is_refused(fresh: Callable[[], Run], tmp_path: Path) -> None:
    """Its order and its length would be others, and the run's last step might be behind it already."""
    checkpoint.save(tmp_path, fresh().state, "digest", "one", "weights")
    with pytest.raises(UserError, match="the data has changed"):
        checkpoint.restore(tmp_path, fresh().state, "digest", "other", "weights")


def test_a_checkpoint_of_other_models_is_refused(fresh: Callable[[], Run], tmp_path: Path) -> None:
    """And so is one that says nothing of them."""
    checkpoint.save(tmp_path, fresh().state, "digest", "data", "one")
    with pytest.raises(UserError, match="the teacher, or --student, has changed"):
        checkpoint.restore(tmp_path, fresh().state, "digest", "data", "other")
    manifest = tmp_path / "step-00000000" / "manifest.json"
    said = json.loads(manifest.read_text())
    del said["weights"]
    manifest.write_text(json.dumps(said))
    with pytest.raises(UserError, match="the teacher, or --student, has changed"):
        checkpoint.restore(tmp_path, fresh().state, "digest", "data", "one")


def test_a_full_disk_leaves_the_checkpoint_before_whole(
    fresh: Callable[[], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills in the middle of a save: a message, no half folder, and the old state can be resumed."""
    run = fresh()
    run.state.step = 1
    checkpoint.save(tmp_path, run.state, "digest", "data", "weights")

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.name.startswith("optimizer"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    run.state.step = 2
    with pytest.raises(UserError, match=r"(?s)No space left.*still whole.*--resume"):
        checkpoint.save(tmp_path, run.state, "digest", "data", "weights")
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith("run")] == ["step-00000001"]
    again = fresh()
    checkpoint.restore(tmp_path, again.state, "digest", "data", "weights")
    assert again.state.step == 1
