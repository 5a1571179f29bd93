"""Encoder-decoders: T5 with what came after it (v1.1, FLAN-T5), mT5, and BART."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.family import Family

# Distances are told apart once for a whole side, by head, so that a side's self-attentions lose the same heads.
_STACKS = """
    shared.weight                                                       vocab hidden
    {encoder,decoder}.embed_tokens.weight                               vocab hidden
    encoder.block.*.layer.0.SelfAttention.{q,k}.weight                  (heads qk*) hidden
    encoder.block.*.layer.0.SelfAttention.v.weight                      (heads vo*) hidden
    encoder.block.*.layer.0.SelfAttention.o.weight                      hidden (heads vo*)
    encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight  bucket heads
    encoder.block.*.layer.1.DenseReluDense.wo.weight                    hidden ffn*
    encoder.block.*.layer.{0,1}.layer_norm.weight                       hidden
    encoder.final_layer_norm.weight                                     hidden
    decoder.block.*.layer.0.SelfAttention.{q,k}.weight                  (decoder_heads decoder_qk*) hidden
    decoder.block.*.layer.0.SelfAttention.v.weight                      (decoder_heads decoder_vo*) hidden
    decoder.block.*.layer.0.SelfAttention.o.weight                      hidden (decoder_heads decoder_vo*)
    decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight  bucket decoder_heads
    decoder.block.*.layer.1.EncDecAttention.{q,k}.weight                (cross_heads* cross_qk*) hidden
    decoder.block.*.layer.1.EncDecAttention.v.weight                    (cross_heads* cross_vo*) hidden
    decoder.block.*.layer.1.EncDecAttention.o.weight                    hidden (cross_heads* cross_vo*)
    decoder.block.*.layer.2.DenseReluDense.wo.weight                    hidden decoder_ffn*
    decoder.block.*.layer.{0,1,2}.layer_norm.weight                     hidden
    decoder.final_layer_norm.weight                                     hidden
"""
_PLAIN = """
    encoder.block.*.layer.1.DenseReluDense.wi.weight                    ffn* hidden
    decoder.block.*.layer.2.DenseReluDense.wi.weight                    decoder_ffn* hidden
"""
_GATED = """
    encoder.block.*.layer.1.DenseReluDense.{wi_0,wi_1}.weight           ffn* hidden
    decoder.block.*.layer.2.DenseReluDense.{wi_0,wi_1}.weight           decoder_ffn* hidden
