"""What the losses compare, out of one forward pass of a teacher or a student."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from homodistil.axes.layout import Layout
from homodistil.axes.shape import product
from homodistil.models.attention import QueriesKeys, captured, without_padding
from homodistil.models.kind import INPUTS, LANGUAGE_MODELS, Kind
from homodistil.models.sentence import Pooling

Batch = Mapping[str, Tensor]
"""`input_ids` (batch, sequence), or `pixel_values` (batch, channels, height, width) of images; `attention_mask`, 1 for
tokens or patches and 0 for padding, and `ordinary`, 1 for those that are not special, both (batch, sequence); for
masked language models also `positions` (predicted,), indices into the flattened batch, and `labels` (predicted,); for
causal ones the same, with the positions that predict and the tokens that follow. For encoder-decoders these are the
source's, and the target has `decoder_input_ids`, `decoder_attention_mask` and `decoder_ordinary`, all (batch, target),
and the positions, each of which predicts the next token of the target.

Batches of a run have `tokens` as well, (), on the CPU: how many of all rows are no padding."""


def unpadded(batch: Batch) -> bool:
    """Whether it is known that nothing of a batch is padding."""
    rows = sum(mask.numel() for name, mask in batch.items() if name.endswith("attention_mask"))
    return "tokens" in batch and int(batch["tokens"]) == rows


CHUNK, CHUNK_AWAY = 1 << 26, 1 << 27
"""Logits that stand in memory at once at most, on a CPU and on an accelerator: with 150,000 tokens to choose from,
those of 447 and 894 positions."""


@dataclass(frozen=True)
class TokenPredictions:
    """What a language model says of tokens, not said yet: all logits of a batch may be more than memory holds.

    Attributes:
        states: at the positions that predict, (positions, hidden).
        head: turns states into logits (positions, vocab).
        vocab: how many tokens there are.
    """

    states: Tensor
    head: Callable[[Tensor], Tensor]
    vocab: int

    def chunks(self) -> list[slice]:
        """Positions that are predicted together; one part without any if there are none."""
        most = CHUNK if self.states.device.type == "cpu" else CHUNK_AWAY
        size = max(1, most // self.vocab)
        return [slice(at, at + size) for at in range(0, max(1, len(self.states)), size)]


@dataclass(frozen=True)
class Outputs:
    """One forward pass.

    Attributes:
        hidden: the embeddings and then each layer's states, (batch, sequence, hidden); of encoder-decoders those of the
            source, then those of the target.
        masks: for each hidden state, which of its rows are no padding, (batch, sequence).
        attention: queries and keys of each layer, empty if not asked for.
        prediction: logits (rows, classes), or pooled states (batch, hidden); None if not asked for.
        pooled: the pooler's vector (batch, hidden) of a bare encoder that has one.
        tokens: for language models, in place of `prediction`.
    """

    hidden: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    attention: tuple[QueriesKeys, ...]
    prediction: Tensor | None
    pooled: Tensor | None
    tokens: TokenPredictions | None = None


@dataclass(frozen=True)
class Runner:
    """Runs models of one kind and computes no more than what is asked for.

    Attributes:
        kind: what the models predict.
        layout: the axes, whose family names heads and poolers.
        pooling: for the kind `similarity`.
        attention: whether queries and keys are kept.
        prediction: whether predictions are made.
        inputs: which tensors of a batch the models read.
    """

    kind: Kind
    layout: Layout
    pooling: Pooling
    attention: bool
    prediction: bool
    inputs: tuple[str, ...] = INPUTS["text"]

    def __call__(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Run `model` on `batch`; gradients, precision and device are the caller's."""
        heads = self.prediction and self.kind in ("labels", "multi-label", "token-labels", "span")
        net = model if heads else model.base_model
        keep = captured() if self.attention else contextlib.nullcontext(())
        with keep as layers, without_padding() if unpadded(batch) else contextlib.nullcontext():
            if self.kind == "seq2seq-lm":
                raw, hidden, masks = _both_sides(model, batch)
            else:
                # keys and values are kept for a next token, which never comes
                options = {"use_cache": False} if _may_cache(net) else {}
                raw = net(**{name: batch[name] for name in self.inputs}, output_hidden_states=True, **options)
                hidden = _states(raw)
                masks = (batch["attention_mask"],) * len(hidden)
        made, tokens = None, None
        if self.prediction and self.kind in LANGUAGE_MODELS:
            # the vocabulary projection is most of a small model's step, so it only sees the positions that count
            at = hidden[-1].flatten(0, 1).index_select(0, batch["positions"])
            tokens = TokenPredictions(at, functools.partial(self._logits, model), model.config.vocab_size)
        elif self.prediction:
            made = _PREDICT[self.kind](self, model, raw, hidden[-1], batch)
        return Outputs(hidden, masks, tuple(layers), made, self._pooled(model, hidden[-1]), tokens)

    def _logits(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        """Logits over the vocabulary, by the modules that the family names."""
        family = self.layout.family
        if family.logit_scale:
            states = states * product(family.logit_scale, {"hidden": states.shape[-1]})
        for name in family.lm_head:
            states = model.get_submodule(name)(states)
        if family.logit_bias:
            states = states + getattr(model, family.logit_bias)[0]
        cap = getattr(model.config, family.logit_cap, None) if family.logit_cap else None
        return states if cap is None else cap * torch.tanh(states / cap)

    def _pooled(self, model: PreTrainedModel, last: Tensor) -> Tensor | None:
        """The pooler's vector, learnt from states that it does not pull at: a bare encoder's users rarely read it."""
        family = self.layout.family
        pooler = getattr(model, family.pooler or "", None)
        if self.kind != "similarity" or pooler is None:
            return None
        # most take the first token themselves; one that is a layer and nothing else is given it
        pooled: Tensor = pooler(last[:, 0].detach() if isinstance(pooler, nn.Linear) else last.detach())
        return pooled


def _may_cache(model: nn.Module) -> bool:
    return "use_cache" in inspect.signature(model.forward).parameters


def _states(raw: Any) -> tuple[Tensor, ...]:
    """The hidden states of a forward pass, the last as users read it: some models list it before the final norm."""
    last = getattr(raw, "last_hidden_state", None)
    return tuple(raw.hidden_states) if last is None else (*raw.hidden_states[:-1], last)


def _both_sides(model: PreTrainedModel, batch: Batch) -> tuple[Any, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """An encoder-decoder without its head: the decoder's outputs, the hidden states of both sides, and their masks."""
    source, target = batch["attention_mask"], batch["decoder_attention_mask"]
    read = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=source, output_hidden_states=True)
    said = model.get_decoder()(
        input_ids=batch["decoder_input_ids"],
        attention_mask=target,
        encoder_hidden_states=read.last_hidden_state,
        encoder_attention_mask=source,
        use_cache=False,
        output_hidden_states=True,
    )
    first, then = _states(read), _states(said)
    return said, first + then, (source,) * len(first) + (target,) * len(then)


def pool(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool token states (batch, sequence, hidden) over the mask, as sentence encoders do."""
    weights = mask[..., None].to(states.dtype)
    # the last token of each text, on whichever side it is padded
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    pooled: Callable[[], Tensor] = {
        "mean": lambda: (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9),
        "cls": lambda: states[:, 0],
        "lasttoken": lambda: states.take_along_dim(last[:, None, None], 1)[:, 0],
        "max": lambda: states.masked_fill(weights == 0, torch.finfo(states.dtype).min).amax(1),
    }[pooling]
    return pooled()


def _similarity(run: Runner, model: PreTrainedModel, raw: Any, last: Tensor, batch: Batch) -> Tensor:
    return pool(last, batch["attention_mask"], run.pooling)


def _labels(run: Runner, model: PreTrainedModel, raw: Any, last: Tensor, batch: Batch) -> Tensor:
    logits: Tensor = raw.logits
    return logits


def _token_labels(run: Runner, model: PreTrainedModel, raw: Any, last: Tensor, batch: Batch) -> Tensor:
    logits: Tensor = raw.logits[batch["attention_mask"].bool()]
    # a discriminator has one number a token, without a dimension of classes
    return logits[:, None] if logits.dim() == 1 else logits


def _span(run: Runner, model: PreTrainedModel, raw: Any, last: Tensor, batch: Batch) -> Tensor:
    padding = batch["attention_mask"] == 0
    both = torch.stack((raw.start_logits, raw.end_logits)).float()
    # finite, also over a small temperature: the difference of two that are not is no number
    return both.masked_fill(padding, -1e30).flatten(0, 1)


_PREDICT: dict[Kind, Callable[[Runner, PreTrainedModel, Any, Tensor, Batch], Tensor]] = {
    "similarity": _similarity,
    "labels": _labels,
    "multi-label": _labels,
    "token-labels": _token_labels,
    "span": _span,
}
