"""How well a language model predicts plain text: masked accuracy, pseudo-perplexity, perplexity. No labels needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from homodistil.errors import UserError
from homodistil.evaluation.models import LANGUAGE, Opened
from homodistil.evaluation.sides import Sides, target_predictions
from homodistil.packing import LENGTHS, Joiner, usual_length
from homodistil.tokenizer import special_tokens

MASKED = 0.15
"""The share of tokens that is masked (BERT, section 3.1); all by the mask token, which is what is scored here."""
PSEUDO_TOKENS = 1024
"""Tokens for pseudo-perplexity, which needs a forward pass of a row for each of them."""
LOGITS = 1 << 26
"""Numbers that a model says at once, 256 MiB: of 250,000 tokens those of two blocks, which are copied several times."""


def blocks(opened: Opened, texts: Sequence[str], length: int, most: int) -> Tensor:
    """Blocks of joined text, as training cuts them: (blocks, length).

    Special tokens stand at both ends where the tokenizer puts them, and what ends a text stands between two. Those of a
    masked language model are whole texts, as far as they fit, and padded.

    Raises:
        UserError: the tokenizer makes nothing of any of its own tokens.
    """
    before, after, ends = special_tokens(opened.tokenizer)
    bare = (ids for text in texts if (ids := opened.tokenizer(text, add_special_tokens=False, verbose=False).input_ids))
    join = Joiner(length - len(before) - len(after), ends, whole=_pads(opened))
    cut = [[*before, *ids, *after] for ids in itertools.islice(join(bare), most)]
    padding = [opened.tokenizer.pad_token_id]
    padded = [ids + padding * (length - len(ids)) for ids in cut]
    return torch.tensor(padded, device=opened.model.device)


def attended(opened: Opened, ids: Tensor) -> Tensor:
    """Which tokens of blocks (blocks, length) a model reads, 1 or 0: all but the padding of a masked language model."""
    return (ids != opened.tokenizer.pad_token_id).long() if _pads(opened) else torch.ones_like(ids)


def _pads(opened: Opened) -> bool:
    return opened.head == "masked" and opened.tokenizer.pad_token_id is not None


def usual(opened: Opened, texts: Sequence[str]) -> int:
    """Tokens of a block: of a language model as many as nearly all texts have, as in training, and 128 of others."""
    most = min(opened.longest, LENGTHS[1])
    if opened.head not in LANGUAGE:
        return min(LENGTHS[0], most)
    return usual_length([len(ids) for ids in opened.tokenizer(list(texts), verbose=False).input_ids], most)


def refuse_unknown(opened: Opened, ids: Tensor) -> None:
    """Refuse text of which a masked language model has next to nothing to predict.

    Args:
        opened: any model.
        ids: blocks (blocks, length).

    Raises:
        UserError: its first blocks hold no two tokens that are not special; what it cannot read is special, too.
    """
    if opened.head == "masked" and int((~_special(opened, _few(ids))).sum()) < 2:
        raise UserError(
            f"Cannot measure {opened.source} on this text: its tokenizer knows no word of it.",
            "There must be tokens to mask and to predict.",
            "Give text of the model's language.",
        )


def _few(ids: Tensor) -> Tensor:
    return ids[: max(1, PSEUDO_TOKENS // ids.shape[1])]


def _special(opened: Opened, ids: Tensor) -> Tensor:
    return torch.isin(ids, torch.tensor(opened.tokenizer.all_special_ids, device=ids.device))


def predicted(opened: Opened, ids: Tensor | Sides) -> list[list[int]]:
    """The tokens of each block, or target, that a language model may be asked for, and -1 where it is not."""
    if isinstance(ids, Sides):
        return [target.tolist() for target in ids.targets]
    asked: list[list[int]] = (ids.masked_fill(_special(opened, ids), -1) if opened.head == "masked" else ids).tolist()
    return asked


def masked_positions(*read: tuple[Opened, Tensor], seed: int = 0) -> Tensor:
    """Where blocks are masked, (blocks, length): at a fixed share of the tokens that none of the models calls special.

    Args:
        read: masked language models, each with the same blocks (blocks, length) as it numbers tokens.
        seed: of the choice.
    """
    special = torch.stack([_special(opened, ids).cpu() for opened, ids in read]).any(0)
    lot = torch.rand(special.shape, generator=torch.Generator().manual_seed(seed)).masked_fill(special, 2.0)
    return (lot < torch.quantile(lot[~special], MASKED)).to(read[0][1].device)


@torch.no_grad()
def masked_predictions(
    opened: Opened, ids: Tensor, chosen: Tensor | None = None, *, batch: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mask tokens of blocks and predict them, a batch of blocks at a time.

    Args:
        opened: a masked language model.
        ids: blocks (blocks, length).
        chosen: what is masked, (blocks, length); the model's own `masked_positions` by default.
        batch: blocks in a forward pass at most; fewer of a large vocabulary.

    Yields:
        Log-probabilities (masked, vocabulary), and what stood there, (masked,).
    """
    chosen = masked_positions((opened, ids)) if chosen is None else chosen
    hidden = ids.masked_fill(chosen, opened.tokenizer.mask_token_id)
    batch = opened.rows_at_once(LOGITS, ids.shape[1], batch)
    for part, where, right in zip(*(torch.split(x, batch) for x in (hidden, chosen, ids)), strict=True):
        said = opened.model(input_ids=part, attention_mask=attended(opened, part)).logits
        yield said[where].float().log_softmax(-1), right[where]


