"""What a checkpoint's folder holds: its class, weights, tokenizer or image processor, each refused in words."""

from __future__ import annotations

import json
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import cached_file

from homodistil.axes.binding import families_of
from homodistil.errors import UserError, first_line
from homodistil.loading import image_size, load_whole, refuse_no_model, why_unopened
from homodistil.tokenizer import tokenizer_of

# a next-sentence head learns nothing from plain text; such checkpoints hold a masked language model as well
_INSTEAD = {"BertForPreTraining": "BertForMaskedLM"}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What safetensors calls them."""


def model_class_of(
    source: str, folder: str, trust: bool, *, headless: bool = False
) -> tuple[type[PreTrainedModel], Any]:
    """The class that the checkpoint says it is, and its configuration, after checking that its family is known.

    Args:
        source: what the user calls it.
        folder: where it lies, or its name on the hub.
        trust: run code that comes with it.
        headless: its base class, whatever it says: a sentence encoder is opened without a head.

    Raises:
        UserError: there is no configuration, its family is unknown, or transformers has no such class.
    """
    refuse_no_model(source, folder)
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load the teacher {source}: {why_unopened(source, error)}",
            "A teacher is a folder with a config.json, or the name of a model on a hub that can be reached.",
            "Check the name, or download the model first and give its folder.",
        ) from error
    families_of(raw.get("model_type", "unknown"))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise UserError(
            f"Cannot load the teacher {source}: {first_line(error)}",
            "Its configuration must be one that the installed transformers reads.",
            "Correct it, or install the version of transformers that the model was saved with.",
        ) from error
    _refuse_own_code(source, raw, headless)
    if own := getattr(config, "auto_map", None):
        # students have no such files: their tokenizer's code comes with the tokenizer
        config.auto_map = {auto: name for auto, name in own.items() if not _of_model(auto)}
    # configurations of a class that came with the model have no base class of transformers' own
    base = MODEL_MAPPING[type(config)].__name__ if type(config) in MODEL_MAPPING else ""
    name = base if headless else (raw.get("architectures") or [base])[0]
    name = _INSTEAD.get(name, name)
    model_class = getattr(transformers, name, None) if base else None
    if model_class is None:
        raise UserError(
            f"Cannot load the teacher {source}: transformers has no class {name or type(config).__name__}.",
            "Its configuration and what `architectures` names there must be classes of the installed transformers: "
            "code of a model's own is never its model.",
            "Correct it, install the version of transformers that the model was saved with, or leave "
            "--trust_remote_code out.",
        )
    return model_class, config


def _of_model(auto: str) -> bool:
    return auto == "AutoConfig" or auto.startswith("AutoModel")


def _refuse_own_code(source: str, raw: dict[str, Any], headless: bool) -> None:
    """Refuse a sentence encoder whose users open a class of its own, of which ours would be another model."""
    named = [*(raw.get("architectures") or []), str((raw.get("auto_map") or {}).get("AutoModel", ""))]
    strange = [name for name in (n.rpartition(".")[2] for n in named) if name and not hasattr(transformers, name)]
    if headless and strange:
        raise UserError(
            f"Cannot load the teacher {source}: transformers has no class {strange[0]}.",
            "A teacher must be computed as its users compute it, and code of a model's own is never its model.",
            "Use a model of a class of the installed transformers.",
        )


def load_model(source: str, folder: str, model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """The model in float32, out of safetensors, with all of its weights; without a pooler where none was saved.

    Raises:
        UserError: there are no safetensors, they do not fit the configuration, weights are missing, or a student
            could not be saved with the model's generation_config.json.
    """
    path = Path(folder)
    if isdir(path) and not any(path.glob("*.safetensors")):
        raise UserError(
            f"Cannot load the teacher {source}: it holds no safetensors.",
            "Weights must be safetensors, because pickled ones run any code that was put into them.",
            "If you trust the file, open it with the class that `architectures` of its config.json names, and save it: "
            "CLASS.from_pretrained(...).save_pretrained(NEW_FOLDER). AutoModel would leave its head out.",
        )
    model = load_whole(source, model_class, folder, config=config, use_safetensors=True)
    _mend_generation(source, model)
    return model


def precision_of(folder: str, config: Any) -> torch.dtype:
    """In which a model's weights lie: as its configuration says, or as the first of them do where it says nothing.

    So does transformers with dtype="auto".
    """
    if config.dtype is not None:
        said: torch.dtype = config.dtype
        return said
    # what is not there, or not to be reached, is not what the model was loaded from
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(folder, "model.safetensors", **quiet)
    if file is None and (index := cached_file(folder, "model.safetensors.index.json", **quiet)) is not None:
        file = cached_file(folder, next(iter(json.loads(Path(index).read_bytes())["weight_map"].values())), **quiet)
    if file is None:
        return torch.float32
    with safe_open(file, "pt") as held:
        kinds = [held.get_slice(name).get_dtype() for name in held.keys()]  # noqa: SIM118, it is no mapping
    return next((_FLOATS[kind] for kind in kinds if kind in _FLOATS), torch.float32)


def _mend_generation(source: str, model: PreTrainedModel) -> None:
    """Leave out of a generation_config.json what says nothing and transformers, which has read it, would not write.

    Raises:
        UserError: it would not write the rest either, and a run would end in that.
    """
    said = getattr(model, "generation_config", None)
    if said is None:
        return
    try:
        said.validate(strict=True)
    except ValueError:
        # where nothing is drawn, or one text is followed at a time, these say nothing
        idle = [*(_SAMPLING if not said.do_sample else ()), *(_BEAMS if (said.num_beams or 1) == 1 else ())]
        for name in idle:
            setattr(said, name, None)
        try:
            said.validate(strict=True)
        except ValueError as error:
            # the keys that are wrong stand below the first line
            wrong = " ".join(str(error).splitlines()[:2])
            raise UserError(
                f"Cannot save students of {source}: {wrong}",
                "Its generation_config.json comes with them, and transformers must be able to write it.",
                "Correct it there, or delete it.",
            ) from error


def load_tokenizer(source: str, folder: Path | str, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer, as in `tokenizer_of`.

    Args:
        source: what the user calls the model.
        folder: where it lies, or its name on the hub.
        trust: run code that comes with it.

    Raises:
        UserError: it cannot be loaded, or not be made to read small letters.
    """
    try:
        return tokenizer_of(folder, trust)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Cannot load the tokenizer of {source}: {first_line(error)}",
            "A teacher comes with its tokenizer, which reads the text for both models.",
            "Save the tokenizer into the teacher's folder with `tokenizer.save_pretrained`.",
        ) from error


def load_image_processor(source: str, folder: str, config: Any, trust: bool) -> BaseImageProcessor:
    """The image processor, which must make images of the size that the configuration says.

    Raises:
        UserError: it cannot be loaded, or makes others.
    """
    try:
        # Pillow's, on any machine: with torchvision the pixels would be others
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=trust
        )
        made = processor(Image.new("RGB" if config.num_channels == 3 else "L", (64, 48)), return_tensors="pt")
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise UserError(
            f"Cannot load the image processor of {source}: {first_line(error)}",
            "A teacher of images comes with its preprocessor_config.json, which says how they are resized and scaled.",
            "Save the image processor into its folder with `processor.save_pretrained`, or install what it asks for.",
        ) from error
    wanted, made = image_size(config), tuple(made["pixel_values"].shape[1:])
    if made != wanted:
        raise UserError(
            f"Cannot read images for {source}: its image processor makes them {_by(made)}, and it reads {_by(wanted)}.",
            "The image processor must make images of the model's size (channels x height x width).",
            "Correct `size` in its preprocessor_config.json.",
        )
    return processor


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
