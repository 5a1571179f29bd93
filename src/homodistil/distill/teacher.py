"""Loading a teacher, and what its class says about how it is distilled."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import nn
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

from homodistil.axes.layout import Layout, families_of, on_meta
from homodistil.distill.attention import IMPLEMENTATION
from homodistil.errors import UserError

Kind = Literal["masked-lm", "causal-lm", "similarity", "labels", "token-labels", "span"]
"""What a model predicts: masked tokens; the next token; an embedding whose similarities count; a label a sequence,
image or token; the start and end of an answer."""

Pooling = Literal["mean", "cls", "max"]

Reads = Literal["text", "images"]
INPUTS: dict[Reads, tuple[str, ...]] = {"text": ("input_ids", "attention_mask"), "images": ("pixel_values",)}
"""What models are given of a batch."""

_KINDS: dict[str, Kind] = {
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "GPT2LMHeadModel": "causal-lm",
    "ElectraForPreTraining": "token-labels",
    "ForSequenceClassification": "labels",
    "ForTokenClassification": "token-labels",
    "ForQuestionAnswering": "span",
    "ForImageClassification": "labels",
    "ForImageClassificationWithTeacher": "labels",
    "Model": "similarity",
}
# a next-sentence head learns nothing from plain text; such checkpoints hold a masked language model as well
_INSTEAD = {"BertForPreTraining": "BertForMaskedLM"}
_SENTENCE_MODULES = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True)
class Teacher:
    """A frozen model with what is needed to distil it.

    Attributes:
        source: the folder or hub name it came from.
        model: in evaluation mode, without gradients, float32.
        processor: its tokenizer, or its image processor.
        layout: its axes.
        kind: what it predicts.
        pooling: how token states become an embedding, for the kind `similarity`.
        sentence_folder: the sentence-transformers folder it came in, or None.
    """

    source: str
    model: PreTrainedModel
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    layout: Layout
    kind: Kind
    pooling: Pooling
    sentence_folder: Path | None

    @property
    def reads(self) -> Reads:
        """What the model reads."""
        return _reads(type(self.model))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a teacher of text.

        Raises:
            UserError: it reads images.
        """
        if self.reads == "images":
            raise no_tokenizer(self.source)
        return self.processor


def load_teacher(source: str, *, trust_remote_code: bool = False) -> Teacher:
    """Load a teacher from a folder or from the hub, with safetensors only.

    Raises:
        UserError: there is nothing, or nothing that we can cut or distil: no known family, pickled or missing
            weights, a head without a loss of ours, a sentence encoder with modules that would have to be cut.
    """
    sentence_folder, folder = _folders(source)
    model_class, config = _model_class(source, folder, trust_remote_code)
    kind = _kind(model_class)
    pooling: Pooling = "mean" if _reads(model_class) == "text" else "cls"
    pooling = _pooling(sentence_folder) if sentence_folder else pooling
    model = _load_model(source, folder, model_class, config)
    if _reads(model_class) == "text":
        processor = _load_tokenizer(source, sentence_folder or folder, trust_remote_code)
        _check_vocabulary(source, processor, config.vocab_size)
    else:
        processor = _load_image_processor(source, folder, config, trust_remote_code)
    if kind == "masked-lm" and processor.mask_token_id is None:
        raise UserError(
            f"Cannot mask text for {source}.",
            "A masked language model needs a tokenizer with a mask token, and this one has none.",
            "Use the tokenizer that the model was trained with.",
        )
    layout = Layout.of(model)
    assert layout.family is not None
    if kind == "causal-lm" and layout.family.attention_loss:
        raise UserError(
            f"Cannot distil {source} as a {model_class.__name__}.",
            f"{layout.family.name} models are encoders: a language model of next tokens must not see them.",
            "Name its masked language model or its bare encoder in `architectures` of its config.json.",
        )
    model.requires_grad_(False)
    model.eval()
    if model._supports_sdpa:
        # other models, which bend scores or add to them, keep the attention that transformers chose for them
        model.set_attn_implementation(IMPLEMENTATION)
    return Teacher(source, model, processor, layout, kind, pooling, sentence_folder)


def architecture(source: str, *, trust_remote_code: bool = False) -> tuple[Layout, dict[str, int]]:
    """A teacher's axes and shape out of its configuration alone, without its weights.

    Raises:
        UserError: there is no configuration, or its family is unknown.
    """
    _, folder = _folders(source)
    model_class, config = _model_class(source, folder, trust_remote_code)
    model = on_meta(model_class, config)
    layout = Layout.of(model)
    return layout, layout.shape(model)


