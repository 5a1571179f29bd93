"""Embeddings' similarities: against people's judgements, and against another encoder's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import is_sentence_transformer_model, load_file_path

from homodistil.errors import UserError, first_line
from homodistil.evaluation.metrics import METRICS
from homodistil.evaluation.tasks import Task
from homodistil.loading import SAYS, is_cross_encoder, longest


def is_sentence_encoder(model: Path | str) -> bool:
    """Whether a model is a sentence encoder: a sentence-transformers folder, or the name of one; no cross-encoder's."""
    if not is_sentence_transformer_model(str(model)):
        return False
    said = load_file_path(str(model), SAYS)
    return said is None or not is_cross_encoder(Path(said))


def open_encoder(model: Path | str, trust_remote_code: bool = False) -> SentenceTransformer:
    """A sentence encoder as its folder says, or any other encoder, whose token states are averaged; in float32.

    Raises:
        UserError: its folder is torn.
    """
    try:
        encoder = SentenceTransformer(str(model), trust_remote_code=trust_remote_code).float()
        tokenizer, inner = encoder.tokenizer, getattr(encoder[0], "auto_model", None)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"Cannot open the sentence encoder {model}: {first_line(error)}",
            "Its modules.json, and the folders that it names, must be whole.",
            "Save or download the model again.",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not is_sentence_encoder(model):
        # nothing says how its users pad, and on the left a text's positions would hang on its batch
        tokenizer.padding_side = "right"
    if getattr(getattr(inner, "config", None), "max_position_embeddings", None):
        # not all positions are a token's
        most = longest(inner, tokenizer)
        encoder.max_seq_length = min(encoder.max_seq_length or most, most)
    return encoder


def embed(
    model: Path | str | SentenceTransformer, texts: Sequence[str], *, batch: int = 32, trust_remote_code: bool = False
) -> NDArray[np.float32]:
    """Embeddings of texts, (texts, hidden), normalised.

    Args:
        model: a sentence-transformers folder, or any other encoder, whose token states are averaged; or one that is
            open already.
        texts: what is embedded.
        batch: texts in a forward pass.
        trust_remote_code: run code that comes with the model.
    """
    encoder = model if isinstance(model, SentenceTransformer) else open_encoder(model, trust_remote_code)
    read = list(texts)
    # a tokenizer that puts nothing around a text makes nothing of an empty one
    if not encoder.tokenizer("")["input_ids"] and (mute := [t for t in read if not encoder.tokenizer(t)["input_ids"]]):
        raise UserError(
            f"Cannot embed the text {mute[0]!r}: the tokenizer makes no token of it, nor of {len(mute) - 1} others.",
            "An embedding is made of token states, and there must be one.",
            "Leave these rows out.",
        )
    made: NDArray[np.float32] = encoder.encode(
        read, batch_size=batch, normalize_embeddings=True, show_progress_bar=False
    )
    return made


def follows(student: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
    """Spearman's correlation between the cosine similarities of all pairs of texts: 1 if the order is the same, 0 if
    all of one are alike.

    Args:
        student: normalised embeddings, (texts, hidden).
        teacher: normalised embeddings of the same texts, of any width.
    """
    first, second = np.triu_indices(len(student), k=1)
    pairs = [(e @ e.T)[first, second] for e in (student, teacher)]
    return METRICS["spearman"](*pairs)


def judged_pairs(model: Path | str, task: Task, rows: Dataset, *, trust_remote_code: bool = False) -> float:
    """Spearman's correlation between cosine similarities of pairs and people's judgements, without fine-tuning.

    Args:
        model: as in `embed`.
        task: one with two text columns and a number as label, such as `stsb`.
        rows: the pairs.
        trust_remote_code: as in `embed`.
    """
    encoder = open_encoder(model, trust_remote_code)
    first, second = (embed(encoder, rows[column]) for column in task.columns)
    return METRICS["spearman"]((first * second).sum(-1), np.asarray(rows[task.label]))
