"""Encoders: BERT and those that are built like it, and ModernBERT."""

from __future__ import annotations

from dataclasses import replace

from homodistil.axes.families.family import Family

LAYERS = """
    encoder.layer.*.attention.self.{query,key}.weight             (heads* qk*) hidden
    encoder.layer.*.attention.self.{query,key}.bias               (heads* qk*)
    encoder.layer.*.attention.self.value.weight                   (heads* vo*) hidden
    encoder.layer.*.attention.self.value.bias                     (heads* vo*)
    encoder.layer.*.attention.output.dense.weight                 hidden (heads* vo*)
    encoder.layer.*.attention.output.dense.bias                   hidden
    encoder.layer.*.attention.output.LayerNorm.{weight,bias}      hidden
    encoder.layer.*.intermediate.dense.weight                     ffn* hidden
    encoder.layer.*.intermediate.dense.bias                       ffn*
    encoder.layer.*.output.dense.weight                           hidden ffn*
    encoder.layer.*.output.dense.bias                             hidden
    encoder.layer.*.output.LayerNorm.{weight,bias}                hidden
"""
_EMBEDDINGS = """
    embeddings.word_embeddings.weight                             vocab hidden
    embeddings.position_embeddings.weight                         position hidden
    embeddings.token_type_embeddings.weight                       type hidden
    embeddings.LayerNorm.{weight,bias}                            hidden
"""
_POOLER = """
    pooler.dense.weight                                           hidden hidden
    pooler.dense.bias                                             hidden
"""
_LINEAR_HEAD = """
    classifier.weight                                             label hidden
    classifier.bias                                               label
"""
_DEEP_HEAD = """
    classifier.dense.weight                                       hidden hidden
    classifier.dense.bias                                         hidden
    classifier.out_proj.weight                                    label hidden
    classifier.out_proj.bias                                      label
"""
_QUESTION_HEAD = """
    qa_outputs.weight                                             label hidden
    qa_outputs.bias                                               label
"""

BERT = Family(
    name="BERT",
    model_types=("bert",),
    rows=_EMBEDDINGS + LAYERS,
    heads={
        "pooler": _POOLER,
        "language model": """
            cls.predictions.transform.dense.weight                hidden hidden
            cls.predictions.transform.dense.bias                  hidden
            cls.predictions.transform.LayerNorm.{weight,bias}     hidden
            cls.predictions.decoder.weight                        vocab hidden
            cls.predictions.{bias,decoder.bias}                   vocab
        """,
        "next sentence, with a language model": """
            cls.seq_relationship.weight                           label hidden
            cls.seq_relationship.bias                             label
        """,
        "next sentence": """
            cls.weight                                            label hidden
            cls.bias                                              label
        """,
        "sequence, token or choice": _LINEAR_HEAD,
        "question": _QUESTION_HEAD,
    },
    widths={"hidden": "hidden", "heads": "heads", "qk": "head_dim", "vo": "head_dim", "ffn": "ffn"},
    counted={"heads": "num_attention_heads"},
    config={"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"},
    bound=True,
    queries=("encoder.layer.*.attention.self.query.{weight,bias}",),
    attributes={
        "encoder.layer.*.attention.self": {
            "num_attention_heads": "heads",
            "attention_head_size": "head_dim",
            "all_head_size": "heads head_dim",
            "scaling": "head_dim^-0.5",
        }
    },
    pooler="pooler",
    once=("pooler.dense.weight", "cls.seq_relationship.weight", "cls.weight"),
    once_with_pooler=("classifier.weight",),
    lm_head=("cls.predictions",),
)

ROBERTA = replace(
    BERT,
    name="RoBERTa",
    model_types=("roberta", "xlm-roberta", "camembert"),
    heads={
        "pooler": _POOLER,
        "language model": """
            lm_head.dense.weight                                  hidden hidden
            lm_head.dense.bias                                    hidden
            lm_head.layer_norm.{weight,bias}                      hidden
            lm_head.decoder.weight                                vocab hidden
            lm_head.{bias,decoder.bias}                           vocab
        """,
        "sequence": _DEEP_HEAD,
        "token or choice": _LINEAR_HEAD,
        "question": _QUESTION_HEAD,
    },
    once=("pooler.dense.weight", "classifier.{dense,out_proj}.weight"),
    lm_head=("lm_head",),
)

