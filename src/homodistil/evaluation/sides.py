"""What an encoder-decoder reads and what it says to it: made of plain text by noise, or given as pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from homodistil.errors import UserError
from homodistil.evaluation.models import Opened
from homodistil.noise import first_token, noise_of


@dataclass(frozen=True)
class Sides:
    """Pairs of a source and of what is said to it, by the numbers of their tokens, without padding."""

    sources: list[Tensor]
    targets: list[Tensor]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def longest(self) -> int:
        """Tokens of the longest target, at each of which a model says something."""
        return max(map(len, self.targets))

    def renumbered(self, numbers: Tensor) -> Sides:
        """The same by the numbers of another vocabulary: `numbers[token]` is the token there."""
        return Sides(*([numbers[ids] for ids in side] for side in (self.sources, self.targets)))


def noised(opened: Opened, ids: Tensor, *, seed: int = 0) -> Sides:
    """Of blocks of text, (blocks, length), what the model was trained to read and to say: see `noise`.

    Raises:
        UserError: its tokenizer has neither sentinels nor a mask.
    """
    divide, draw = noise_of(opened.tokenizer, options="--text-"), torch.Generator().manual_seed(seed)
    return _sides([divide(block, draw) for block in ids.tolist()], opened)


def paired(opened: Opened, sources: Sequence[str], targets: Sequence[str], most: int) -> Sides:
    """Pairs of texts, each cut after `most` tokens; those of which a side makes no token are left out.

    Raises:
        UserError: those are all.
    """
    options = {"truncation": True, "max_length": most}
    read = opened.tokenizer(list(sources), **options).input_ids
    said = opened.tokenizer(text_target=list(targets), **options).input_ids
    if not (pairs := [(r, s) for r, s in zip(read, said, strict=True) if r and s]):
        raise UserError(
            f"Cannot measure {opened.source} on these pairs: its tokenizer makes no token of any.",
            "There must be something to read and something to say.",
            "Give text of the model's language.",
        )
    return _sides(pairs, opened)


def _sides(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], opened: Opened) -> Sides:
    both = zip(*pairs, strict=True)
    return Sides(*([torch.tensor(ids, device=opened.model.device) for ids in side] for side in both))


@torch.no_grad()
def target_predictions(opened: Opened, sides: Sides, *, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities (tokens, vocabulary) of each token of the targets, after those before it, and the token itself.

    Args:
        opened: an encoder-decoder.
        sides: what it reads and says.
        batch: pairs in a forward pass.
    """
    for inputs, labels, mask in _batches(opened, sides, batch):
        yield opened.model(**inputs).logits[mask].float().log_softmax(-1), labels[mask]


@torch.no_grad()
def last_states(opened: Opened, sides: Sides, *, batch: int = 32) -> Tensor:
    """The decoder's last hidden states of all tokens of the targets, (tokens, width)."""
    states, decoder = [], opened.model.get_decoder()
    for inputs, _, mask in _batches(opened, sides, batch):
        source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        read = opened.reader(**source).last_hidden_state
        last = decoder(
            input_ids=inputs["decoder_input_ids"],
            attention_mask=inputs["decoder_attention_mask"],
            encoder_hidden_states=read,
            encoder_attention_mask=inputs["attention_mask"],
        ).last_hidden_state
        states.append(last[mask].cpu())
    return torch.cat(states)


def _batches(opened: Opened, sides: Sides, batch: int) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """What the model is given, what its decoder should say, (pairs, length), and where that is no padding."""
    start = first_token(opened.source, opened.model)
    for at in range(0, len(sides), batch):
        source, read = _padded(opened, sides.sources[at : at + batch])
        target, mask = _padded(opened, sides.targets[at : at + batch])
        before = torch.cat((torch.full_like(target[:, :1], start), target[:, :-1]), 1)
        yield (
            {"input_ids": source, "attention_mask": read, "decoder_input_ids": before, "decoder_attention_mask": mask},
            target,
            mask > 0,
        )


def _padded(opened: Opened, sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences as (sequences, length), and which of it is no padding, 1 or 0."""
    padding = float(opened.tokenizer.pad_token_id)
    return (
        pad_sequence(list(sequences), batch_first=True, padding_value=padding),
        pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True),
    )