def unloaded(source: str, *, trust_remote_code: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A teacher's model without storage, whose configuration has the precision of the file, and its tokenizer.

    Raises:
        UserError: there is no configuration or tokenizer, its family is unknown, or it reads images.
    """
    sentence_folder, folder = _folders(source)
    model_class, config = _model_class(source, folder, trust_remote_code)
    if _reads(model_class) == "images":
        raise no_tokenizer(source)
    return on_meta(model_class, config), _load_tokenizer(source, sentence_folder or folder, trust_remote_code)


def copy_of(teacher: Teacher) -> PreTrainedModel:
    """A student that equals the teacher: its own tensors, trainable, and without dropout.

    Dropout would tell the student apart from its teacher before anything is cut.
    """
    student = copy.deepcopy(teacher.model)
    student.requires_grad_(True)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return student.train()


def _folders(source: str) -> tuple[Path | None, str]:
    """The sentence-transformers folder, if it is one, and where the transformer itself is."""
    path = Path(source).expanduser()
    if not path.exists():
        if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (".bin", ".safetensors"):
            raise UserError(
                f"Cannot find the teacher {source}.",
                "A teacher is a folder that `save_pretrained` wrote, or the name of a model on the hub.",
                "Check the path.",
            )
        return None, source
    if not (path / "modules.json").exists():
        return None, str(path)
    modules = json.loads((path / "modules.json").read_text())
    names = {m["type"].rpartition(".")[2]: m["path"] for m in modules}
    if strange := set(names) - _SENTENCE_MODULES:
        raise UserError(
            f"Cannot distil the sentence encoder {source}: it has a module {', '.join(sorted(strange))}.",
            f"The modules of a sentence encoder must be {', '.join(sorted(_SENTENCE_MODULES))}; others have "
            "weights that no table describes.",
            "Use a sentence encoder without them, or give the folder of its transformer alone.",
        )
    return path, str(path / names["Transformer"])


def _pooling(folder: Path) -> Pooling:
    modules = json.loads((folder / "modules.json").read_text())
    entry = next((m for m in modules if m["type"].endswith("Pooling")), None)
    options = json.loads((folder / entry["path"] / "config.json").read_text()) if entry else {}
    names: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
    }
    # folders written before version 5 have one flag a mode, later ones name the mode
    chosen = (
        [options["pooling_mode"]]
        if "pooling_mode" in options
        else [names.get(k, k) for k, on in options.items() if k.startswith("pooling_mode") and on]
    )
    if len(chosen) != 1 or chosen[0] not in ("mean", "cls", "max"):
        raise UserError(
            f"Cannot distil the sentence encoder {folder}: it pools by {', '.join(map(str, chosen)) or 'nothing'}.",
            "Pooling must be one of mean, cls and max.",
            "Use a sentence encoder with one of them, or give the folder of its transformer alone.",
        )
    pooling: Pooling = chosen[0]
    return pooling


def _model_class(source: str, folder: str, trust: bool) -> tuple[type[PreTrainedModel], Any]:
    """The class that the checkpoint says it is, after checking that its family is known."""
    try:
        raw, _ = PretrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load the teacher {source}: {_first_line(error)}",
            "A teacher is a folder with a config.json, or the name of a model on a hub that can be reached.",
            "Check the name, or download the model first and give its folder.",
        ) from error
    families_of(raw.get("model_type", "unknown"))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    name = (raw.get("architectures") or [MODEL_MAPPING[type(config)].__name__])[0]
    name = _INSTEAD.get(name, name)
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise UserError(
            f"Cannot load the teacher {source}: transformers has no class {name}.",
            "The configuration's `architectures` must name a class of the installed transformers.",
            "Correct it, or install the version of transformers that the model was saved with.",
        )
    return model_class, config


def _reads(model_class: type[PreTrainedModel]) -> Reads:
    return "images" if model_class.main_input_name == "pixel_values" else "text"


def no_tokenizer(source: str) -> UserError:
    """What is said to those who want a model of images to read text."""
    return UserError(
        f"Cannot read text with {source}.",
        "This model reads images, and has no tokenizer and no vocabulary.",
        "Leave out what is for text, such as --trim_vocab, or use a model of text.",
    )


def _kind(model_class: type[PreTrainedModel]) -> Kind:
    name = model_class.__name__
    for suffix, kind in _KINDS.items():
        if name.endswith(suffix):
            return kind
    raise UserError(
        f"Cannot distil a {name}.",
        "A teacher must be a masked or causal language model, a bare encoder, or have a sequence, token, question or "
        "image classification head.",
        "Save the model as one of them, for instance with AutoModel.from_pretrained(...).save_pretrained(...).",
    )


def _load_model(source: str, folder: str, model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
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
                f"Cannot load the teacher {source}: {_first_line(error)}",
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


def _load_tokenizer(source: str, folder: Path | str, trust: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Cannot load the tokenizer of {source}: {_first_line(error)}",
            "A teacher comes with its tokenizer, which reads the text for both models.",
            "Save the tokenizer into the teacher's folder with `tokenizer.save_pretrained`.",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_image_processor(source: str, folder: str, config: Any, trust: bool) -> BaseImageProcessor:
    try:
        # Pillow's, on any machine: with torchvision the pixels would be others
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=trust
        )
        made = processor(Image.new("RGB" if config.num_channels == 3 else "L", (64, 48)), return_tensors="pt")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Cannot load the image processor of {source}: {_first_line(error)}",
            "A teacher of images comes with its preprocessor_config.json, which says how they are resized and scaled.",
            "Save the image processor into the teacher's folder with `processor.save_pretrained`.",
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


def _check_vocabulary(source: str, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    # a folder without tokenizer files loads as a tokenizer that knows its special tokens and nothing else
    if not len(tokenizer.all_special_ids) < len(tokenizer) <= size:
        raise UserError(
            f"Cannot read text for {source}: its tokenizer has {len(tokenizer)} tokens, its embeddings {size}.",
            "The tokenizer must be the teacher's own, with a vocabulary that its embeddings hold.",
            "Save the tokenizer that the model was trained with into the teacher's folder.",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
