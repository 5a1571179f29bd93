"""Loading a teacher, with what is needed to distil it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from homodistil.axes.layout import Layout
from homodistil.errors import UserError
from homodistil.models.attention import IMPLEMENTATION
from homodistil.models.folders import (
    load_image_processor,
    load_model,
    load_tokenizer,
    model_class_of,
    precision_of,
)
from homodistil.models.kind import Kind, Reads, kind_of, reads_of
from homodistil.models.outline import outline
from homodistil.models.sentence import Pooling, identity, pooling_of, prompts_of, tail_of
from homodistil.models.sentence_folders import folders_of
from homodistil.tokenizer import check_vocabulary


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
        modules: the folder in which sentence-transformers saved it, a sentence encoder or a cross-encoder, or None.
        prompts: what its users put before texts; empty if nothing is.
        tail: the layers after the pooling, or None.
        dtype: of its weights where it lies, in which its students are saved too.
    """

    source: str
    model: PreTrainedModel
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    layout: Layout
    kind: Kind
    pooling: Pooling
    modules: Path | None
    prompts: tuple[str, ...]
    tail: nn.Sequential | None
    dtype: torch.dtype

    @property
    def reads(self) -> Reads:
        """What the model reads."""
        return reads_of(type(self.model))

    @property
    def sentence_folder(self) -> Path | None:
        """The sentence-transformers folder of a sentence encoder, or None."""
        return self.modules if self.kind == "similarity" else None

    @property
    def states(self) -> int:
        """Hidden states after the first embeddings: one a layer, and of encoder-decoders the target's embeddings."""
        if self.kind == "seq2seq-lm":
            return sum(self.layout.lists.values()) + 1
        return int(self.model.config.num_hidden_layers)

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
    folder, modules, embeds = folders_of(source)
    model_class, config = model_class_of(source, folder, trust_remote_code, headless=embeds)
    kind = kind_of(model_class, config)
    pooling: Pooling = "mean" if reads_of(model_class) == "text" else "cls"
    prompts: tuple[str, ...] = ()
    tail = None
    if modules is not None and embeds:
        pooling, prompts = pooling_of(modules), prompts_of(modules)
        tail = tail_of(modules, pooling, trust_remote_code=trust_remote_code)
    model = load_model(source, folder, model_class, config)
    if reads_of(model_class) == "text":
        processor = load_tokenizer(source, folder, trust_remote_code)
        check_vocabulary(source, processor, config.vocab_size)
    else:
        processor = load_image_processor(source, folder, config, trust_remote_code)
    if kind == "masked-lm" and processor.mask_token_id is None:
        raise UserError(
            f"Cannot mask text for {source}.",
            "A masked language model needs a tokenizer with a mask token, and this one has none.",
            "Use the tokenizer that the model was trained with.",
        )
    layout = Layout.of(model)
    if kind in ("labels", "multi-label") and reads_of(model_class) == "text":
        # a decoder reads its label off the last token that is no padding, by its configuration
        strange = not layout.family.attention_loss and config.pad_token_id != processor.pad_token_id
        if config.pad_token_id is None or strange:
            model.config.pad_token_id = _padding_of(source, processor)
    if layout.family.decoder and kind != "seq2seq-lm":
        raise UserError(
            f"Cannot distil {source} as a {model_class.__name__}.",
            f"{layout.family.name} models are encoder-decoders, which are distilled as language models.",
            f"Save it as one, with AutoModelForSeq2SeqLM.from_pretrained({source!r}).save_pretrained(...).",
        )
    sees_ahead = not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False)
    if kind == "causal-lm" and (layout.family.attention_loss or sees_ahead):
        raise UserError(
            f"Cannot distil {source} as a {model_class.__name__}.",
            f"{layout.family.name} models are encoders: a language model of next tokens must not see them."
            if layout.family.attention_loss
            else "It attends to the tokens that follow: a language model of next tokens must not see them.",
            "Name its masked language model or its bare encoder in `architectures` of its config.json.",
        )
    model.requires_grad_(False)
    model.eval()
    _plainly(model)
    if model._supports_sdpa:
        # other models, which bend scores or add to them, keep the attention that transformers chose for them
        attend(model, IMPLEMENTATION)
    dtype = precision_of(folder, config)
    return Teacher(source, model, processor, layout, kind, pooling, modules, prompts, tail, dtype)


