"""What is given to be measured on, and the refusals of what cannot be, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

from PIL import Image

from homodistil.errors import UserError
from homodistil.evaluation.models import Opened
from homodistil.evaluation.tasks import Splits
from homodistil.images import open_images
from homodistil.text import each_row, open_text

IMAGES = 256
"""Images that are compared at most."""
SHORTEST = 16
"""Tokens of an example that leave room for text between those that stand around it, and for a question before it."""


def refuse_other_data(opened: Sequence[Opened], text: Mapping[str, object], images: Mapping[str, object]) -> None:
    """Text is for models of text, images are for models of images, and two models read the same.

    Raises:
        UserError: something is given that a model does not read, or images without a teacher.
    """
    first = opened[0]
    if given := next((name for name, value in (text if first.reads_images else images).items() if value), None):
        reads = "images" if first.reads_images else "text"
        raise UserError(
            f"Cannot use {given} with {first.source}.",
            f"This model reads {reads}.",
            "Leave it out" + (", or give --images, or --tasks of images." if first.reads_images else "."),
        )
    if len({one.reads_images for one in opened}) > 1:
        raise UserError(
            f"Cannot measure {first.source} beside {opened[1].source}.",
            "One reads text, and the other images.",
            "Name the teacher that the model was made of.",
        )
    if images["--images"] and len(opened) == 1:
        raise UserError(
            f"Cannot measure {first.source} on images alone.",
            "On images without labels a model is compared with its teacher.",
            "Add --against TEACHER.",
        )


def refuse_other_sides(
    opened: Sequence[Opened], labelled: Mapping[str, object], text: object, target: str | None
) -> None:
    """An encoder-decoder says something to a text: it learns no labels here, and is beside others of its kind.

    Raises:
        UserError: labelled data are given for one, targets without a text or for another model, or one is beside a
            model that is none.
    """
    sides = [one for one in opened if one.head == "seq2seq"]
    if sides and (given := next((name for name, value in labelled.items() if value), None)):
        raise UserError(
            f"Cannot use {given} with {sides[0].source}.",
            "An encoder-decoder is measured by what it says to a text, and learns no labels.",
            "Leave it out, or give --text, with a column of targets (--text-target) if there is one.",
        )
    if sides and len(sides) < len(opened):
        raise UserError(
            f"Cannot measure {opened[0].source} beside {opened[1].source}.",
            "One is an encoder-decoder, and the other is none.",
            "Name the teacher that the model was made of.",
        )
    if target is not None and not sides:
        raise UserError(
            f"Cannot use --text-target {target} with {opened[0].source}.",
            "Only an encoder-decoder reads a text and says another one to it.",
            "Leave it out.",
        )
    if target is not None and not text:
        raise UserError(
            f"Cannot use --text-target {target} without --text.",
            "It names a column of the data that --text names.",
            "Add --text, or leave it out.",
        )


def refuse_counts(given: Mapping[str, object], least: int = 1) -> None:
    """Numbers of seeds, rows, threads and tokens, by their options; None is not given.

    Raises:
        UserError: one is no whole number from `least` up.
    """
    for option, value in given.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
            raise UserError(
                f"Cannot use {option} {value}.",
                f"It must be a whole number from {least} up.",
                f"Use {option} {'32,128' if option == '--lengths' else least}.",
            )


def refuse_unpaired(name: str, splits: Splits) -> None:
    """Similarities are judged of two texts, by a number.

    Raises:
        UserError: the task has other columns or labels.
    """
    if splits.task.labels != "number" or len(splits.task.columns) != 2:
        raise UserError(
            f"Cannot compare the pairs of {name}.",
            "Pairs need two text columns and a number that says how alike they are.",
            "Use --pairs stsb, or a file of one's own with two text columns and scores.",
        )


def refuse_too_long(opened: Sequence[Opened], lengths: Sequence[int]) -> None:
    """No model is timed at a length that it cannot read; models of images have one size.

    Raises:
        UserError: one has fewer positions.
    """
    for length in () if opened[0].reads_images else lengths:
        if short := next((one for one in opened if length > one.longest), None):
            raise UserError(
                f"Cannot time {short.source} at {length} tokens.",
                f"It reads at most {short.longest}.",
                f"Use --lengths {short.longest}, or --no-speed.",
            )


def read_pictures(data: str, column: str, opened: Sequence[Opened]) -> list[Image.Image]:
    """At most `IMAGES` images, evenly spaced.

    Raises:
        UserError: they cannot be found or read, or are fewer than three.
    """
    found = open_images(data, column, channels=opened[0].model.config.num_channels, option="--image-column")
    rows = range(0, len(found), max(1, -(-len(found) // IMAGES)))
    pictures = [picture for row in rows if (picture := found.read(row)) is not None]
    if len(pictures) < 3:
        raise UserError(
            f"Cannot measure on {data}: it holds {len(pictures)} images that can be decoded.",
            "There must be at least three, so that there are similarities to compare.",
            "Give more images.",
        )
    return pictures


def refuse_no_mask(opened: Sequence[Opened]) -> None:
    """Refuse text for masked language models that cannot be asked for a token.

    Raises:
        UserError: the tokenizer of one has no mask token.
    """
    for one in opened:
        if one.head == "masked" and one.tokenizer.mask_token_id is None:
            raise UserError(
                f"Cannot mask text for {one.source}.",
                "A masked language model needs a tokenizer with a mask token, and this one has none.",
                "Use the tokenizer that the model was trained with, or leave --text out.",
            )


def read_texts(data: str, column: str, target: str | None, most: int) -> tuple[list[str], list[str]]:
    """The first texts that are not empty, and what should be said to them, if that is asked for.

    Raises:
        UserError: they cannot be found or read, or are fewer than three.
    """
    columns = [column] if target is None else [column, target]
    rows = open_text(data, column, target=target, stream=True, options="--text-").take(most)
    found = [texts for texts in each_row(rows, columns, data) if all(isinstance(t, str) and t.strip() for t in texts)]
    if len(found) < 3:
        raise UserError(
            f"Cannot measure on {data}: it holds {len(found)} {'texts' if target is None else 'pairs'}.",
            "There must be at least three, so that there are similarities to compare.",
            "Give more text, one a line." if target is None else "Give more rows with a text in both columns.",
        )
    sources, *targets = (list(side) for side in zip(*found, strict=True))
    return sources, targets[0] if targets else []
