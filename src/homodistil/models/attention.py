"""Queries and keys of every layer, kept on the way through transformers' own attention interface.

No modelling code is copied or patched: a model that is told to use `IMPLEMENTATION` computes what `sdpa` computes,
and inside `captured()` each attention layer leaves its queries and keys behind, from which the losses compute scores
or probabilities one layer at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "homodistil_sdpa"
SHORT = 256
"""On a CPU, sequences up to it attend by plain matrix products: torch's fused kernel was measured to need 4 times
their time there, forward and backward. Longer ones would store too large a map."""


class QueriesKeys(NamedTuple):
    """What one attention layer compares: both (batch, heads, sequence, head_dim), and the scale of their product."""

    queries: Tensor
    keys: Tensor
    scaling: float


class _Blocks(threading.local):
    """The blocks that a thread is in: where each run of several leaves its own."""

    def __init__(self) -> None:
        self.captured: list[list[QueriesKeys]] = []
        self.without_padding = 0


_blocks = _Blocks()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    if _blocks.captured:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        _blocks.captured[-1].append(QueriesKeys(query, key, scaling))
    # grouped heads are the library's to spread out
    plain = query.device.type == "cpu" and query.shape[2] <= SHORT and query.shape[1] == key.shape[1]
    # without a mask, `is_causal` is all that says that tokens look back only
    causal = attention_mask is None and bool(getattr(module, "is_causal", True))
    # the fused kernel, which leaves out what is ahead, is slower in bf16 alone; with a bias that is learnt, torch would
    # take one kernel for the teacher and another one for the student, which round differently
    gains = not causal or query.dtype == torch.bfloat16 or kwargs.get("position_bias") is not None
    if plain and gains and not kwargs.get("dropout"):
        if causal:
            attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        return _attend_plainly(query, key, value, attention_mask, **kwargs), None
    outputs: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return outputs


def _attend_plainly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Tensor:
    scores = (query * (scaling or query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        # added, so that gradients need not be masked too; half of what there is, so that nothing overflows
        lowest = torch.finfo(scores.dtype).min / 2
        scores += scores.new_zeros(attention_mask.shape).masked_fill_(~attention_mask, lowest)
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous()


def _mask(*, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    if _blocks.without_padding and (attention_mask is None or attention_mask.dim() == 2):
        attention_mask = None
        # the library leaves out a mask that masks nothing too, but never while a GPU's work is recorded
        square, local = kwargs.get("q_length") == kv_length, kwargs.get("local_size")
        needless = kwargs.get("allow_is_bidirectional_skip") or (square and kwargs.get("allow_is_causal_skip", True))
        if needless and (local is None or kv_length < local):
            return None
    mask: Tensor | None = sdpa_mask(kv_length=kv_length, attention_mask=attention_mask, **kwargs)
    return mask


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)


@contextlib.contextmanager
def without_padding() -> Iterator[None]:
    """Take every mask of padding inside the block for one that masks nothing: a GPU is waited for to see that."""
    _blocks.without_padding += 1
    try:
        yield
    finally:
        _blocks.without_padding -= 1


@contextlib.contextmanager
def captured() -> Iterator[list[QueriesKeys]]:
    """Collect queries and keys of the forward passes inside the block, first layer first."""
    layers: list[QueriesKeys] = []
    _blocks.captured.append(layers)
    try:
        yield layers
    finally:
        _blocks.captured.pop()
