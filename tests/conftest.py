"""Tiny real models, made from a configuration, saved and reopened. Nothing is downloaded here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ViTImageProcessorPil,
)

from homodistil.axes.families import own
from homodistil.distill.prepare import Run, prepare
from homodistil.reading import build

WORDS = "a the one two red blue old small big man cat dog tree house sees likes takes finds on in under near".split()
HEAD_CLASSES = [
    BertModel,
    BertForMaskedLM,
    BertForPreTraining,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertForQuestionAnswering,
    BertForMultipleChoice,
]


def tiny_config(**changes: object) -> BertConfig:
    """Two layers, hidden 48 = 4 heads x 12, ffn 96; random but not near zero, so that differences show."""
    values: dict[str, object] = {
        "vocab_size": 5 + len(WORDS),
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return BertConfig(**values | changes)


def make(model_class: type[PreTrainedModel], **changes: object) -> PreTrainedModel:
    """A random tiny model in evaluation mode; biases and norms are random too, so that cutting them wrongly shows."""
    torch.manual_seed(0)
    model = model_class(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name
    return model


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """What a test draws hangs on no other test, and a family that it registers is its own."""
    torch.manual_seed(0)
    yield
    own.registered.clear()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of 27 words."""
    vocab = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    made: PreTrainedTokenizerBase = BertTokenizer(vocab=str(vocab), model_max_length=64)
    return made


@pytest.fixture(scope="session")
def save_teacher(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Saves a tiny model of a class with its tokenizer, and returns the folder."""

    def save(model_class: type[PreTrainedModel], **changes: object) -> Path:
        folder = tmp_path_factory.mktemp(model_class.__name__)
        make(model_class, **changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def masked_lm(save_teacher: Callable[..., Path]) -> Path:
    """The folder of a tiny masked language model."""
    return save_teacher(BertForMaskedLM)


@pytest.fixture(scope="session")
def encoder(save_teacher: Callable[..., Path]) -> Path:
    """The folder of a tiny bare encoder with a pooler."""
    return save_teacher(BertModel)


@pytest.fixture(scope="session")
def image_processor() -> ViTImageProcessorPil:
    """Makes images of the size that the zoo's models read."""
    return ViTImageProcessorPil(size={"height": 24, "width": 24})


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 small images in folders of their own: blots of colour on other colours."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for k in range(60):
        pixels = np.full((20 + k % 7, 26, 3), draw.integers(256, size=3), dtype=np.uint8)
        pixels[4 : 10 + k % 5, 5:17] = draw.integers(256, size=3)
        path = folder / f"kind-{k % 3}" / "deep" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 400 short sentences, one a line."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=draw.randint(4, 20))) for _ in range(400)) + "\n")
    return path


@pytest.fixture
def ready(save_teacher: Callable[..., Path], corpus: Path, tmp_path: Path) -> Callable[..., Run]:
    """A run of a class, ready for its first step."""

    def make_run(model_class: type[PreTrainedModel], **options: object) -> Run:
        values = {"teacher": str(save_teacher(model_class)), "data": str(corpus), "target": "0.5", "steps": 10,
                  "out": str(tmp_path / "run"), "batch": 4, "precision": "fp32", "text": {"length": 32}}  # fmt: skip
        return prepare(build(values | options), resume=False, texts=None)

    return make_run


def coloured(folder: Path, count: int, shades: Sequence[int], seed: int) -> Path:
    """Noise around a shade for each class, so that what an image is can be seen."""
    draw = np.random.default_rng(seed)
    for k in range(count):
        place = folder / f"shade {k % len(shades)}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(60, size=(20, 20, 3)) + shades[k % len(shades)]
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{k}.png")
    return folder