"""
_ATTENTION = {
    "d_model": "hidden",
    "n_heads": "heads",
    "key_value_proj_dim": "head_dim",
    "inner_dim": "heads head_dim",
}
_BART_ATTENTION = {
    "embed_dim": "heads head_dim",
    "num_heads": "heads",
    "head_dim": "head_dim",
    "scaling": "head_dim^-0.5",
}

T5 = Family(
    name="T5",
    model_types=("t5",),
    # v1.1 tells its logits without the power of hidden by which T5 multiplies what makes them
    requires={"scale_decoder_outputs": True},
    rows=_STACKS,
    heads={
        "ffn": _PLAIN,
        "gated ffn": _GATED,
        "language model": "lm_head.weight  vocab hidden",
    },
    widths={
        "hidden": "hidden",
        **dict.fromkeys(("heads", "decoder_heads", "cross_heads"), "heads"),
        **dict.fromkeys(("qk", "vo", "decoder_qk", "decoder_vo", "cross_qk", "cross_vo"), "head_dim"),
        **dict.fromkeys(("ffn", "decoder_ffn"), "ffn"),
    },
    counted={"heads": "num_heads", "decoder_heads": "num_heads", "cross_heads": "num_heads"},
    config={"d_model": "hidden", "num_heads": "heads", "d_kv": "head_dim", "d_ff": "ffn"},
    bound=False,
    queries=(
        "{encoder,decoder}.block.*.layer.0.SelfAttention.q.weight",
        "decoder.block.*.layer.1.EncDecAttention.q.weight",
    ),
    temperature=False,
    scaled={"decoder.final_layer_norm.weight": "hidden^0.5"},
    attributes={
        "": {"model_dim": "hidden"},
        "{encoder,decoder}.block.*.layer.0.SelfAttention": _ATTENTION,
        "decoder.block.*.layer.1.EncDecAttention": _ATTENTION,
    },
    lm_head=("lm_head",),
    logit_scale="hidden^-0.5",
    decoder="decoder",
    crossing=("decoder.block.*.layer.1.EncDecAttention.{k,v}",),
    attention_loss=False,
    note="a side's self-attentions lose the same heads, because they share what they know of distances",
)

T5_1 = replace(
    T5,
    name="T5 v1.1 and mT5",
    model_types=("t5", "mt5"),
    requires={"scale_decoder_outputs": False},
    scaled={},
    logit_scale="",
)

BART = Family(
    name="BART",
    model_types=("bart",),
    # embeddings that are multiplied by √hidden are tied to a head that is not
    requires={"scale_embedding": False},
    rows="""
        shared.weight                                               vocab hidden
        {encoder,decoder}.embed_tokens.weight                       vocab hidden
        {encoder,decoder}.embed_positions.weight                    position hidden
        {encoder,decoder}.layernorm_embedding.{weight,bias}         hidden
        encoder.layers.*.self_attn.{q_proj,k_proj}.weight           (heads* qk*) hidden
        encoder.layers.*.self_attn.{q_proj,k_proj}.bias             (heads* qk*)
        encoder.layers.*.self_attn.v_proj.weight                    (heads* vo*) hidden
        encoder.layers.*.self_attn.v_proj.bias                      (heads* vo*)
        encoder.layers.*.self_attn.out_proj.weight                  hidden (heads* vo*)
        encoder.layers.*.self_attn.out_proj.bias                    hidden
        encoder.layers.*.fc1.weight                                 ffn* hidden
        encoder.layers.*.fc1.bias                                   ffn*
        encoder.layers.*.fc2.weight                                 hidden ffn*
        encoder.layers.*.fc2.bias                                   hidden
        encoder.layers.*.{self_attn_layer_norm,final_layer_norm}.{weight,bias}  hidden
        decoder.layers.*.self_attn.{q_proj,k_proj}.weight           (decoder_heads* decoder_qk*) hidden
        decoder.layers.*.self_attn.{q_proj,k_proj}.bias             (decoder_heads* decoder_qk*)
        decoder.layers.*.self_attn.v_proj.weight                    (decoder_heads* decoder_vo*) hidden
        decoder.layers.*.self_attn.v_proj.bias                      (decoder_heads* decoder_vo*)
        decoder.layers.*.self_attn.out_proj.weight                  hidden (decoder_heads* decoder_vo*)
        decoder.layers.*.self_attn.out_proj.bias                    hidden
        decoder.layers.*.encoder_attn.{q_proj,k_proj}.weight        (cross_heads* cross_qk*) hidden
        decoder.layers.*.encoder_attn.{q_proj,k_proj}.bias          (cross_heads* cross_qk*)
        decoder.layers.*.encoder_attn.v_proj.weight                 (cross_heads* cross_vo*) hidden
        decoder.layers.*.encoder_attn.v_proj.bias                   (cross_heads* cross_vo*)
        decoder.layers.*.encoder_attn.out_proj.weight               hidden (cross_heads* cross_vo*)
        decoder.layers.*.encoder_attn.out_proj.bias                 hidden
        decoder.layers.*.fc1.weight                                 decoder_ffn* hidden
        decoder.layers.*.fc1.bias                                   decoder_ffn*
        decoder.layers.*.fc2.weight                                 hidden decoder_ffn*
        decoder.layers.*.fc2.bias                                   hidden
        decoder.layers.*.{self_attn_layer_norm,encoder_attn_layer_norm,final_layer_norm}.{weight,bias}  hidden
    """,
    heads={"language model": "lm_head.weight  vocab hidden"},
    widths=T5.widths,
    counted={
        "heads": "encoder_attention_heads",
        "decoder_heads": "decoder_attention_heads",
        "cross_heads": "decoder_attention_heads",
    },
    config={
        "d_model": "hidden",
        "encoder_attention_heads": "heads",
        "decoder_attention_heads": "heads",
        "encoder_ffn_dim": "ffn",
        "decoder_ffn_dim": "ffn",
    },
    bound=True,
    queries=(
        "{encoder,decoder}.layers.*.self_attn.q_proj.{weight,bias}",
        "decoder.layers.*.encoder_attn.q_proj.{weight,bias}",
    ),
    attributes={
        "{encoder,decoder}.layers.*": {"embed_dim": "hidden"},
        "{encoder,decoder}.layers.*.self_attn": _BART_ATTENTION,
        "decoder.layers.*.encoder_attn": _BART_ATTENTION,
    },
    lm_head=("lm_head",),
    logit_bias="final_logits_bias",
    decoder="decoder",
    crossing=("decoder.layers.*.encoder_attn.{k_proj,v_proj}",),
    attention_loss=False,
    note="models with scale_embedding, such as mBART, are refused",
)
