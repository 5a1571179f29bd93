"""What a run learns from: the user's text or images, read for one teacher, and what makes batches of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from homodistil.data.collate import UNLIMITED, Collate, Collator, heldout_draws
from homodistil.data.corpus import Corpus, load_corpus
from homodistil.data.pairs import PairCollator, given
from homodistil.data.views import load_views
from homodistil.errors import UserError
from homodistil.loading import unused_positions
from homodistil.models.kind import LANGUAGE_MODELS
from homodistil.models.teacher import Teacher, no_tokenizer
from homodistil.noise import first_token, noise_of
from homodistil.packing import LENGTHS, usual_length
from homodistil.recipe import Recipe
from homodistil.settings import Images, Text
from homodistil.text import some_texts

SEEN = 2000
"""Texts that are looked at to see how long they are."""


def read(recipe: Recipe, teacher: Teacher, origin: Teacher, texts: Iterable[str] | None) -> tuple[Corpus, Collate]:
    """Open and read the data of a recipe.

    Args:
        recipe: says what and how.
        teacher: reads it.
        origin: the student, or the teacher itself: reads it too.
        texts: the data itself, where it is no file.

    Raises:
        UserError: the data cannot be found, read or used with this teacher.
    """
    if teacher.reads == "text":
        return _text(recipe, teacher, min(teacher, origin, key=_positions), texts)
    return _images(recipe, teacher, texts)


def packing_of(recipe: Recipe, teacher: Teacher) -> str:
    """Whether text is joined into full `blocks`, or of `whole` texts, or stays `texts`; pairs always do."""
    packing = recipe.text.packing
    if recipe.text.target is not None:
        return "texts"
    if packing != "auto":
        return packing
    if teacher.kind == "masked-lm":
        return "whole"
    return "blocks" if teacher.kind in LANGUAGE_MODELS else "texts"


def packs(recipe: Recipe, teacher: Teacher) -> bool:
    """Whether texts are joined."""
    return packing_of(recipe, teacher) != "texts"


def length_for(recipe: Recipe, teacher: Teacher, origin: Teacher, texts: Iterable[str] | None) -> int:
    """Tokens of a sequence at most: what the recipe says, or a language model's as many as nearly all texts have.

    It says something at each position, and is no good at those that it has not learnt. An embedding of a whole text
    hardly hangs on them, and more short texts teach it more than fewer long ones.

    Args:
        recipe: says how text is read.
        teacher: reads it.
        origin: the student, or the teacher itself: reads it too.
        texts: the data itself, where it is no file.

    Raises:
        UserError: the data cannot be found or read.
    """
    if recipe.text.length is not None:
        return recipe.text.length
    most = int(min(_positions(teacher), _positions(origin), teacher.tokenizer.model_max_length))
    if teacher.kind not in LANGUAGE_MODELS:
        return min(LENGTHS[0], most)
    data, lengths = texts if texts is not None else recipe.data, []
    for column in filter(None, (recipe.text.column, recipe.text.target)):
        if (some := some_texts(data, column, SEEN, stream=recipe.text.stream)) is None:
            return min(LENGTHS[1], most)
        counts = [len(ids) for ids in teacher.tokenizer(some, verbose=False)["input_ids"]] if some else []
        lengths.append(usual_length(counts, most))
    return max(lengths)


def _text(recipe: Recipe, teacher: Teacher, shorter: Teacher, texts: Iterable[str] | None) -> tuple[Corpus, Collate]:
    """Tokenised text, and what makes batches of it, no longer than the model with fewer positions reads."""
    longest = _positions(shorter)
    assert recipe.text.length is not None
    if recipe.text.length > longest:
        raise UserError(
            f"Cannot make sequences of {recipe.text.length} tokens.",
            f"The {'teacher' if shorter is teacher else 'student'} has positions for {longest}.",
            f"Use --text.length {longest} or less.",
        )
    target = recipe.text.target
    if target is not None and texts is not None:
        raise UserError(
            f"Cannot read pairs from texts in memory (text.target = {target}).",
            "Pairs are columns of a file or of a dataset.",
            "Save them as .jsonl, with one column of sources and one of targets.",
        )
    corpus = load_corpus(
        texts if texts is not None else recipe.data,
        teacher.tokenizer,
        column=recipe.text.column,
        target=target,
        length=recipe.text.length,
        packed=packs(recipe, teacher),
        whole=packing_of(recipe, teacher) == "whole",
        heldout=recipe.text.heldout,
        stream=recipe.text.stream,
        workers=recipe.text.workers,
        crops=recipe.text.crops if teacher.kind == "similarity" else 0.0,
        prompts=recipe.text.prompts or (),
        batch=recipe.batch,
        seed=recipe.seed,
    )
    collate = _collator(recipe, teacher, longest)
    held = heldout_draws(corpus.heldout, recipe.batch)
    if teacher.kind in LANGUAGE_MODELS and not any(len(collate(*draw)["labels"]) for draw in held):
        raise UserError(
            f"Cannot learn from this text with {teacher.source}: what is held out of it has no token to predict.",
            "There must be tokens that the tokenizer knows, and for a causal model two in a text.",
            "Give text of the model's language, or join short texts with --text.packing blocks.",
        )
    return (corpus if teacher.kind != "seq2seq-lm" else _of_both_sides(corpus, collate)), collate


def _of_both_sides(corpus: Corpus, collate: Collate) -> Corpus:
    """The corpus, whose sequences are as long as source and target are together, by the noise of those held out."""
    batch = collate(list(corpus.heldout), -1)
    tokens = sum(int(batch[name].sum()) for name in ("attention_mask", "decoder_attention_mask"))
    return replace(corpus, mean_tokens=tokens / len(corpus.heldout))


def _positions(teacher: Teacher) -> int:
    """Tokens that a model has positions for."""
    most = getattr(teacher.model.config, "max_position_embeddings", UNLIMITED)
    return int(most - unused_positions(teacher.model))


def _collator(recipe: Recipe, teacher: Teacher, longest: int) -> Collate:
    """What makes batches of tokens."""
    if teacher.kind != "seq2seq-lm":
        masked, causal = recipe.losses.masked if teacher.kind == "masked-lm" else 0.0, teacher.kind == "causal-lm"
        return Collator(teacher.tokenizer, masked, recipe.seed, causal=causal, longest=longest)
    start = first_token(teacher.source, teacher.model)
    divide = noise_of(teacher.tokenizer) if recipe.text.target is None else given
    return PairCollator(teacher.tokenizer, divide, start, recipe.seed, longest)


def _images(recipe: Recipe, teacher: Teacher, texts: Iterable[str] | None) -> tuple[Corpus, Collate]:
    """Images, and what makes batches of them."""
    layout = teacher.layout
    assert layout.sequence is not None
    if texts is not None:
        raise UserError(
            f"Cannot read texts with {teacher.source}.",
            "This teacher reads images, which must lie on a disk.",
            "Give a folder of images, or a dataset with a column of them.",
        )
    return load_views(
        recipe.data,
        teacher.processor,
        channels=teacher.model.config.num_channels,
        tokens=layout.sequence,
        class_tokens=layout.family.class_tokens,
        options=recipe.images,
        seed=recipe.seed,
    )


def refuse_other_options(recipe: Recipe, teacher: Teacher) -> None:
    """Options for what this teacher does not read, or that do not go together, would be passed over in silence.

    Raises:
        UserError: one of them is given.
    """
    group, said, default = (
        ("images", recipe.images, Images()) if teacher.reads == "text" else ("text", recipe.text, Text())
    )
    if recipe.trim_vocab and teacher.reads == "images":
        raise no_tokenizer(recipe.teacher)
    if changed := [f.name for f in fields(said) if getattr(said, f.name) != getattr(default, f.name)]:
        raise UserError(
            f"Cannot use {group}.{changed[0]} = {getattr(said, changed[0])} with {recipe.teacher}.",
            f"This teacher reads {teacher.reads}, to which the options {group}.* do not apply.",
            f"Leave it out; `homodistil distil --help` lists those of {teacher.reads}.*.",
        )
    if recipe.text.target is not None and teacher.kind != "seq2seq-lm":
        raise UserError(
            f"Cannot use text.target = {recipe.text.target} with {recipe.teacher}.",
            "Only an encoder-decoder reads a text and says another one to it.",
            "Leave it out.",
        )
    if recipe.text.target is not None and recipe.text.packing in ("blocks", "whole"):
        raise UserError(
            f"Cannot join pairs (text.packing = {recipe.text.packing}, text.target = {recipe.text.target}).",
            "What is said belongs to one text, so that pairs are kept apart.",
            "Leave --text.packing out.",
        )