DISTILBERT = Family(
    name="DistilBERT",
    model_types=("distilbert",),
    rows="""
        embeddings.word_embeddings.weight                         vocab hidden
        embeddings.position_embeddings.weight                     position hidden
        embeddings.LayerNorm.{weight,bias}                        hidden
        transformer.layer.*.attention.{q_lin,k_lin}.weight        (heads* qk*) hidden
        transformer.layer.*.attention.{q_lin,k_lin}.bias          (heads* qk*)
        transformer.layer.*.attention.v_lin.weight                (heads* vo*) hidden
        transformer.layer.*.attention.v_lin.bias                  (heads* vo*)
        transformer.layer.*.attention.out_lin.weight              hidden (heads* vo*)
        transformer.layer.*.attention.out_lin.bias                hidden
        transformer.layer.*.sa_layer_norm.{weight,bias}           hidden
        transformer.layer.*.ffn.lin1.weight                       ffn* hidden
        transformer.layer.*.ffn.lin1.bias                         ffn*
        transformer.layer.*.ffn.lin2.weight                       hidden ffn*
        transformer.layer.*.ffn.lin2.bias                         hidden
        transformer.layer.*.output_layer_norm.{weight,bias}       hidden
    """,
    heads={
        "language model": """
            vocab_transform.weight                                hidden hidden
            vocab_transform.bias                                  hidden
            vocab_layer_norm.{weight,bias}                        hidden
            vocab_projector.weight                                vocab hidden
            vocab_projector.bias                                  vocab
        """,
        "sequence or choice": """
            pre_classifier.weight                                 hidden hidden
            pre_classifier.bias                                   hidden
        """,
        "sequence, token or choice": _LINEAR_HEAD,
        "question": _QUESTION_HEAD,
    },
    widths=BERT.widths,
    counted={"heads": "n_heads"},
    config={"dim": "hidden", "n_heads": "heads", "hidden_dim": "ffn"},
    bound=True,
    queries=("transformer.layer.*.attention.q_lin.{weight,bias}",),
    attributes={
        "transformer.layer.*.attention": {
            "n_heads": "heads",
            "dim": "hidden",
            "attention_head_size": "head_dim",
            "scaling": "head_dim^-0.5",
        },
    },
    pooler="pre_classifier",
    once=("pre_classifier.weight",),
    once_with_pooler=("classifier.weight",),
    lm_head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
)

MODERNBERT = Family(
    name="ModernBERT",
    model_types=("modernbert",),
    rows="""
        embeddings.tok_embeddings.weight                          vocab hidden
        embeddings.norm.weight                                    hidden
        layers.*.attn.Wqkv.weight                                 (3 heads* rope) hidden
        layers.*.attn.Wo.weight                                   hidden (heads* rope)
        layers.*.mlp_norm.weight                                  hidden
        layers.*.mlp.Wi.weight                                    (2 ffn*) hidden
        layers.*.mlp.Wo.weight                                    hidden ffn*
        final_norm.weight                                         hidden
    """,
    heads={
        "norms before attention, from the second layer on": "layers.^.attn_norm.weight  hidden",
        "prediction": """
            head.dense.weight                                     hidden hidden
            head.norm.weight                                      hidden
        """,
        "language model": """
            decoder.weight                                        vocab hidden
            decoder.bias                                          vocab
        """,
        "sequence, token, question or choice": _LINEAR_HEAD,
    },
    widths={"hidden": "hidden", "heads": "heads", "ffn": "ffn"},
    counted={"heads": "num_attention_heads"},
    config={"hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn"},
    bound=True,
    queries=("layers.*.attn.Wqkv.weight",),
    attributes={},
    once_for_sequences=("head.dense.weight", "classifier.weight"),
    lm_head=("head", "decoder"),
    attention_loss=False,
    note="dimensions are rotary, so that whole heads leave; every other layer attends to a window only",
)
