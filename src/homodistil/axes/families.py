"""The families of models that can be cut: names of parameters, modules and configuration keys, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family, described by data alone. See `notation` for how rows are written.

    Attributes:
        name: what it is called in messages.
        model_types: the `model_type`s of the configurations that belong to it.
        rows: the table of the base model; each row must match.
        heads: tables of what may stand on or beside the base model, each matching whole or not at all.
        widths: for each axis that may be cut, the width that says how many units it has.
        config: for each width that the configuration can say, its key.
        bound: whether the configuration has no head_dim and needs `heads * head_dim == hidden`.
        queries: rows that are scaled when head_dim changes, so that attention keeps its temperature.
        attributes: modules' own attributes that repeat widths: a product of widths, or one with an exponent.
        pooler: the module that pools a sequence into one vector.
        pooled: rows whose module runs once a sequence and not once a token, where there is a pooler.
        lm_heads: modules that turn hidden states into logits over the vocabulary.
    """

    name: str
    model_types: tuple[str, ...]
    rows: str
    heads: Mapping[str, str]
    widths: Mapping[str, str]
    config: Mapping[str, str]
    bound: bool
    queries: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, str]]
    pooler: str | None = None
    pooled: tuple[str, ...] = ()
    lm_heads: tuple[str, ...] = ()


BERT = Family(
    name="BERT",
    model_types=("bert",),
    rows="""
    embeddings.word_embeddings.weight                             vocab hidden
    embeddings.position_embeddings.weight                         position hidden
    embeddings.token_type_embeddings.weight                       type hidden
    embeddings.LayerNorm.{weight,bias}                            hidden
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
    """,
    heads={
        "pooler": """
            pooler.dense.weight                                   hidden hidden
            pooler.dense.bias                                     hidden
        """,
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
        "sequence, token or choice": """
            classifier.weight                                     label hidden
            classifier.bias                                       label
        """,
        "question": """
            qa_outputs.weight                                     label hidden
            qa_outputs.bias                                       label
        """,
    },
    widths={"hidden": "hidden", "heads": "heads", "qk": "head_dim", "vo": "head_dim", "ffn": "ffn"},
    config={"hidden": "hidden_size", "heads": "num_attention_heads", "ffn": "intermediate_size"},
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
    pooled=("pooler.dense.weight", "classifier.weight", "cls.seq_relationship.weight", "cls.weight"),
    lm_heads=("cls.predictions",),
)

FAMILIES: tuple[Family, ...] = (BERT,)
