"""ELECTRA: BERT with a generator or a discriminator on it, and embeddings that may have a width of their own."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.encoders import BERT, LAYERS, ROBERTA

_OWN_EMBEDDINGS = """
    embeddings.word_embeddings.weight                             vocab embedding
    embeddings.position_embeddings.weight                         position embedding
    embeddings.token_type_embeddings.weight                       type embedding
    embeddings.LayerNorm.{weight,bias}                            embedding
    embeddings_project.weight                                     hidden embedding
    embeddings_project.bias                                       hidden
"""

ELECTRA = replace(
    BERT,
    name="ELECTRA",
    model_types=("electra",),
    heads={
        "generator": """
            generator_predictions.LayerNorm.{weight,bias}         hidden
            generator_predictions.dense.weight                    hidden hidden
            generator_predictions.dense.bias                      hidden
            generator_lm_head.weight                              vocab hidden
            generator_lm_head.bias                                vocab
        """,
        "discriminator": """
            discriminator_predictions.dense.weight                hidden hidden
            discriminator_predictions.dense.bias                  hidden
            discriminator_predictions.dense_prediction.weight     label hidden
            discriminator_predictions.dense_prediction.bias       label
        """,
        "sequence": ROBERTA.heads["sequence"],
        "token": ROBERTA.heads["token or choice"],
        "question": BERT.heads["question"],
    },
    config={**BERT.config, "embedding_size": "hidden"},
    pooler=None,
    once=("classifier.{dense,out_proj}.weight",),
    once_with_pooler=(),
    lm_head=("generator_predictions", "generator_lm_head"),
)

ELECTRA_SMALL = replace(
    ELECTRA,
    name="ELECTRA with narrow embeddings",
    rows=_OWN_EMBEDDINGS + LAYERS,
    heads={
        **ELECTRA.heads,
        "generator": """
            generator_predictions.LayerNorm.{weight,bias}         embedding
            generator_predictions.dense.weight                    embedding hidden
            generator_predictions.dense.bias                      embedding
            generator_lm_head.weight                              vocab embedding
            generator_lm_head.bias                                vocab
        """,
    },
    config=BERT.config,
    unequal={"hidden": "embedding"},
    note="the width of the embeddings, which is not hidden, is kept",
)
