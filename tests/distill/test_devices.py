"""A run on a device that is not the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from transformers import BertForMaskedLM, BertModel, PreTrainedTokenizerBase

import homodistil
from zoo import tiny

AWAY = Path(__file__).parent.parent / "away.py"


@pytest.mark.skipif(
    torch.accelerator.is_available() or not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="there is a device, or this torch cannot pretend to have one",
)
def test_whatever_meets_lies_on_one_device_and_the_student_is_the_same(
    save_teacher: Callable[..., Path], corpus: Path, tokenizer: PreTrainedTokenizerBase, image_processor: Any,
    pictures: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Language models of each kind, sentence encoders and images, killed and resumed: the losses of the CPU's runs."""
    common = {"steps": 8, "batch": 4, "precision": "fp32", "optim": {"learning_rate": 1e-4}, "checkpoint_minutes": 0}
    text = {"data": str(corpus), "text": {"length": 32}}
    jobs: list[dict[str, Any]] = [
        {"teacher": str(save_teacher(BertForMaskedLM)), "target": "hidden=24,heads=2,ffn=48,layers=1", "accumulate": 2},
        {"teacher": str(save_teacher(BertModel)), "target": "0.5", "losses": {"attention_kind": "probabilities"}},
    ]
    for name, target in (("GPT-2", "0.5"), ("T5", "0.5"), ("ViT", "0.5")):
        folder = tmp_path / name
        tiny(name).save_pretrained(folder)
        (image_processor if name == "ViT" else tokenizer).save_pretrained(folder)
        jobs.append({"teacher": str(folder), "target": target})
    for job in jobs:
        job |= common | ({"data": str(pictures)} if "ViT" in job["teacher"] else text)
    expected = [homodistil.distil(**job, out=tmp_path / f"here-{k}").heldout for k, job in enumerate(jobs)]
    there = [job | {"out": str(tmp_path / f"away-{k}"), "killed_at": 5} for k, job in enumerate(jobs)]
    done = subprocess.run(
        [sys.executable, AWAY, json.dumps(there)], capture_output=True, text=True, check=False, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in done.stdout.splitlines()]
    for ours, theirs in zip(made, expected, strict=True):
        for target, measures in theirs.items():
            losses = {name for name in measures if "agreement" not in name and "accuracy" not in name}
            assert {n: ours[target][n] for n in losses} == pytest.approx({n: measures[n] for n in losses}, rel=1e-3)
