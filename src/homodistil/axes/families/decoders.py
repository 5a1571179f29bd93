"""Decoders: GPT-2, OPT, GPT-NeoX, and Llama with those that are built like it; EuroBERT, an encoder, is one of them."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.family import Family

_TOKEN = {
    "token": """
        classifier.weight                                         label hidden
        classifier.bias                                           label
    """,
}
_QUESTION = {
    "question": """
        qa_outputs.weight                                         label hidden
        qa_outputs.bias                                           label
    """,
}

GPT2 = Family(
    name="GPT-2",
    model_types=("gpt2",),
    # or scores are divided by something else than √head_dim, which a cut would write over
    requires={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    rows="""
        wte.weight                                                vocab hidden
        wpe.weight                                                position hidden
        h.*.ln_1.{weight,bias}                                    hidden
        h.*.attn.c_attn.weight                                    hidden (3 heads* dim*)
        h.*.attn.c_attn.bias                                      (3 heads* dim*)
        h.*.attn.c_proj.weight                                    (heads* dim*) hidden
        h.*.attn.c_proj.bias                                      hidden
        h.*.ln_2.{weight,bias}                                    hidden
        h.*.mlp.c_fc.weight                                       hidden ffn*
        h.*.mlp.c_fc.bias                                         ffn*
        h.*.mlp.c_proj.weight                                     ffn* hidden
        h.*.mlp.c_proj.bias                                       hidden
        ln_f.{weight,bias}                                        hidden
    """,
    heads={
        "language model": "lm_head.weight  vocab hidden",
        "sequence": "score.weight  label hidden",
        **_TOKEN,
        **_QUESTION,
    },
    widths={"hidden": "hidden", "heads": "heads", "dim": "head_dim", "ffn": "ffn"},
    counted={"heads": "n_head"},
    config={"n_embd": "hidden", "n_head": "heads", "n_inner": "ffn"},
    bound=True,
    queries=("h.*.attn.c_attn.{weight,bias}",),
    attributes={
        "h.*.attn": {
            "embed_dim": "hidden",
            "num_heads": "heads",
            "head_dim": "head_dim",
            "split_size": "heads head_dim",
            "scaling": "head_dim^-0.5",
        },
    },
    lm_head=("lm_head",),
    attention_loss=False,
    note="queries, keys and values of a head lose the same dimensions",
)

OPT = Family(
    name="OPT",
    model_types=("opt",),
    rows="""
        decoder.embed_tokens.weight                               vocab hidden
        decoder.embed_positions.weight                            position hidden
        decoder.layers.*.self_attn.{q_proj,k_proj}.weight         (heads* qk*) hidden
        decoder.layers.*.self_attn.{q_proj,k_proj}.bias           (heads* qk*)
        decoder.layers.*.self_attn.v_proj.weight                  (heads* vo*) hidden
        decoder.layers.*.self_attn.v_proj.bias                    (heads* vo*)
        decoder.layers.*.self_attn.out_proj.weight                hidden (heads* vo*)
        decoder.layers.*.self_attn.out_proj.bias                  hidden
        decoder.layers.*.self_attn_layer_norm.{weight,bias}       hidden
        decoder.layers.*.fc1.weight                               ffn* hidden
        decoder.layers.*.fc1.bias                                 ffn*
        decoder.layers.*.fc2.weight                               hidden ffn*
        decoder.layers.*.fc2.bias                                 hidden
        decoder.layers.*.final_layer_norm.{weight,bias}           hidden
        decoder.final_layer_norm.{weight,bias}                    hidden
    """,
    heads={
        "language model": "lm_head.weight  vocab hidden",
        "sequence": "score.weight  label hidden",
        **_QUESTION,
    },
    widths={"hidden": "hidden", "heads": "heads", "qk": "head_dim", "vo": "head_dim", "ffn": "ffn"},
    counted={"heads": "num_attention_heads"},
    config={
        "hidden_size": "hidden",
        "word_embed_proj_dim": "hidden",
        "num_attention_heads": "heads",
        "ffn_dim": "ffn",
    },
    bound=True,
    queries=("decoder.layers.*.self_attn.q_proj.{weight,bias}",),
    attributes={
        "decoder.layers.*": {"embed_dim": "hidden"},
        "decoder.layers.*.self_attn": {
            "embed_dim": "heads head_dim",
            "num_heads": "heads",
            "head_dim": "head_dim",
            "scaling": "head_dim^-0.5",
        },
    },
    lm_head=("lm_head",),
    attention_loss=False,
    note="the 350M model, whose embeddings are projected, is refused",
)

NEOX = Family(
    name="GPT-NeoX",
    model_types=("gpt_neox",),
    rows="""
        embed_in.weight                                           vocab hidden
        layers.*.{input_layernorm,post_attention_layernorm}.{weight,bias}  hidden
        layers.*.attention.query_key_value.weight                 (heads* 3 rope) hidden
        layers.*.attention.query_key_value.bias                   (heads* 3 rope)
        layers.*.attention.dense.weight                           hidden (heads* rope)
        layers.*.attention.dense.bias                             hidden
        layers.*.mlp.dense_h_to_4h.weight                         ffn* hidden
        layers.*.mlp.dense_h_to_4h.bias                           ffn*
        layers.*.mlp.dense_4h_to_h.weight                         hidden ffn*
        layers.*.mlp.dense_4h_to_h.bias                           hidden
        final_layer_norm.{weight,bias}                            hidden
    """,
    heads={
        "language model": "lm_head.weight  vocab hidden",
        "sequence": "score.weight  label hidden",
        **_TOKEN,
        **_QUESTION,
    },
    widths={"hidden": "hidden", "heads": "heads", "ffn": "ffn"},
    counted={"heads": "num_attention_heads"},
    config={"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"},
    bound=True,
    queries=("layers.*.attention.query_key_value.weight",),
    attributes={},
    lm_head=("lm_head",),
    attention_loss=False,
    note="dimensions are rotary, so that whole heads leave",
)

LLAMA = Family(
    name="Llama",
    model_types=("llama",),
    rows="""
        embed_tokens.weight                                       vocab hidden
        layers.*.self_attn.q_proj.weight                          (kv* group rope) hidden
        layers.*.self_attn.{k_proj,v_proj}.weight                 (kv* rope) hidden
        layers.*.self_attn.o_proj.weight                          hidden (kv* group rope)
        layers.*.mlp.{gate_proj,up_proj}.weight                   ffn* hidden
        layers.*.mlp.down_proj.weight                             hidden ffn*
        layers.*.{input_layernorm,post_attention_layernorm}.weight  hidden
        norm.weight                                               hidden
    """,
    heads={
        "biases of queries, keys and values": """
            layers.*.self_attn.q_proj.bias                        (kv* group rope)
            layers.*.self_attn.{k_proj,v_proj}.bias               (kv* rope)
        """,
        "biases of what heads write": "layers.*.self_attn.o_proj.bias  hidden",
        "biases of ffn": """
            layers.*.mlp.{gate_proj,up_proj}.bias                 ffn*
            layers.*.mlp.down_proj.bias                           hidden
        """,
        "norms of queries and keys": "layers.*.self_attn.{q_norm,k_norm}.weight  rope",
        "language model": "lm_head.weight  vocab hidden",
        "sequence": "score.weight  label hidden",
        "token": "score.bias  label",
        **_QUESTION,
    },
    widths={"hidden": "hidden", "kv": "kv_heads", "ffn": "ffn"},
    counted={"kv": "num_key_value_heads"},
    config={
        "hidden_size": "hidden",
        "num_attention_heads": "kv_heads group",
        "num_key_value_heads": "kv_heads",
        "head_dim": "rope",
        "intermediate_size": "ffn",
    },
    bound=False,
    divided={"hidden": "kv_heads group"},
    queries=("layers.*.self_attn.q_proj.weight",),
    attributes={
        "layers.*": {"hidden_size": "hidden"},
        "layers.*.mlp": {"hidden_size": "hidden", "intermediate_size": "ffn"},
    },
    lm_head=("lm_head",),
    attention_loss=False,
    note="dimensions are rotary, so that key-value heads leave whole, together with their queries",
)

# their configurations leave hidden free
MISTRAL = replace(LLAMA, name="Mistral and Qwen", model_types=("mistral", "qwen2", "qwen3"), divided={})

EUROBERT = replace(
    LLAMA,
    name="EuroBERT",
    model_types=("eurobert",),
    heads={
        "biases": """
            layers.*.self_attn.q_proj.bias                        (kv* group rope)
            layers.*.self_attn.{k_proj,v_proj}.bias               (kv* rope)
            layers.*.self_attn.o_proj.bias                        hidden
            layers.*.mlp.{gate_proj,up_proj}.bias                 ffn*
            layers.*.mlp.down_proj.bias                           hidden
        """,
        "language model": "lm_head.weight  vocab hidden",
        "sequence": """
            dense.weight                                          hidden hidden
            dense.bias                                            hidden
        """,
        "sequence or token": """
            classifier.weight                                     label hidden
            classifier.bias                                       label
        """,
    },
)
