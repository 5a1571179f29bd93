"""Sentence encoders as sentence-transformers keeps them: found, on the hub too, and written again around a student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from homodistil.distill.folders import first_line
from homodistil.errors import UserError

Pooling = Literal["mean", "cls", "max", "lasttoken"]
"""How token states become an embedding."""

_MODULES = {"Transformer", "Pooling", "Normalize"}
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
_WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]


def folders_of(source: str, *, weights: bool = True) -> tuple[Path | None, str]:
    """The sentence-transformers folder, if it is one, and where the transformer itself is.

    Args:
        source: a folder, or a name on the hub, from which a sentence encoder is fetched.
        weights: whether its weights are fetched too.

    Raises:
        UserError: there is nothing at the path, it cannot be fetched whole, or the folder has modules that would have
            to be cut.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (".bin", ".safetensors"):
            raise UserError(
                f"Cannot find the teacher {source}.",
                "A teacher is a folder that `save_pretrained` wrote, or the name of a model on the hub.",
                "Check the path.",
            )
        fetched = _from_hub(source, weights)
        if fetched is None:
            return None, source
        path = fetched
    if not (path / "modules.json").exists():
        return None, str(path)
    modules = json.loads((path / "modules.json").read_text())
    names = {m["type"].rpartition(".")[2]: m["path"] for m in modules}
    if strange := set(names) - _MODULES:
        raise UserError(
            f"Cannot distil the sentence encoder {source}: it has a module {', '.join(sorted(strange))}.",
            f"The modules of a sentence encoder must be {', '.join(sorted(_MODULES))}; others have "
            "weights that no table describes.",
            "Use a sentence encoder without them, or give the folder of its transformer alone.",
        )
    return path, str(path / names["Transformer"])


def _from_hub(name: str, weights: bool) -> Path | None:
    """The folder of a sentence encoder, fetched once; None if the hub has no modules of that name, or is not there."""
    try:
        hf_hub_download(name, "modules.json")
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError):
        # a plain transformer, or nothing; transformers will say what
        return None
    wanted = [*_WITHOUT_WEIGHTS, *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]))
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"Cannot load the teacher {name}: {first_line(error)}",
            "A sentence encoder is fetched whole, with its modules and its tokenizer.",
            "Check the connection and the room on the disk, or download it first and give its folder.",
        ) from error


def pooling_of(folder: Path) -> Pooling:
    """How a sentence-transformers folder pools.

    Raises:
        UserError: in another way than ours, or in several.
    """
    modules = json.loads((folder / "modules.json").read_text())
    entry = next((m for m in modules if m["type"].endswith("Pooling")), None)
    options = json.loads((folder / entry["path"] / "config.json").read_text()) if entry else {}
    # folders written before version 5 have one flag a mode, later ones name the mode
    chosen = (
        [options["pooling_mode"]]
        if "pooling_mode" in options
        else [_POOLINGS.get(k, k) for k, on in options.items() if k.startswith("pooling_mode") and on]
    )
    if len(chosen) != 1 or chosen[0] not in _POOLINGS.values():
        raise UserError(
            f"Cannot distil the sentence encoder {folder}: it pools by {', '.join(map(str, chosen)) or 'nothing'}.",
            f"Pooling must be one of {', '.join(_POOLINGS.values())}.",
            "Use a sentence encoder with one of them, or give the folder of its transformer alone.",
        )
    pooling: Pooling = chosen[0]
    return pooling


def write_modules(folder: Path, source: Path, width: int) -> None:
    """Make a model's folder a sentence encoder's, so that both libraries open it.

    Args:
        folder: holds the transformer, which stays in the folder itself.
        source: the sentence-transformers folder whose other modules it gets.
        width: of its embeddings.
    """
    modules = json.loads((source / "modules.json").read_text())
    for module in modules:
        place = source / module["path"]
        if module["type"].endswith("Transformer"):
            if (place / "sentence_bert_config.json").exists():
                shutil.copy(place / "sentence_bert_config.json", folder)
            module["path"] = ""
            continue
        (folder / module["path"]).mkdir(parents=True, exist_ok=True)
        for file in place.glob("*.json"):
            options = json.loads(file.read_text())
            for key in ("word_embedding_dimension", "embedding_dimension"):
                if key in options:
                    options[key] = width
            (folder / module["path"] / file.name).write_text(json.dumps(options, indent=2))
    (folder / "modules.json").write_text(json.dumps(modules, indent=2))
    if (source / "config_sentence_transformers.json").exists():
        shutil.copy(source / "config_sentence_transformers.json", folder)
