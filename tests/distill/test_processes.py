"""Several processes are one run: what they make, what they write, how they stop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertForMaskedLM

import homodistil

TARGET = "hidden=24,heads=3,ffn=48,layers=1"
# a rate at which rounding stays rounding
OPTIONS: dict[str, Any] = {
    "steps": 12,
    "batch": 4,
    "accumulate": 2,
    # full ones, so that all tokens can be counted
    "text": {"length": 32, "packing": "blocks"},
    "cutting": {"ramp_start": 0.4, "ramp_end": 0.8},
    "optim": {"learning_rate": 1e-4},
    "precision": "fp32",
    "log_every": 3,
}
WAYS: dict[str, dict[str, Any]] = {
    "calibrated": {},
    # everything that is measured is measured on batches that are shared
    "on the way": {"cutting": {"importance": "output", "calibration": 0, "basis": "teacher"}},
    # so that batches differ in length, and in how many tokens they predict
    "uneven": {"text": {"packing": "whole"}},
    # of sentence encoders: W is part of the student
    "space": {"text": {"packing": "texts"}, "space": "teacher"},
}

DRIVER = """
import json, os, signal, sys
from pathlib import Path
from safetensors.torch import save_file
import homodistil
from homodistil import errors
from homodistil.distill import checkpoint, learning, loop
from homodistil.distill.state import State

teacher, corpus, out, verb, options = sys.argv[1:]
rank = int(os.environ["RANK"])
train, learn = loop._train, loop.learn

def kept(run, *rest):
    train(run, *rest)
    held = {name: p.detach().clone() for name, p in run.state.student.named_parameters()}
    save_file(held, Path(out).with_suffix(f".{rank}"))

def struck(run, batch, step, **options):
    if step == 7 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    return learn(run, batch, step, **options)

def strayed(state, keep, **options):
    shrink(state, keep, **options)
    for parameter in state.student.parameters():
        parameter.data.mul_(1.1)

select, all_but_one, shrink = loop.select, loop.all_but_one, State.shrink
loop._train = kept
if verb == "distil" and rank == 1:
    # another device: it ranks, turns and compensates otherwise
    loop.select = lambda *given: select(*given[:2], {axis: -scores for axis, scores in given[2].items()}, given[3])
    loop.all_but_one = lambda *given: ({"layers": 1 - all_but_one(*given)[0]["layers"]}, all_but_one(*given)[1])
    learning.turn = lambda *given: None
    State.shrink = strayed
if verb == "stop":
    loop.learn = struck
drawn = loop.drawn
def torn(run, feed):
    if run.state.step == 7 and rank == 1:
        raise errors.UserError("Torn.", "It must be whole.", "Mend it.")
    return drawn(run, feed)
if verb == "torn":
    loop.drawn = torn
save = checkpoint.save
def full(folder, state, *rest):
    if state.step == 7:
        raise OSError(28, "No space left on device")
    save(folder, state, *rest)
data, more = corpus, {}
if verb == "full":
    checkpoint.save, more = full, {"checkpoint_minutes": 0}
if verb == "short":
    # both begin alike, and one of them ends while importance is measured
    lines = Path(corpus).read_text().splitlines()
    data = iter(lines if rank == 0 else lines[:200])
said = []
for changed in ("data", "teacher", "seed") if verb == "different" else ():
    mine = changed if rank == 1 else ""
    try:
        homodistil.distil(
            Path(teacher).with_name("another") if mine == "teacher" else teacher,
            Path(corpus).with_name("other.txt") if mine == "data" else corpus,
            TARGET, out, seed=int(mine == "seed"), **json.loads(options),
        )
    except errors.UserError as refused:
        said.append(str(refused))
if verb == "different":
    Path(out).with_suffix(f".{rank}").write_text(str(said))
    sys.exit()
try:
    if verb == "resume":
        homodistil.resume(out if rank == 0 else out + "-elsewhere")
    else:
        homodistil.distil(teacher, data, TARGET, out, **json.loads(options), **more)
except (errors.UserError, errors.RunStopped) as ended:
    Path(out).with_suffix(f".{rank}").write_text(str(ended))
