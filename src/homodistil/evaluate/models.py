"""Opening a model as what it says it is: language model, classifier of images, or encoder; with what it reads by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from homodistil.errors import UserError

Head = Literal["masked", "causal", "classes", "none"]

_AUTO = {
    "masked": AutoModelForMaskedLM,
    "causal": AutoModelForCausalLM,
    "classes": AutoModelForImageClassification,
    "none": AutoModel,
}
_ENDINGS: dict[str, Head] = {
    "ForMaskedLM": "masked",
    "ForPreTraining": "masked",
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForImageClassification": "classes",
    "ForImageClassificationWithTeacher": "classes",
}


@dataclass(frozen=True)
class Opened:
    """A model, ready to be measured.

    Attributes:
        source: the folder or hub name.
        model: in evaluation mode, float32, on a GPU where there is one.
        processor: its tokenizer, or its image processor.
        head: which language model or classifier it has.
    """

    source: str
    model: PreTrainedModel
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    head: Head

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
    def longest(self) -> int:
        """Tokens that both the positions and the tokenizer allow."""
        return int(min(getattr(self.model.config, "max_position_embeddings", 512), self.tokenizer.model_max_length))

    def random_inputs(self, batch: int, length: int) -> dict[str, Tensor]:
        """What it reads: sequences of `length` tokens, or images, which have one size; on its device."""
        draw, config = torch.Generator().manual_seed(0), self.model.config
        if self.reads_images:
            size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
            return {
                "pixel_values": torch.randn(batch, config.num_channels, *size, generator=draw).to(self.model.device)
            }
        ids = torch.randint(config.vocab_size, (batch, length), generator=draw)
        return {"input_ids": ids.to(self.model.device)}


def open_model(source: str, *, trust_remote_code: bool = False) -> Opened:
    """Open a model with the head that its configuration names.

    Raises:
        UserError: there is no such model, it cannot be opened, or it is an encoder-decoder.
    """
    path = transformer_folder(source)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _unopened(source, error) from error
    if config.is_encoder_decoder:
        raise UserError(
            f"Cannot evaluate {source}: it is an encoder-decoder.",
            "A model must be an encoder, a decoder or a model of images.",
            "What a run measured on held-out text is in its metrics.jsonl and in its student's README.md.",
        )
    try:
        names = config.architectures or [""]
        head: Head = next((head for ending, head in _ENDINGS.items() if names[0].endswith(ending)), "none")
        model = _AUTO[head].from_pretrained(path, trust_remote_code=trust_remote_code, dtype=torch.float32)
        if model.main_input_name == "pixel_values":
            processor = AutoImageProcessor.from_pretrained(path, backend="pil", trust_remote_code=trust_remote_code)
        else:
            processor = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            processor.pad_token = processor.pad_token or processor.eos_token
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unopened(source, error) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Opened(source, model.to(device).eval(), processor, head)


def _unopened(source: str, error: Exception) -> UserError:
    return UserError(
        f"Cannot evaluate {source}: {(str(error).strip() or type(error).__name__).splitlines()[0][:300]}",
        "A model is a folder that `save_pretrained` wrote, or the name of one on a hub that can be reached.",
        "Check the path.",
    )


def transformer_folder(source: str) -> str:
    """Where the transformer itself lies: in the folder, or in the first module of a sentence-transformers folder."""
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        inside = sorted(path.glob("0_*/config.json"))
        if inside:
            return str(inside[0].parent)
    return str(path) if path.exists() else source
