"""What a checkpoint's folder holds: its class, weights, tokenizer or image processor, each refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from homodistil.axes.binding import families_of
from homodistil.errors import UserError

# a next-sentence head learns nothing from plain text; such checkpoints hold a masked language model as well
_INSTEAD = {"BertForPreTraining": "BertForMaskedLM"}


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
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load the teacher {source}: {first_line(error)}",
            "A teacher is a folder with a config.json, or the name of a model on a hub that can be reached.",
            "Check the name, or download the model first and give its folder.",
        ) from error
    families_of(raw.get("model_type", "unknown"))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    base = MODEL_MAPPING[type(config)].__name__
    name = base if headless else (raw.get("architectures") or [base])[0]
    name = _INSTEAD.get(name, name)
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise UserError(
            f"Cannot load the teacher {source}: transformers has no class {name}.",
            "The configuration's `architectures` must name a class of the installed transformers.",
            "Correct it, or install the version of transformers that the model was saved with.",
        )
    return model_class, config


def load_model(source: str, folder: str, model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """The model in float32, out of safetensors, with all of its weights; without a pooler where none was saved.

    Raises:
        UserError: there are no safetensors, they do not fit the configuration, or weights are missing.
    """
    path = Path(folder)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        raise UserError(
            f"Cannot load the teacher {source}: it holds no safetensors.",
            "Weights must be safetensors, because pickled ones run any code that was put into them.",
            "If you trust the file, convert it: AutoModel.from_pretrained(...).save_pretrained(NEW_FOLDER).",
        )

    def load(**options: Any) -> tuple[PreTrainedModel, list[str]]:
        try:
            loaded, info = model_class.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"Cannot load the teacher {source}: {first_line(error)}",
                "The folder or hub must hold whole safetensors that fit the configuration.",
                "Download the model again, or check that config.json belongs to it.",
            ) from error
        return loaded, sorted(info["missing_keys"])

    model, missing = load()
    if missing and all(".pooler." in f".{name}" for name in missing):
        # saved without a pooler; one made up here would be distilled as if it meant something
        model, missing = load(add_pooling_layer=False)
    if missing:
        raise UserError(
            f"Cannot use the teacher {source}: it has no weights for {missing[0]}"
            + (f" and {len(missing) - 1} more." if len(missing) > 1 else "."),
            f"A {model_class.__name__} must come with all its weights; random ones would be distilled as if learnt.",
            "Correct `architectures` in its config.json, or save the model again.",
        )
    return model


def load_tokenizer(source: str, folder: Path | str, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer; one without padding pads with what ends a text.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Cannot load the tokenizer of {source}: {first_line(error)}",
            "A teacher comes with its tokenizer, which reads the text for both models.",
            "Save the tokenizer into the teacher's folder with `tokenizer.save_pretrained`.",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    wanted, made = (config.num_channels, *size), tuple(made["pixel_values"].shape[1:])
    if made != wanted:
        raise UserError(
            f"Cannot read images for {source}: its image processor makes them {_by(made)}, and it reads {_by(wanted)}.",
            "The image processor must make images of the model's size (channels x height x width).",
            "Correct `size` in its preprocessor_config.json.",
        )
    return processor


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def check_vocabulary(source: str, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Refuse a tokenizer that is not the model's own, of which the embeddings would have no row for some token.

    Raises:
        UserError: it knows more tokens than the embeddings hold, or none but special ones.
    """
    # a folder without tokenizer files loads as a tokenizer that knows its special tokens and nothing else
    if not len(tokenizer.all_special_ids) < len(tokenizer) <= size:
        raise UserError(
            f"Cannot read text for {source}: its tokenizer has {len(tokenizer)} tokens, its embeddings {size}.",
            "The tokenizer must be the teacher's own, with a vocabulary that its embeddings hold.",
            "Save the tokenizer that the model was trained with into the teacher's folder.",
        )


def first_line(error: Exception) -> str:
    """What an error of a library says first, as far as a line may go."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
