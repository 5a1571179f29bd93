"""Opening a model as what it says it is: language model, classifier, or encoder; with what it reads by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os.path import exists, expanduser, isdir
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from homodistil.errors import UserError, first_line
from homodistil.evaluation.similarity import is_sentence_encoder
from homodistil.loading import image_size, load_whole, longest, read_json, refuse_no_model, why_unopened
from homodistil.noise import first_token
from homodistil.tokenizer import check_vocabulary, tokenizer_of

Head = Literal["masked", "causal", "seq2seq", "classes", "span", "none"]
LANGUAGE: tuple[Head, ...] = ("masked", "causal", "seq2seq")
"""Those that predict tokens."""

_KINDS: tuple[tuple[str, Head, Any], ...] = (
    ("ForMaskedLM", "masked", AutoModelForMaskedLM),
    # it tells replaced tokens, and predicts none
    ("ElectraForPreTraining", "none", AutoModelForPreTraining),
    ("ForPreTraining", "masked", AutoModelForMaskedLM),
    ("ForCausalLM", "causal", AutoModelForCausalLM),
    ("LMHeadModel", "causal", AutoModelForCausalLM),
    ("ForImageClassification", "classes", AutoModelForImageClassification),
    ("ForImageClassificationWithTeacher", "classes", AutoModelForImageClassification),
    ("ForSequenceClassification", "classes", AutoModelForSequenceClassification),
    ("ForTokenClassification", "none", AutoModelForTokenClassification),
    ("ForQuestionAnswering", "span", AutoModelForQuestionAnswering),
    ("", "none", AutoModel),
)
"""By the ending of a class's name, the first that fits: its head, and what opens it."""


@dataclass(frozen=True)
class Opened:
    """A model, ready to be measured.

    Attributes:
        source: the folder or hub name.
        model: in evaluation mode, float32, on a GPU where there is one.
        processor: its tokenizer, or its image processor.
        head: which language model or classifier it has.
        trust_remote_code: whether it was opened with code that comes with it.
    """

    source: str
    model: PreTrainedModel
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    head: Head
    trust_remote_code: bool = False

    @property
    def reads_images(self) -> bool:
        """Whether it reads images, and not text."""
        return bool(self.model.main_input_name == "pixel_values")

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of a model of text."""
        assert not self.reads_images
        return self.processor

    @property
    def reader(self) -> nn.Module:
        """What makes states of a text: the model without its head, of an encoder-decoder its encoder."""
        made: nn.Module = self.model.get_encoder() if self.head == "seq2seq" else self.model.base_model
        return made

    @property
    def longest(self) -> int:
        """Tokens that both the positions and the tokenizer allow."""
        return longest(self.model, self.tokenizer)

    def random_inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        """What it reads, on its device: `length` tokens, of encoder-decoders on both sides; images have one size."""
        draw, config = torch.Generator().manual_seed(0), self.model.config
        if self.reads_images:
            images = torch.randn(batch, *image_size(config), generator=draw)
            return {"pixel_values": images.to(self.model.device)}
        ids = torch.randint(config.vocab_size, (batch, length), generator=draw).to(self.model.device)
        return {"input_ids": ids, "decoder_input_ids": ids} if self.head == "seq2seq" else {"input_ids": ids}

    def rows_at_once(self, numbers: int, length: int, most: int) -> int:
        """Sequences in a forward pass: at most `most`, and so many that its predictions are `numbers` or fewer.

        A language model says a number of each token of its vocabulary, at each position.
        """
        if self.head not in LANGUAGE:
            return most
        vocabulary: int = self.model.config.vocab_size
        return max(1, min(most, numbers // (length * vocabulary)))


def open_model(source: str, *, trust_remote_code: bool = False) -> Opened:
    """Open a model with the head that its configuration names.

    Raises:
        UserError: there is no such model, it cannot be opened, has no weights for some of its parameters, has tokens
            that its embeddings do not hold, or is an encoder-decoder without a language model.
    """
    path = transformer_folder(source)
    refuse_no_model(source, path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise _unopened(source, error) from error
    # of a sentence encoder its users call the embedding, whatever head its configuration names
    name = "" if is_sentence_encoder(local(source)) else (config.architectures or [""])[0]
    head, auto = next((head, auto) for ending, head, auto in _KINDS if name.endswith(ending))
    if config.is_encoder_decoder:
        if name not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
            raise UserError(
                f"Cannot evaluate {source}: it is a {name or 'bare'} encoder-decoder.",
                "An encoder-decoder is measured as a language model of text.",
                f"Save it as one, with AutoModelForSeq2SeqLM.from_pretrained({source!r}).save_pretrained(...).",
            )
        head, auto = "seq2seq", AutoModelForSeq2SeqLM
    model = load_whole(source, auto, path, trust_remote_code=trust_remote_code)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.return_dict = True
    processor = _processor_of(model, source, path, trust_remote_code)
    if head == "classes" and not isinstance(processor, BaseImageProcessor):
        # a decoder reads its label off the last token that is no padding, by its configuration
        model.config.pad_token_id = processor.pad_token_id
    if head == "seq2seq":
        first_token(source, model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Opened(source, model.to(device).eval(), processor, head, trust_remote_code)


def _processor_of(
    model: PreTrainedModel, source: str, path: str, trust: bool
) -> PreTrainedTokenizerBase | BaseImageProcessor:
    """Its image processor, or its tokenizer, by which the model is told what padding is."""
    try:
        if model.main_input_name == "pixel_values":
            return AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=trust)
        tokenizer = right_padding_tokenizer(path, trust)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unopened(source, error) from error
    check_vocabulary(source, tokenizer, model.get_input_embeddings().weight.shape[0])
    if tokenizer.pad_token is None:
        raise UserError(
            f"Cannot evaluate {source}: its tokenizer knows neither padding nor the end of a text.",
            "Texts of a batch must be padded to one length.",
            "Name one of its tokens as `pad_token`, and save the tokenizer into the model's folder.",
        )
    if model.config.pad_token_id is None:
        # decoders with a classifier look for the last token that is no padding
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def right_padding_tokenizer(folder: Path | str, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, as `tokenizer_of` makes it, with padding on the right, whatever its own side is.

    Positions are counted from the left, so that what a model says of a text that is padded there hangs on the longest
    one of its batch; and so are an answer's tokens.
    """
    tokenizer = tokenizer_of(folder, trust)
    tokenizer.padding_side = "right"
    return tokenizer


