"""From images to batches: pieces and mirrored ones, drawn as a pure function of the seed and their place."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from homodistil.data.corpus import Corpus, heldout_count
from homodistil.data.sources import of_epoch
from homodistil.errors import UserError
from homodistil.images import ImageRows, open_images
from homodistil.settings import Images

ASPECT = 4 / 3
"""How much wider than high, or higher than wide, random pieces are at most (Szegedy et al. 2015)."""


@dataclass(frozen=True)
class View:
    """A look at an image.

    Attributes:
        row: which image.
        draw: which of its random pieces, mirrored or not; None is the image as it is.
    """

    row: int
    draw: int | None = None


class Views:
    """Images in an order that is drawn anew each epoch, each time as another view; a function of the seed alone.

    Args:
        rows: the images to learn from.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[int], seed: int) -> None:
        self.rows, self.seed = rows, seed

    def sequences(self, start: int) -> Iterator[View]:
        """The views from the `start`-th on, epoch after epoch."""
        skip, within = divmod(start, len(self.rows))
        for epoch in itertools.count(skip):
            order = torch.randperm(len(self.rows), generator=of_epoch(self.seed, epoch)).tolist()
            for at in range(within if epoch == skip else 0, len(order)):
                yield View(self.rows[order[at]], epoch * len(order) + at)


@dataclass(frozen=True)
class ViewCollator:
    """Makes batches of views, decoded and cut in threads. Images that turn out to be broken are left out, with a word.

    Attributes:
        images: what the views look at.
        processor: the teacher's image processor.
        tokens: of a sequence: class tokens and patches.
        class_tokens: those before the patches, which are not ordinary.
        options: how pieces are drawn.
        seed: of the pieces.
    """

    images: ImageRows
    processor: Any
    tokens: int
    class_tokens: int
    options: Images
    seed: int
    broken: set[int] = field(default_factory=set)

    def __call__(self, views: Sequence[View], index: int) -> dict[str, Tensor]:
        """A batch: see `outputs.Batch` for its tensors. It depends on the views alone.

        Raises:
            UserError: none of the images can be decoded.
        """
        with ThreadPoolExecutor(min(len(views), os.cpu_count() or 1)) as pool:
            made = list(pool.map(self._pixels, views))
        for view, pixels in zip(views, made, strict=True):
            if pixels is None:
                self.leave_out(view.row)
        whole = [pixels for pixels in made if pixels is not None]
        if not whole:
            raise UserError(
                f"Cannot decode any of {len(views)} images of {self.images.source}, such as "
                f"{self.images.name(views[0].row)}.",
                "Images must be whole, with 8 bits a channel.",
                "Convert them, or delete those that are broken, and start anew.",
            )
        mask = torch.ones(len(whole), self.tokens, dtype=torch.long)
        ordinary = mask.clone()
        ordinary[:, : self.class_tokens] = 0
        return {"pixel_values": torch.stack(whole), "attention_mask": mask, "ordinary": ordinary}

    def leave_out(self, row: int) -> None:
        """Say, once, that an image is broken."""
        if row not in self.broken:
            self.broken.add(row)
            name = self.images.name(row)
            warnings.warn(f"Left out, because it cannot be decoded: {name} ({len(self.broken)} so far)", stacklevel=3)

    def _pixels(self, view: View) -> Tensor | None:
        image = self.images.read(view.row)
        if image is None:
            return None
        pixels: Tensor = self.processor(self.look(image, view.draw), return_tensors="pt")["pixel_values"][0]
        return pixels

    def look(self, image: Image.Image, draw: int | None) -> Image.Image:
        """A random piece of an image, of at least the asked-for share of its area, or the image itself."""
        if draw is None:
            return image
        drawn = np.random.default_rng((self.seed, draw))
        size = drawn.uniform(self.options.crop, 1) * image.width * image.height
        aspect = math.exp(drawn.uniform(-1, 1) * math.log(ASPECT))
        # no wider than the image, and not so narrow that it would have to be higher
        width = min(image.width, max(1, round(math.sqrt(size * aspect)), math.ceil(size / image.height)))
        height = min(image.height, max(1, round(size / width)))
        left, top = (int(drawn.integers(room + 1)) for room in (image.width - width, image.height - height))
        piece = image.crop((left, top, left + width, top + height))
        mirrored = drawn.random() < self.options.flip
        return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else piece


def load_views(
    data: str, processor: Any, *, channels: int, tokens: int, class_tokens: int, options: Images, seed: int
) -> tuple[Corpus, ViewCollator]:
    """Open and split the images.

    Args:
        data: a name for `images.open_images`.
        processor: the teacher's image processor.
        channels: 3 for colours, 1 for grey.
        tokens: class tokens and patches of an image.
        class_tokens: those before the patches.
        options: the column, the share that is held out, and how pieces are drawn.
        seed: of the split, the order and the pieces.

    Raises:
        UserError: the images cannot be found or read, or there are fewer than two that are whole.
    """
    images = open_images(data, options.column, channels=channels)
    if len(images) < 2:
        raise UserError(
            f"Cannot train on {data}: it holds {len(images)} image{'' if len(images) == 1 else 's'}.",
            "There must be at least two, one to learn from and one to hold out.",
            "Give more images.",
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    count = heldout_count(options.heldout, len(order))
    collate = ViewCollator(images, processor, tokens, class_tokens, options, seed)
    held: list[int] = []
    # they are decoded now, because what measures a run must be whole; one is left to learn from
    while len(held) < count and len(order) > 1:
        row = order.pop(0)
        if images.read(row) is None:
            collate.leave_out(row)
        else:
            held.append(row)
    if not held:
        raise UserError(
            f"Cannot decode an image of {data} to hold out.",
            "Images must be whole, with 8 bits a channel.",
            "Convert them, or delete those that are broken.",
        )
    whole = [View(row) for row in sorted(held)]
    return Corpus(Views(sorted(order), seed), whole, float(tokens), digest=images.digest), collate
