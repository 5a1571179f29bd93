"""The state of a run, saved whole or not at all, and found again.

A checkpoint is a folder `step-00000120` of safetensors and JSON. Its manifest is written last and names the size and
SHA-256 of every file, so that a torn one is recognised; the two newest are kept, so that the one before is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from homodistil.axes.shape import LAYERS
from homodistil.compress.cut import Keep
from homodistil.distill.state import State
from homodistil.errors import UserError
from homodistil.rundir import disk_failure, writing_folder

MANIFEST = "manifest.json"
COUNTERS = ("step", "tokens", "sums", "batches", "seen")
"""What of a state lies in the manifest."""


def save(folder: Path, state: State, digest: str, data: str, weights: str) -> None:
    """Save the state as the newest checkpoint in `folder`, and drop all but the one before.

    Args:
        folder: of all checkpoints.
        state: of the run.
        digest: of its recipe.
        data: the identity of what it learns from.
        weights: what tells the models that it began with from others.

    Raises:
        UserError: the disk is full or gone; earlier checkpoints are untouched.
    """
    target = folder / f"step-{state.step:08d}"
    try:
        with writing_folder(target) as path:
            for name, tensors in _tensors(state).items():
                moved = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
                save_file(moved, path / f"{name}.safetensors")
            counters = {name: getattr(state, name) for name in COUNTERS}
            files = {f.name: _identity(f) for f in sorted(path.iterdir())}
            belongs = {"digest": digest, "data": data, "weights": weights}
            (path / MANIFEST).write_text(json.dumps({**belongs, **counters, "files": files}))
    except (OSError, SafetensorError) as error:
        raise disk_failure(target, error) from error
    for old in sorted(folder.glob("step-*"))[:-2]:
        shutil.rmtree(old)


def restore(folder: Path, state: State, digest: str, data: str, weights: str) -> None:
    """Bring a fresh state, as at the start of the run, to the newest whole checkpoint; to none if there is none.

    Raises:
        UserError: the checkpoints belong to another recipe, other models or other data, or none of them is whole.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    whole = ((path, m) for path in found if (m := _manifest(path)) is not None)
    path, manifest = next(whole, (None, None))
    if path is None or manifest is None:
        if found:
            raise UserError(
                f"Cannot resume from {folder}: none of its {len(found)} checkpoints is whole.",
                "A checkpoint must have all its files, with the sizes and sums that its manifest names.",
                "Restore the folder from a backup, or start anew with another --out.",
            )
        return
    if manifest["digest"] != digest:
        raise UserError(
            f"Cannot resume from {path}: it belongs to another recipe.",
            "A run goes on with the recipe that it was started with, or its result would be of neither.",
            "Undo the change in recipe.yaml, or start a new run with another --out.",
        )
    if manifest.get("weights") != weights:
        raise UserError(
            f"Cannot resume from {path}: the teacher, or --student, has changed since it was saved.",
            "A run goes on with the models that it began with: their weights, configuration, pooling and family.",
            "Put their folders, and the file of --family, back as they were, or say in recipe.yaml where they lie; or "
            "start a new run with another --out.",
        )
    if manifest["data"] != data:
        raise other_data(path)
    tensors = {p.stem: load_file(p) for p in path.glob("*.safetensors")}
    _cut_to(state, tensors["origin"])
    with torch.no_grad():
        for name, parameter in state.student.named_parameters():
            parameter.copy_(tensors["student"][name])
    state.projections.load_state_dict(tensors["projections"])
    _load_optimizer(state, tensors["optimizer"])
    device = state.student.device
    state.importance.load_state({k: v.to(device) for k, v in tensors["importance"].items()})
    state.moments.load_state({k: v.to(device) for k, v in tensors["moments"].items()})
    for name in COUNTERS:
        setattr(state, name, manifest[name])


def other_data(path: Path) -> UserError:
    """What is said to those who go on with other data than a checkpoint has learnt from."""
    return UserError(
        f"Cannot resume from {path}: the data has changed since it was saved.",
        "A run goes on with the data that it was started with: its order, its length and its tokens hang on it.",
        "Put the data back as it was (a list as a list, an iterator as one), or start a run with another --out.",
    )


def _tensors(state: State) -> dict[str, Mapping[str, Tensor]]:
    return {
        "student": dict(state.student.named_parameters()),
        "projections": state.projections.state_dict(),
        "optimizer": {
            f"{name}/{key}": torch.as_tensor(value)
            for name, p in _named(state)
            for key, value in state.optimizer.state.get(p, {}).items()
        },
        "importance": state.importance.state(),
        "moments": state.moments.state(),
        "origin": state.origin,
    }


def _named(state: State) -> list[tuple[str, torch.nn.Parameter]]:
    own = [(f"projections.{n}", p) for n, p in state.projections.named_parameters()]
    return [*((f"student.{n}", p) for n, p in state.student.named_parameters()), *own]


def _load_optimizer(state: State, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in _named(state):
        moments = {k.rpartition("/")[2]: v for k, v in tensors.items() if k.rpartition("/")[0] == name}
        if moments:
            state.optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in moments.items()}


def _cut_to(state: State, origin: Mapping[str, Tensor]) -> None:
    """Cut a student that equals the teacher to the units of `origin`; their values are loaded afterwards."""
    keep: Keep = {}
    if LAYERS in origin and len(origin[LAYERS]) < len(state.origin[LAYERS]):
        state.shrink({LAYERS: origin[LAYERS]}, compensate=False)
    for axis, left in origin.items():
        before = state.origin[axis]
        if left.shape == before.shape:
            continue
        if axis in state.layout.parent and before.shape[-1] != left.shape[-1]:
            # rows of heads that are gone keep anything: they leave in the same cut
            rows = before[:, : left.shape[-1]].clone()
            rows[origin[state.layout.parent[axis]]] = left
            keep[axis] = rows
        elif axis not in state.layout.parent:
            keep[axis] = left
    state.shrink(keep, compensate=False)
    state.origin = {axis: origin[axis] for axis in state.origin}


def _identity(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, if every file is as it says."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        whole = all(_identity(path / name) == said for name, said in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return manifest if whole else None
