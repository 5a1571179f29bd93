"""A run that is killed at any moment goes on from its last checkpoint and ends as if it had never been stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

STEPS = 24
TARGETS = ["0.75", "hidden=16,heads=2,ffn=48"]

DRIVER = '''
import os, signal, sys
from pathlib import Path
import torch
import homodistil
from homodistil import rundir
from homodistil.distill import arrival, checkpoint, loop
from homodistil.losses.projections import Projections

torch.set_num_threads(1)
teacher, corpus, out, place, count = sys.argv[1:6]
left = int(count)

def strike(here):
    """Kill this process, unasked and uncleaned, when it has come to `place` for the count-th time."""
    global left
    if here == place:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, here):
    inner = getattr(owner, name)
    def outer(*args, **options):
        strike(here)
        return inner(*args, **options)
    setattr(owner, name, outer)

before(loop, "learn", "step")
before(Projections, "shrink", "cut")           # the student is cut, its projections are not
before(checkpoint, "save_file", "save")        # some files are written
before(checkpoint, "_identity", "manifest")    # all files are written, the manifest is not
before(rundir, "_sync", "sync")                # all is written, the name is not there
before(arrival, "save_student", "student")     # the metrics say so, the student is not there

if Path(out, "recipe.yaml").exists():
    homodistil.resume(out)
else:
    homodistil.distil(
        teacher, corpus, TARGETS, out, steps=STEPS, batch=4, text={"length": 32}, precision="fp32",
        checkpoint_minutes=0, log_every=5, evaluations=2,
    )
'''.replace("TARGETS", repr(TARGETS)).replace("STEPS", str(STEPS))


def _drive(teacher: Path, corpus: Path, out: Path, place: str = "nowhere", count: int = 1) -> int:
    command = [sys.executable, "-c", DRIVER, str(teacher), str(corpus), str(out), place, str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def _result(out: Path) -> dict[str, bytes]:
    files = [out / "metrics.jsonl", *(out / "students").rglob("*.safetensors"), *(out / "units").iterdir()]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_ten_kills_at_random_moments_change_not_a_bit(masked_lm: Path, corpus: Path, tmp_path: Path) -> None:
    """Killed in steps, cuts and saves, ten times over, the run ends with the very bytes of the uninterrupted one."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert _drive(masked_lm, corpus, whole) == 0
    draw = random.Random(0)
    # how often each place may be come to before a kill, so that ten kills fit into the run
    places = {"step": 4, "cut": 2, "save": 9, "manifest": 9, "sync": 9, "student": 1}
    moments = [*places, *draw.choices([p for p in places if p != "student"], k=20)]
    kills = 0
    for place in moments:
        if _drive(masked_lm, corpus, broken, place, draw.randint(1, places[place])) == 0:
            break
        kills += 1
        if kills == 10:
            assert _drive(masked_lm, corpus, broken) == 0
            break
    assert kills == 10
    assert _result(broken) == _result(whole)
    assert not list((broken / "students").glob(".*"))
