"""DeBERTa v2 and v3, whose attention compares queries and keys with embeddings of distances as well."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.encoders import BERT
from homodistil.axes.families.family import Family

_TABLE = """
    embeddings.word_embeddings.weight                             vocab hidden
    embeddings.LayerNorm.{weight,bias}                            hidden
    encoder.layer.*.attention.self.{query_proj,key_proj}.weight   (heads* qk*) hidden
    encoder.layer.*.attention.self.{query_proj,key_proj}.bias     (heads* qk*)
    encoder.layer.*.attention.self.value_proj.weight              (heads* vo*) hidden
    encoder.layer.*.attention.self.value_proj.bias                (heads* vo*)
    encoder.layer.*.attention.output.dense.weight                 hidden (heads* vo*)
    encoder.layer.*.attention.output.dense.bias                   hidden
    encoder.layer.*.attention.output.LayerNorm.{weight,bias}      hidden
    encoder.layer.*.intermediate.dense.weight                     ffn* hidden
    encoder.layer.*.intermediate.dense.bias                       ffn*
    encoder.layer.*.output.dense.weight                           hidden ffn*
    encoder.layer.*.output.dense.bias                             hidden
    encoder.layer.*.output.LayerNorm.{weight,bias}                hidden
"""
_HEADS = {
    "positions": "embeddings.position_embeddings.weight  position hidden",
    "token types": "embeddings.token_type_embeddings.weight  type hidden",
    "distances": "encoder.rel_embeddings.weight  distance hidden",
    "norm of distances": "encoder.LayerNorm.{weight,bias}  hidden",
    "convolution after the first layer": """
        encoder.conv.conv.weight                                  hidden hidden kernel
        encoder.conv.conv.bias                                    hidden
        encoder.conv.LayerNorm.{weight,bias}                      hidden
    """,
    **{name: BERT.heads[name] for name in ("pooler", "language model", "sequence, token or choice", "question")},
}

DEBERTA = Family(
    name="DeBERTa",
    model_types=("deberta-v2",),
    rows=_TABLE,
    heads=_HEADS,
    widths=BERT.widths,
    counted=BERT.counted,
    config={
        **BERT.config,
        "attention_head_size": "head_dim",
        "embedding_size": "hidden",
        "pooler_hidden_size": "hidden",
    },
    bound=True,
    queries=("encoder.layer.*.attention.self.query_proj.{weight,bias}",),
    attributes={
        "encoder.layer.*.attention.self": {
            "num_attention_heads": "heads",
            "attention_head_size": "head_dim",
            "all_head_size": "heads head_dim",
        },
        "{embeddings,cls.predictions,cls.predictions.transform}": {"embedding_size": "hidden"},
    },
    pooler="pooler",
    once=("pooler.dense.weight",),
    once_with_pooler=("classifier.weight",),
    lm_head=("cls.predictions",),
    distances=("encoder.layer.*.attention.self.{query_proj,key_proj}.weight",),
    attention_loss=False,
    note="v2 and v3; attention is not compared; a language model is one with `legacy` set, whose head is `cls`",
)

DEBERTA_OWN = replace(
    DEBERTA,
    name="DeBERTa with projections of distances",
    heads={
        **_HEADS,
        "keys of distances": """
            encoder.layer.*.attention.self.pos_key_proj.weight    (heads* qk*) hidden
            encoder.layer.*.attention.self.pos_key_proj.bias      (heads* qk*)
        """,
        "queries of distances": """
            encoder.layer.*.attention.self.pos_query_proj.weight  (heads* qk*) hidden
            encoder.layer.*.attention.self.pos_query_proj.bias    (heads* qk*)
        """,
    },
    # of the three products that make a score, each has one query
    queries=("encoder.layer.*.attention.self.{query_proj,pos_query_proj}.{weight,bias}",),
    once=(*DEBERTA.once, "encoder.layer.*.attention.self.{pos_key_proj,pos_query_proj}.weight"),
    distances=("encoder.layer.*.attention.self.{pos_key_proj,pos_query_proj}.weight",),
)