@torch.no_grad()
def pseudo_perplexity(opened: Opened, ids: Tensor, *, batch: int = 64) -> float:
    """Exp of the mean negative log-probability of each token with it alone masked (Salazar et al. 2020)."""
    mask = opened.tokenizer.mask_token_id
    special = _special(opened, ids)
    batch = opened.rows_at_once(LOGITS, ids.shape[1], batch)
    losses = []
    for block, skip in zip(ids, special, strict=True):
        positions = torch.arange(len(block), device=ids.device)[~skip]
        for part in torch.split(positions, batch):
            rows = block.repeat(len(part), 1)
            at = torch.arange(len(part), device=ids.device)
            rows[at, part] = mask
            logits = opened.model(input_ids=rows, attention_mask=attended(opened, rows)).logits[at, part]
            losses.append(F.cross_entropy(logits.float(), block[part], reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


@torch.no_grad()
def causal_predictions(opened: Opened, ids: Tensor, *, batch: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities (tokens, vocabulary) of each next token and the token itself, a batch of blocks at a time."""
    for part in torch.split(ids, opened.rows_at_once(LOGITS, ids.shape[1], batch)):
        logits = opened.model(input_ids=part).logits[:, :-1].float().log_softmax(-1)
        yield logits.flatten(0, 1), part[:, 1:].flatten()


def predictions(
    opened: Opened, ids: Tensor | Sides, chosen: Tensor | None = None, *, batch: int = 32
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a language model says of a text, as its head allows: see `masked_predictions`, `causal_predictions`, and of
    encoder-decoders `sides.target_predictions`.
    """
    if isinstance(ids, Sides):
        return target_predictions(opened, ids, batch=opened.rows_at_once(LOGITS, ids.longest, batch))
    if opened.head == "masked":
        return masked_predictions(opened, ids, chosen, batch=batch)
    return causal_predictions(opened, ids, batch=batch)


def language(opened: Opened, ids: Tensor | Sides) -> dict[str, float]:
    """The measures that the model's head allows; none for a model without a language model.

    Returns:
        `masked_accuracy` and `pseudo_perplexity`, or `perplexity` and `next_accuracy`, of encoder-decoders those of the
        targets.
    """
    if opened.head not in LANGUAGE:
        return {}
    total, hits, count = 0.0, 0, 0
    for said, right in predictions(opened, ids):
        total -= said.gather(1, right[:, None]).sum().item()
        hits += int((said.argmax(-1) == right).sum())
        count += len(right)
    if not isinstance(ids, Sides) and opened.head == "masked":
        perplexity = pseudo_perplexity(opened, _few(ids))
        return {"masked_accuracy": hits / count, "pseudo_perplexity": perplexity}
    return {"perplexity": math.exp(total / count), "next_accuracy": hits / count}
