"""Gemma, Gemma 2 and the language models of Gemma 3: Llamas whose embeddings are multiplied by √hidden."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.decoders import LLAMA

GEMMA = replace(
    LLAMA,
    name="Gemma",
    model_types=("gemma",),
    heads={name: LLAMA.heads[name] for name in ("norms of queries and keys", "language model", "sequence", "token")},
    divided={},
    # The stream stays as loud as it was. What makes logits has the values of the embeddings, to which it is tied, and
    # the last norm, whose gain is 1 + weight, makes up for it.
    scaled={
        "embed_tokens.weight": "hidden^-0.5",
        "norm.weight + 1": "hidden^0.5",
        "{lm_head,score}.weight": "hidden^-0.5",
    },
    attributes={
        **LLAMA.attributes,
        "embed_tokens": {"scalar_embed_scale": "hidden^0.5", "embed_scale": "hidden^0.5"},
    },
)

GEMMA_2 = replace(
    GEMMA,
    name="Gemma 2 and 3",
    model_types=("gemma2", "gemma3_text"),
    rows=GEMMA.rows + "layers.*.{pre_feedforward_layernorm,post_feedforward_layernorm}.weight  hidden",
    divided=LLAMA.divided,
    logit_cap="final_logit_softcapping",
    note=f"{LLAMA.note}; of Gemma 3 language models without images",
)
