"""Where a sentence encoder lies, here or on the hub, and what the files of its folder say."""

from __future__ import annotations

from os.path import exists, expanduser
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from homodistil.errors import UserError
from homodistil.loading import SAYS, is_cross_encoder, read_json, why_unopened

_MODULES = {"Transformer", "Pooling", "Dense", "Normalize"}
_WITHOUT_WEIGHTS = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]


class Folders(NamedTuple):
    """Where a teacher lies.

    Attributes:
        transformer: the folder of its transformer, or its name on the hub.
        modules: the folder in which sentence-transformers saved it, if that is what did.
        embeds: whether that is a sentence encoder; a cross-encoder is a classifier, in a folder with the same files.
    """

    transformer: str
    modules: Path | None = None
    embeds: bool = False


def folders_of(source: str, *, weights: bool = True) -> Folders:
    """Where a teacher's parts lie, fetched from the hub if sentence-transformers saved it.

    Args:
        source: a folder, or a name on the hub, from which a sentence encoder is fetched.
        weights: whether its weights are fetched too.

    Raises:
        UserError: there is nothing at the path, it cannot be fetched whole, or the folder has modules that would have
            to be cut, or its modules cannot be read.
    """
    path = Path(expanduser(source))
    if not exists(path):
        if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (".bin", ".safetensors"):
            raise UserError(
                f"Cannot find the teacher {source}.",
                "A teacher is a folder that `save_pretrained` wrote, or the name of a model on the hub.",
                "Check the path.",
            )
        fetched = _from_hub(source, weights)
        if fetched is None:
            return Folders(source)
        path = fetched
    if not exists(path / "modules.json"):
        return Folders(str(path))
    names = {str(m.get("type")).rpartition(".")[2]: m.get("path", "") for m in modules_of(path)}
    cross = is_cross_encoder(path / SAYS)
    known = {"Transformer"} if cross else _MODULES
    strange = ", ".join(sorted(set(names) - known))
    if strange or "Transformer" not in names:
        raise UserError(
            f"Cannot distil the {'cross-encoder' if cross else 'sentence encoder'} {source}: it has "
            f"{f'a module {strange}' if strange else 'no model'}.",
            f"It must have a Transformer, and no modules but {', '.join(sorted(known))}; others have weights that no "
            "table describes.",
            "Use one with these alone, or give the folder of its transformer alone.",
        )
    return Folders(str(path / names["Transformer"]), path, not cross)


def modules_of(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, in the order in which a text passes them."""
    modules: list[dict[str, Any]] = read_json(folder / "modules.json", list)
    return modules


def _from_hub(name: str, weights: bool) -> Path | None:
    """The folder of a sentence encoder, fetched once; None if the hub has no modules of that name, or is not there."""
    try:
        hf_hub_download(name, "modules.json")
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        # a plain transformer, or nothing; transformers will say what
        return None
    except (OSError, HfHubHTTPError) as error:
        # a hub that is busy has not said that there are no modules
        raise _unfetched(name, error) from error
    wanted = [*_WITHOUT_WEIGHTS, *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]))
    except (OSError, HfHubHTTPError) as error:
        raise _unfetched(name, error) from error


def _unfetched(name: str, error: Exception) -> UserError:
    return UserError(
        f"Cannot load the teacher {name}: {why_unopened(name, error)}",
        "A sentence encoder is fetched whole, with its modules and its tokenizer.",
        "Check the connection and the room on the disk, or download it first and give its folder.",
    )