def _unopened(source: str, error: Exception) -> UserError:
    return UserError(
        f"Cannot evaluate {source}: {why_unopened(source, error)}",
        "A model is a folder that `save_pretrained` wrote, or the name of one on a hub that can be reached.",
        "Check the path.",
    )


def local(source: str) -> str:
    """A folder's path with `~` written out, or a hub name as it is."""
    path = Path(expanduser(source))
    return str(path) if exists(path) else source


def transformer_folder(source: str) -> str:
    """Where the transformer itself lies: in the folder, or in the first module of a sentence-transformers folder."""
    path = Path(local(source))
    if isdir(path) and not exists(path / "config.json"):
        inside = sorted(path.glob("0_*/config.json"))
        if inside:
            return str(inside[0].parent)
    return local(source)


def module_folders(source: str) -> set[Path]:
    """The folders that a model is read from: its transformer's, and those of all modules of a sentence encoder.

    Raises:
        UserError: its modules.json is torn.
    """
    folder = Path(local(source))
    modules = read_json(found, list) if exists(found := folder / "modules.json") else []
    return {Path(transformer_folder(source)), *(folder / module["path"] for module in modules)}


def weight_files(folder: Path) -> list[Path]:
    """The files that weights are read from, whole or in the parts that an index names; what lies beside is not read.

    Raises:
        UserError: the index is torn.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if exists(folder / name):
            return [folder / name]
        if exists(index := folder / f"{name}.index.json"):
            try:
                return sorted({folder / part for part in json.loads(index.read_bytes())["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"Cannot evaluate {folder}: its {index.name} cannot be read, {first_line(error)}",
                    "It must name the file that each weight lies in.",
                    "Save or download the model again.",
                ) from error
    return []
