"""Vision transformers, which read an image as a row of patches: ViT and DeiT."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.encoders import BERT
from homodistil.axes.families.family import Family

_EMBEDDINGS = """
    embeddings.cls_token                                          1 1 hidden
    embeddings.position_embeddings                                1 position hidden
    embeddings.patch_embeddings.projection.weight                 hidden channel height breadth
    embeddings.patch_embeddings.projection.bias                   hidden
"""
_LAYERS = """
    layers.*.attention.{q_proj,k_proj}.weight                     (heads* qk*) hidden
    layers.*.attention.v_proj.weight                              (heads* vo*) hidden
    layers.*.attention.o_proj.weight                              hidden (heads* vo*)
    layers.*.attention.o_proj.bias                                hidden
    layers.*.{layernorm_before,layernorm_after}.{weight,bias}     hidden
    layers.*.mlp.fc1.weight                                       ffn* hidden
    layers.*.mlp.fc1.bias                                         ffn*
    layers.*.mlp.fc2.weight                                       hidden ffn*
    layers.*.mlp.fc2.bias                                         hidden
    layernorm.{weight,bias}                                       hidden
"""
_HEADS = {
    "biases of queries, keys and values": """
        layers.*.attention.{q_proj,k_proj}.bias                   (heads* qk*)
        layers.*.attention.v_proj.bias                            (heads* vo*)
    """,
    "pooler": """
        pooler.dense.weight                                       hidden hidden
        pooler.dense.bias                                         hidden
    """,
    "classes": """
        classifier.weight                                         label hidden
        classifier.bias                                           label
    """,
}

VIT = Family(
    name="ViT",
    model_types=("vit",),
    rows=_EMBEDDINGS + _LAYERS,
    heads=_HEADS,
    widths=BERT.widths,
    counted={"heads": "num_attention_heads"},
    config={**BERT.config, "pooler_output_size": "hidden", "head_dim": "head_dim"},
    bound=True,
    queries=("layers.*.attention.q_proj.{weight,bias}",),
    attributes={
        "layers.*.attention": {
            "num_attention_heads": "heads",
            "head_dim": "head_dim",
            "scaling": "head_dim^-0.5",
        }
    },
    pooler="pooler",
    once=("pooler.dense.weight", "classifier.weight"),
    class_tokens=1,
)

DEIT = replace(
    VIT,
    name="DeiT",
    model_types=("deit",),
    rows="embeddings.distillation_token  1 1 hidden" + VIT.rows,
    heads={
        **_HEADS,
        "classes, of two tokens": """
            {cls_classifier,distillation_classifier}.weight       label hidden
            {cls_classifier,distillation_classifier}.bias         label
        """,
    },
    once=(*VIT.once, "{cls_classifier,distillation_classifier}.weight"),
    class_tokens=2,
)