def keeping_space(teacher: Teacher) -> Teacher:
    """A teacher whose students embed in its own space, through a tail (see `sentence`).

    Raises:
        UserError: it is no sentence encoder that sentence-transformers saved, or pools by the largest states.
    """
    if teacher.tail is not None:
        return teacher
    if teacher.kind != "similarity" or teacher.modules is None or teacher.pooling == "max":
        embeds = teacher.kind == "similarity" and teacher.modules is not None
        what = "pools by max" if embeds else "is no sentence encoder"
        raise UserError(
            f"Cannot keep the space of {teacher.source} (space = teacher): it {what}.",
            "It must be one, in a folder of sentence-transformers, that pools by mean, first or last token, so that a "
            "layer after the pooling can lead into its space.",
            "Save it as one with SentenceTransformer(...).save(...), or leave --space out.",
        )
    return replace(teacher, tail=identity(teacher.model.config.hidden_size))


def architecture(source: str, *, trust_remote_code: bool = False) -> tuple[Layout, dict[str, int]]:
    """A teacher's axes and shape out of its configuration and the names in its file, without its weights.

    Raises:
        UserError: there is no configuration, or its family is unknown.
    """
    folder, _, embeds = folders_of(source, weights=False)
    model_class, config = model_class_of(source, folder, trust_remote_code, headless=embeds)
    model = outline(model_class, config, folder)
    layout = Layout.of(model)
    return layout, layout.shape(model)


def unloaded(
    source: str, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """A teacher's model without storage, its tokenizer, and the prompts that it comes with.

    Raises:
        UserError: there is no configuration or tokenizer, or one of another model, its family is unknown, or it reads
            images.
    """
    folder, modules, embeds = folders_of(source, weights=False)
    model_class, config = model_class_of(source, folder, trust_remote_code, headless=embeds)
    if reads_of(model_class) == "images":
        raise no_tokenizer(source)
    tokenizer = load_tokenizer(source, folder, trust_remote_code)
    check_vocabulary(source, tokenizer, config.vocab_size)
    return outline(model_class, config, folder), tokenizer, prompts_of(modules) if modules and embeds else ()


def _plainly(model: PreTrainedModel) -> None:
    """Let all of a model answer by names, without maps of attention, and read whole sequences at once."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.return_dict = True
            # with it, transformers would save no student
            part.config.output_attentions = False
        if hasattr(part, "chunk_size_feed_forward"):
            part.chunk_size_feed_forward = 0


def attend(model: PreTrainedModel, implementation: str) -> None:
    """Let all of a model attend in one way: stacks of an encoder-decoder may have configurations of their own."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation(implementation)


def copy_of(teacher: Teacher) -> PreTrainedModel:
    """A student that equals the teacher: its own tensors, trainable, and in evaluation mode.

    Dropout would tell the student apart from its teacher before anything is cut.
    """
    student = copy.deepcopy(teacher.model)
    student.requires_grad_(True)
    return student.eval()


def _padding_of(source: str, tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"Cannot distil {source}: nothing says which token is padding.",
            "A decoder with a head for labels reads them off the last token of a text that is no padding.",
            "Add pad_token_id to its config.json, and pad_token to its tokenizer_config.json.",
        )
    return int(tokenizer.pad_token_id)


def no_tokenizer(source: str) -> UserError:
    """What is said to those who want a model of images to read text."""
    return UserError(
        f"Cannot read text with {source}.",
        "This model reads images, and has no tokenizer and no vocabulary.",
        "Leave out what is for text, such as --trim_vocab, or use a model of text.",
    )
