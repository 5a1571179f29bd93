"""Sentence encoders as sentence-transformers keeps them: what they ask for, and written again around a student.

Some have layers after the pooling, their **tail**, which reads the teacher's hidden width. It is kept as it is: a
student's pooled states go through the projection W of its last hidden states first, which is folded into the tail's
first layer when the student is saved. So its embeddings are as wide as its teacher's. Where a student is to embed in
the space of a teacher without a tail, that gets the identity for one, and its student has W after the pooling.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from homodistil.errors import UserError, first_line
from homodistil.loading import SAYS, read_json
from homodistil.models.sentence_folders import modules_of

Pooling = Literal["mean", "cls", "max", "lasttoken"]
"""How token states become an embedding."""

EMBEDDING = "sentence_embedding"
"""Under which name the modules of sentence-transformers hand on what they make of a text."""

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


def pooling_of(folder: Path) -> Pooling:
    """How a sentence-transformers folder pools.

    Raises:
        UserError: in another way than ours, or in several.
    """
    options = _pooling_options(folder)
    flags = [_POOLINGS.get(k, k) for k, on in options.items() if k.startswith("pooling_mode") and on]
    # folders written before version 5 have one flag a mode, later ones name the mode
    chosen: list[Any] = [options["pooling_mode"]] if "pooling_mode" in options else flags
    if len(chosen) != 1 or chosen[0] not in _POOLINGS.values():
        raise UserError(
            f"Cannot distil the sentence encoder {folder}: it pools by {', '.join(map(str, chosen)) or 'nothing'}.",
            f"Pooling must be one of {', '.join(_POOLINGS.values())}.",
            "Use a sentence encoder with one of them, or give the folder of its transformer alone.",
        )
    pooling: Pooling = chosen[0]
    return pooling


def prompts_of(folder: Path) -> tuple[str, ...]:
    """What a sentence-transformers folder says is put before texts, each once; empty if nothing is.

    Without a prompt by default there are texts that nothing is put before, and "" is one of them. Prompts that the
    embedding leaves out again (see `counts_prompts`) are none.
    """
    file = folder / SAYS
    said = read_json(file) if file.exists() else {}
    named: dict[str, str | None] = said.get("prompts") or {}
    usual = named.get(said.get("default_prompt_name") or "")
    found = tuple(dict.fromkeys(prompt or "" for prompt in (usual, *named.values())))
    return found if any(found) and counts_prompts(folder) else ()


def counts_prompts(folder: Path) -> bool:
    """Whether the embeddings of a sentence-transformers folder are of a prompt's tokens, too."""
    return bool(_pooling_options(folder).get("include_prompt", True))


def _pooling_options(folder: Path) -> dict[str, Any]:
    """What is written about its pooling; nothing if it has none."""
    entry = next((m for m in modules_of(folder) if m["type"].endswith("Pooling")), None)
    options: dict[str, Any] = read_json(folder / entry["path"] / "config.json") if entry else {}
    return options


def tail_of(folder: Path, pooling: Pooling, *, trust_remote_code: bool = False) -> nn.Sequential | None:
    """The layers after the pooling of a sentence-transformers folder, frozen, in float32; None if there are none.

    They take and give features, as all modules of sentence-transformers do (see `EMBEDDING`).

    Raises:
        UserError: they cannot be opened, or read something else than the pooled states.
    """
    names = [m["type"].rpartition(".")[2] for m in modules_of(folder)]
    if "Dense" not in names:
        return None

    from sentence_transformers import SentenceTransformer

    try:
        parts: Iterable[Any] = SentenceTransformer(str(folder), device="cpu", trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(
            f"Cannot load the sentence encoder {folder}: {first_line(error)}",
            "sentence-transformers must open it, with the weights of its Dense modules.",
            "Download it again, or give the folder of its transformer alone.",
        ) from error
    tail = [part for part in parts if type(part).__name__ == "Dense"]
    last = len(names) - 1 - names[::-1].index("Dense")
    if (
        pooling == "max"
        or "Normalize" in names[:last]
        or any(
            getattr(part, f"module_{end}_name", EMBEDDING) != EMBEDDING for part in tail for end in ("input", "output")
        )
        or getattr(tail[0], "use_residual", False)
    ):
        raise UserError(
            f"Cannot distil the sentence encoder {folder}: its modules are {', '.join(names)}, pooled by {pooling}.",
            "Dense modules must read the pooled states themselves, by mean, first or last token, and the first of them "
            "without a way around it, so that a narrower student can take its teacher's place.",
            "Give the folder of its transformer alone.",
        )
    return nn.Sequential(*tail).float().requires_grad_(False).eval()


def identity(width: int) -> nn.Sequential:
    """A tail that changes nothing, (width, width)."""
    try:
        from sentence_transformers.sentence_transformer.modules import Dense
    except ImportError:
        # where older versions have it
        from sentence_transformers.models import Dense
    layer = Dense(width, width, bias=False, activation_function=None)
    layer.linear.weight = nn.Parameter(torch.eye(width))
    return nn.Sequential(layer).float().requires_grad_(False).eval()


def folded(tail: nn.Sequential, projection: Tensor) -> nn.Sequential:
    """A tail that reads a student's pooled states: its first layer reads what `projection`, (narrow, wide), makes."""
    made = copy.deepcopy(tail).cpu()
    first: Any = made[0]
    first.in_features, first.linear.in_features = (len(projection),) * 2
    first.linear.weight = nn.Parameter(first.linear.weight @ projection.detach().cpu().T, requires_grad=False)
    return made


def write_modules(folder: Path, source: Path, width: int, tail: nn.Sequential | None) -> None:
    """Make a model's folder a sentence encoder's or a cross-encoder's, so that both libraries open it.

    Args:
        folder: holds the transformer, which stays in the folder itself.
        source: the sentence-transformers folder whose other modules it gets.
        width: of the transformer's states.
        tail: the layers after the pooling, if there are any.
    """
    modules = modules_of(source)
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if tail is not None and "Dense" not in kinds:
        modules.insert(kinds.index("Pooling") + 1, {"path": "Dense", "type": "sentence_transformers.models.Dense"})
        modules = [module | {"idx": k, "name": str(k)} for k, module in enumerate(modules)]
    layers: Any = iter(tail or ())
    for module in modules:
        place = source / module["path"]
        if module["type"].endswith("Transformer"):
            # sentence_bert_config.json, or what older versions called it after the model
            for file in place.glob("sentence_*_config.json"):
                shutil.copy(file, folder)
            module["path"] = ""
            continue
        (folder / module["path"]).mkdir(parents=True, exist_ok=True)
        if module["type"].endswith("Dense"):
            next(layers).save(str(folder / module["path"]))
            continue
        for file in place.glob("*.json"):
            options = read_json(file)
            options |= {key: width for key in ("word_embedding_dimension", "embedding_dimension") if key in options}
            (folder / module["path"] / file.name).write_text(json.dumps(options, indent=2))
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    if (source / SAYS).exists():
        shutil.copy(source / SAYS, folder)
