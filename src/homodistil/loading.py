"""What a run and an evaluation alike ask of a model: all its weights, a tokenizer of its own, how it reads."""

from __future__ import annotations

import inspect
import json
from os.path import exists, expanduser, isdir
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from homodistil.errors import UserError, first_line


def why_unopened(source: str, error: Exception) -> str:
    """What a library says first; and that it looked on the hub, because no folder has that name."""
    said = first_line(error)
    if exists(expanduser(source)):
        return said
    return f"there is no folder of that name here, and as a name on the hub: {said}"


SAYS = "config_sentence_transformers.json"
"""The file in which sentence-transformers says what it saved."""


def is_cross_encoder(said: Path) -> bool:
    """Whether such a file, if there is one, says that its folder is a classifier's and embeds nothing.

    Cross-encoders are saved with modules, as sentence encoders are.
    """
    try:
        options = json.loads(said.read_bytes())
    except (OSError, ValueError):
        # a torn file is refused by who needs the rest of it
        return False
    return isinstance(options, dict) and options.get("model_type") == "CrossEncoder"


def read_json(file: Path, kind: type = dict) -> Any:
    """What a JSON file of a sentence-transformers folder says, which must be of the kind.

    Raises:
        UserError: it cannot be read, or is of another kind.
    """
    try:
        said = json.loads(file.read_bytes())
        if not isinstance(said, kind):
            raise ValueError(f"it holds a {type(said).__name__}, not a {kind.__name__}.")
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read {file} of the sentence encoder: {first_line(error)}",
            "The files that name its modules and their options must be whole, as sentence-transformers writes them.",
            "Download it or save it again, or give the folder of its transformer alone.",
        ) from error
    return said


def load_whole(source: str, model_class: Any, folder: str, **options: Any) -> PreTrainedModel:
    """The model in float32 with all of its weights; without a pooler where none was saved.

    Args:
        source: what the user calls it.
        model_class: the class that opens it, or an Auto class of transformers.
        folder: where it lies, or its name on the hub.
        options: what else `from_pretrained` is given.

    Raises:
        UserError: weights are missing, or torn, or do not fit the configuration.
    """

    def load(**more: bool) -> tuple[PreTrainedModel, list[str]]:
        try:
            loaded, info = model_class.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options, **more
            )
        except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise UserError(
                f"Cannot load {source}: {first_line(error)}",
                "A model must come with whole weights that fit its configuration.",
                "Download or save it again, or check that config.json belongs to it.",
            ) from error
        return loaded, sorted(info["missing_keys"])

    model, missing = load()
    if missing and all(".pooler." in f".{name}" for name in missing):
        if "add_pooling_layer" in inspect.signature(type(model)).parameters:
            # saved without a pooler; one made up here would be used as if it meant something
            model, missing = load(add_pooling_layer=False)
        elif not type(model).__module__.startswith("transformers."):
            # classes of other people's code may have no such option; their pooler stays, and nothing reads it
            missing = []
    if missing:
        raise UserError(
            f"Cannot use {source}: it has no weights for {missing[0]}"
            + (f" and {len(missing) - 1} more." if len(missing) > 1 else "."),
            f"A {type(model).__name__} must come with all its weights; random ones would be taken for learnt ones.",
            "Correct `architectures` in its config.json, or save the model again.",
        )
    return model


def refuse_no_model(source: str, folder: str) -> None:
    """Refuse a folder that holds no model; of a run's it is told where its students are.

    Raises:
        UserError: it has no config.json.
    """
    path = Path(folder)
    if isdir(path) and not exists(path / "config.json"):
        students = sorted(str(found.parent) for found in path.glob("students/*/config.json"))
        raise UserError(
            f"Cannot open {source}: this folder has no config.json.",
            "A model is a folder that `save_pretrained` wrote, or the name of one on the hub.",
            f"It is a run's folder: use {' or '.join(students)}." if students else "Check the path.",
        )


def image_size(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of the images that a model reads."""
    sides = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    return (config.num_channels, *sides)


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that both the positions and the tokenizer allow."""
    known = getattr(model.config, "max_position_embeddings", 512)
    return int(min(known - unused_positions(model), tokenizer.model_max_length))


def unused_positions(model: PreTrainedModel) -> int:
    """Positions that no token takes: RoBERTa and its kin count from the padding's number."""
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def computes_bf16(device: torch.device) -> bool:
    """Whether the machine has instructions for bf16; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
