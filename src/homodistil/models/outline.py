"""A teacher without its weights: as its configuration describes it, and as its file makes of it when it is opened."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from homodistil.axes.layout import on_meta

COMPARED = 4096
"""Rows of two tensors that are compared at once."""


def outline(model_class: type[PreTrainedModel], config: Any, folder: str) -> PreTrainedModel:
    """The model on the meta device, with the pooler and the ties that it will have once it is opened.

    transformers takes two matrices of a file that are tied by the configuration for two if they differ, as those of
    T5 v1.1 and mT5 do, and a pooler that was not saved is left out. A name on the hub has no file here, and is what its
    configuration says.

    Args:
        model_class: that opens it.
        config: its configuration.
        folder: where it lies, or its name on the hub.
    """
    with ExitStack() as opened:
        held = dict(_held(Path(folder), opened))
        pooled = not held or any(".pooler." in f".{name}" for name in held)
        choosable = "add_pooling_layer" in inspect.signature(model_class).parameters
        model = on_meta(model_class, config, **({} if pooled or not choosable else {"add_pooling_layer": False}))
        first: dict[nn.Parameter, str] = {}
        for name, parameter in list(model.named_parameters(remove_duplicate=False)):
            other = first.setdefault(parameter, name)
            if other != name and {name, other} <= held.keys() and not _equal(held[name], held[other], name, other):
                module, _, last = name.rpartition(".")
                setattr(model.get_submodule(module), last, nn.Parameter(torch.empty_like(parameter)))
    return model


def _held(folder: Path, opened: ExitStack) -> Iterator[tuple[str, Any]]:
    """The file that holds each tensor, by its name; nothing of a file that cannot be read, which loading will tell."""
    for path in folder.glob("*.safetensors") if isdir(folder) else ():
        try:
            file = opened.enter_context(safe_open(path, "pt"))
        except (OSError, SafetensorError):
            continue
        yield from ((name, file) for name in file.keys())  # noqa: SIM118, it is no mapping


def _equal(here: Any, there: Any, name: str, other: str) -> bool:
    one, two = here.get_slice(name), there.get_slice(other)
    if (one.get_shape(), one.get_dtype()) != (two.get_shape(), two.get_dtype()):
        return False
    rows = range(0, one.get_shape()[0], COMPARED)
    return all(torch.equal(one[at : at + COMPARED], two[at : at + COMPARED]) for at in rows)
