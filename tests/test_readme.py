"""What the README and the guide say is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from homodistil.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()


def test_the_readme_is_short() -> None:
    """A page that is read."""
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize(
    ("page", "verbs"),
    [
        (README, ["plan", "distil", "distil", "evaluate", "report", "trim", "families"]),
        (GUIDE, ["plan", "distil", "evaluate", "report"]),
    ],
    ids=["README", "guide"],
)
def test_commands_run(
    page: str,
    verbs: list[str],
    encoder: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each `homodistil` line, with a tiny teacher and budgets that fit it."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    (?:\$ )?homodistil (.+)$", page.replace("\\\n", " "), re.MULTILINE)
    assert [c.split()[0] for c in commands] == verbs
    rows = [{"text": f"the {a} man sees a {b} cat", "label": a} for a in ("old", "big") for b in ("red", "blue")] * 4
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    swaps = {
        "path/to/all-MiniLM-L6-v2": str(encoder),
        "path/to/teacher": str(encoder),
        "corpus.txt": str(corpus),
        "held-out.txt": str(corpus),
        "6.3M,layers=3": "hidden=24,layers=1",
        "8M": "hidden=24",
        "20M": "4k",
        "2M": "4k",
    }
    for command in commands:
        words = [swaps.get(word, word) for word in command.split()]
        extra = ["--batch", "8", "--text.length", "32"] if words[0] == "distil" and "--data" in words else []
        if words[0] == "evaluate" and "--lengths" not in words:
            # the teacher reads no more than 64 tokens
            extra = ["--lengths", "16"]
        assert main([*words, *extra]) == 0, capsys.readouterr().err


def test_the_launcher_of_the_guide_starts_a_run(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    """With two processes and a tiny teacher."""
    (line,) = re.findall(r"^ +torchrun (.+)$", GUIDE, re.MULTILINE)
    swaps = {"8": "2", "path/to/teacher": str(encoder), "corpus.txt": str(corpus)}
    words = [swaps.get(word, word) for word in line.split()]
    short = ["--steps", "4", "--batch", "4", "--text.length", "32"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, *short]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes: 2 batches of 4 a step" in done.stdout
    assert (tmp_path / "runs/half/students/0.5/config.json").exists()


def test_python_of_the_readme_runs(
    encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python block, with a tiny teacher and few tokens."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len(blocks) == 1
    for block in blocks:
        code = block.replace("path/to/teacher", str(encoder)).replace("corpus.txt", str(corpus))
        code = code.replace("held-out.txt", str(corpus)).replace('numbers.json"', 'numbers.json", lengths=[16]')
        code = code.replace('tokens="2M"', 'tokens="4k", text={"length": 32}')
        exec(compile(code, "README.md", "exec"), {})