""".replace("TARGET", repr(TARGET))


def _options(way: str) -> dict[str, Any]:
    changes = WAYS[way].items()
    return OPTIONS | {name: OPTIONS[name] | value if isinstance(value, dict) else value for name, value in changes}


def _launch(*words: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # on the CPU everywhere: two processes cannot share a GPU
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launcher, *map(str, words)], capture_output=True, text=True, env=environment, check=False, timeout=240
    )


def _drive(folder: Path, teacher: Path, corpus: Path, out: Path, verb: str, way: str) -> None:
    (folder / "driver.py").write_text(DRIVER)
    done = _launch(folder / "driver.py", teacher, corpus, out, verb, json.dumps(_options(way)))
    assert done.returncode == 0, done.stderr


def _alone(teacher: Path, corpus: Path, out: Path, way: str) -> dict[str, torch.Tensor]:
    """The student that a single process makes of the same batches."""
    result = homodistil.distil(teacher, corpus, TARGET, out, **_options(way))
    return load_file(result.students[TARGET] / "model.safetensors")


@pytest.mark.parametrize("way", ["calibrated", "on the way", "uneven"])
def test_two_processes_make_the_student_that_one_makes(masked_lm: Path, corpus: Path, tmp_path: Path, way: str) -> None:
    """The same but for rounding, though one would cut otherwise; each holds it bit for bit; one of them writes."""
    out = tmp_path / "run"
    alone = _alone(masked_lm, corpus, tmp_path / "alone", way)
    _drive(tmp_path, masked_lm, corpus, out, "distil", way)
    made = load_file(out / "students" / TARGET / "model.safetensors")
    assert made.keys() == alone.keys()
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)
    first, second = (load_file(out.with_suffix(f".{rank}")) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = homodistil.rundir.RunDir(out).read_metrics()
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})
    of_one = homodistil.rundir.RunDir(tmp_path / "alone").read_metrics()
    assert [r["tokens"] for r in records] == [r["tokens"] for r in of_one]
    full = OPTIONS["steps"] * OPTIONS["batch"] * OPTIONS["accumulate"] * 32
    assert 0 < records[-1]["tokens"] < full if way == "uneven" else records[-1]["tokens"] == full
    assert {p.name for p in out.iterdir()} == {"metrics.jsonl", "recipe.yaml", "asked.yaml", "students", "units"}


def test_two_processes_make_the_layer_that_leads_to_the_teachers_space(
    encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    """As one process makes it: it is learnt by the loss of embeddings, too, and belongs to the student."""
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    SentenceTransformer(modules=[Transformer(str(encoder)), Pooling(48, "mean"), Normalize()]).save(str(teacher))
    _alone(teacher, corpus, tmp_path / "alone", "space")
    _drive(tmp_path, teacher, corpus, out, "distil", "space")
    made, alone = (SentenceTransformer(str(run / "students" / TARGET)) for run in (out, tmp_path / "alone"))
    layers, of_one = made[2].state_dict(), alone[2].state_dict()
    assert not torch.equal(layers["linear.weight"], torch.eye(24, 48).T)
    for name, tensor in layers.items():
        torch.testing.assert_close(tensor, of_one[name], rtol=1e-4, atol=1e-5)
    texts = corpus.read_text().splitlines()[:8]
    np.testing.assert_allclose(made.encode(texts), alone.encode(texts), atol=1e-4)


def test_all_stop_where_one_is_asked_to_and_any_number_of_them_goes_on(
    masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """At the same step, saved, however often they are asked; resumed alone, the run ends with the same student."""
    out = tmp_path / "run"
    _drive(tmp_path, masked_lm, corpus, out, "stop", "calibrated")
    for rank in (0, 1):
        assert (
            f"Stopped at step 7 of {OPTIONS['steps']}; everything is saved." in out.with_suffix(f".{rank}").read_text()
        )

    # of two machines, only one has the checkpoints
    elsewhere = tmp_path / "run-elsewhere"
    shutil.copytree(out, elsewhere, ignore=lambda *_: {"step-00000007"})
    _drive(tmp_path, masked_lm, corpus, out, "resume", "calibrated")
    for rank in (0, 1):
        assert (
            "the step of the newest checkpoint is not the same in all of them (0, 7)"
            in out.with_suffix(f".{rank}").read_text()
        )

    alone = _alone(masked_lm, corpus, tmp_path / "alone", "calibrated")
    result = homodistil.resume(out)
    for name, tensor in load_file(result.students[TARGET] / "model.safetensors").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)


def test_processes_learn_from_the_same_data_and_teacher_by_the_same_recipe(
    masked_lm: Path, corpus: Path, save_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    """What one has otherwise is named to all, and nothing is left of the run; where it lies is no difference."""
    shutil.copytree(masked_lm, tmp_path / "teacher")
    shutil.copytree(save_teacher(BertForMaskedLM, initializer_range=0.1), tmp_path / "another")
    for name, lines in (("corpus", 1), ("other", -1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(corpus.read_text().splitlines()[::lines]))
    out = tmp_path / "run"
    _drive(tmp_path, tmp_path / "teacher", tmp_path / "corpus.txt", out, "different", "calibrated")
    for rank in (0, 1):
        said = out.with_suffix(f".{rank}").read_text()
        for name in ("the data is not", "the teacher, or --student, is not", "the recipe is not"):
            assert name in said
        assert said.count("Cannot share a run among 2 processes") == 3
    assert not out.exists()


def test_all_end_where_one_has_nothing_to_learn_from(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """None waits for the other; what was learnt is saved, and goes on."""
    out = tmp_path / "run"
    _drive(tmp_path, masked_lm, corpus, out, "torn", "calibrated")
    said = [out.with_suffix(f".{rank}").read_text() for rank in (0, 1)]
    assert "another process has nothing to learn from" in said[0]
    assert said[1].startswith("Torn.")
    assert (out / "checkpoints" / "step-00000007").exists()
    assert homodistil.resume(out).students


@pytest.mark.parametrize(
    ("verb", "said"), [("short", "the stream of text has ended"), ("full", "No space left on device")]
)
def test_all_end_in_words_where_one_cannot_go_on(
    verb: str, said: str, masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """Before the first step, where a stream ends in one, and where the main one cannot save."""
    out = tmp_path / "run"
    _drive(tmp_path, masked_lm, corpus, out, verb, "calibrated")
    for rank in (0, 1):
        assert said in out.with_suffix(f".{rank}").read_text()
    saved = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
    assert saved == ([] if verb == "short" else ["step-00000005", "step-00000006"])


def test_what_the_main_process_refuses_is_said_once(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Three batches cannot be shared between two; all end at once, and nothing is written."""
    out = tmp_path / "run"
    words = [masked_lm, "--data", corpus, "--target", "0.5", "--out", out, "--accumulate", 3]
    done = _launch("-m", "homodistil.cli", "distil", *words)
    assert done.returncode != 0
    assert done.stderr.count("Cannot share 3 batches a step among 2 processes.") == 2
    assert done.stderr.count("Use --accumulate 2, or a multiple of it") == 1
    assert not out.exists()
