"""Encoders whose layers share: MPNet a position bias, ALBERT everything."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.encoders import BERT, ROBERTA
from homodistil.axes.families.family import Family

MPNET = replace(
    ROBERTA,
    name="MPNet",
    model_types=("mpnet",),
    # heads have no star: a bias for each of them is shared, so that all layers lose the same
    rows="""
        embeddings.word_embeddings.weight                             vocab hidden
        embeddings.position_embeddings.weight                         position hidden
        embeddings.LayerNorm.{weight,bias}                            hidden
        encoder.relative_attention_bias.weight                        bucket heads
        encoder.layer.*.attention.attn.{q,k}.weight                   (heads qk*) hidden
        encoder.layer.*.attention.attn.{q,k}.bias                     (heads qk*)
        encoder.layer.*.attention.attn.v.weight                       (heads vo*) hidden
        encoder.layer.*.attention.attn.v.bias                         (heads vo*)
        encoder.layer.*.attention.attn.o.weight                       hidden (heads vo*)
        encoder.layer.*.attention.attn.o.bias                         hidden
        encoder.layer.*.attention.LayerNorm.{weight,bias}             hidden
        encoder.layer.*.intermediate.dense.weight                     ffn* hidden
        encoder.layer.*.intermediate.dense.bias                       ffn*
        encoder.layer.*.output.dense.weight                           hidden ffn*
        encoder.layer.*.output.dense.bias                             hidden
        encoder.layer.*.output.LayerNorm.{weight,bias}                hidden
    """,
    queries=("encoder.layer.*.attention.attn.q.{weight,bias}",),
    attributes={
        "encoder": {"n_heads": "heads"},
        "encoder.layer.*.attention.attn": {
            "num_attention_heads": "heads",
            "attention_head_size": "head_dim",
            "all_head_size": "heads head_dim",
        },
    },
    attention_loss=False,
    note="all layers lose the same heads; attention is not compared",
)

_LAYER = "encoder.albert_layer_groups.0.albert_layers.0"

ALBERT = Family(
    name="ALBERT",
    model_types=("albert",),
    rows=f"""
        embeddings.word_embeddings.weight                             vocab embedding
        embeddings.position_embeddings.weight                         position embedding
        embeddings.token_type_embeddings.weight                       type embedding
        embeddings.LayerNorm.{{weight,bias}}                          embedding
        encoder.embedding_hidden_mapping_in.weight                    hidden embedding
        encoder.embedding_hidden_mapping_in.bias                      hidden
        {_LAYER}.attention.{{query,key}}.weight                       (heads qk) hidden
        {_LAYER}.attention.{{query,key}}.bias                         (heads qk)
        {_LAYER}.attention.value.weight                               (heads vo) hidden
        {_LAYER}.attention.value.bias                                 (heads vo)
        {_LAYER}.attention.dense.weight                               hidden (heads vo)
        {_LAYER}.attention.dense.bias                                 hidden
        {_LAYER}.{{attention.LayerNorm,full_layer_layer_norm}}.{{weight,bias}}  hidden
        {_LAYER}.ffn.weight                                           ffn hidden
        {_LAYER}.ffn.bias                                             ffn
        {_LAYER}.ffn_output.weight                                    hidden ffn
        {_LAYER}.ffn_output.bias                                      hidden
    """,
    heads={
        "pooler": """
            pooler.weight                                             hidden hidden
            pooler.bias                                               hidden
        """,
        "language model": """
            predictions.dense.weight                                  embedding hidden
            predictions.dense.bias                                    embedding
            predictions.LayerNorm.{weight,bias}                       embedding
            predictions.decoder.weight                                vocab embedding
            predictions.{bias,decoder.bias}                           vocab
        """,
        "sequence, token or choice": BERT.heads["sequence, token or choice"],
        "question": BERT.heads["question"],
    },
    widths=BERT.widths,
    counted=BERT.counted,
    config=BERT.config,
    bound=True,
    queries=(f"{_LAYER}.attention.query.{{weight,bias}}",),
    attributes={
        f"{_LAYER}.attention": {
            "num_attention_heads": "heads",
            "hidden_size": "hidden",
            "attention_head_size": "head_dim",
            "all_head_size": "heads head_dim",
            "scaling": "head_dim^-0.5",
        }
    },
    pooler="pooler",
    once=("pooler.weight",),
    once_with_pooler=("classifier.weight",),
    lm_head=("predictions",),
    shared=_LAYER,
    note="embeddings keep their own width; the layers are one, and all stay",
)
