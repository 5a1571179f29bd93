"""Opening a model as what it says it is: masked or causal language model, or encoder; with its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from homodistil.errors import UserError

Head = Literal["masked", "causal", "none"]

_AUTO = {"masked": AutoModelForMaskedLM, "causal": AutoModelForCausalLM, "none": AutoModel}


@dataclass(frozen=True)
class Opened:
    """A model, ready to be measured.

    Attributes:
        source: the folder or hub name.
        model: in evaluation mode, float32, on a GPU where there is one.
        tokenizer: its tokenizer.
        head: which language model it has.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head

    @property
    def longest(self) -> int:
        """Tokens that both the positions and the tokenizer allow."""
        return int(min(getattr(self.model.config, "max_position_embeddings", 512), self.tokenizer.model_max_length))


def open_model(source: str, *, trust_remote_code: bool = False) -> Opened:
    """Open a model with the head that its configuration names.

    Raises:
        UserError: there is no such model, or it cannot be opened.
    """
    path = transformer_folder(source)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        names = config.architectures or [""]
        masked = names[0].endswith(("ForMaskedLM", "ForPreTraining"))
        head: Head = "masked" if masked else "causal" if names[0].endswith(("ForCausalLM", "LMHeadModel")) else "none"
        model = _AUTO[head].from_pretrained(path, trust_remote_code=trust_remote_code, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"Cannot evaluate {source}: {(str(error).strip() or type(error).__name__).splitlines()[0][:300]}",
            "A model is a folder that `save_pretrained` wrote, or the name of one on a hub that can be reached.",
            "Check the path.",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Opened(source, model.to(device).eval(), tokenizer, head)


def transformer_folder(source: str) -> str:
    """Where the transformer itself lies: in the folder, or in the first module of a sentence-transformers folder."""
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        inside = sorted(path.glob("0_*/config.json"))
        if inside:
            return str(inside[0].parent)
    return str(path) if path.exists() else source
