"""What a family of models is: a table and a few rules, described by data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. See `notation` for how rows are written.

    A *product* is a text such as `heads head_dim` or `head_dim^-0.5`: sizes of widths and axes, multiplied.

    Attributes:
        name: what it is called in messages.
        model_types: the `model_type`s of the configurations that belong to it.
        requires: what keys of the configuration must say; one that is not there is False.
        rows: the table of the base model; each row must match.
        heads: tables of what may stand on or beside the base model, each matching whole or not at all.
        widths: for each axis that may be cut, the width that says how many units it has; other axes are never cut.
        counted: for each axis that tensors alone do not tell, the configuration's key that counts it.
        config: for each key of the configuration that repeats widths, their product.
        bound: whether the configuration has no head_dim and needs `heads * head_dim == hidden`.
        unequal: for a width, the fixed axis that it must not be as wide as, because transformers would then build
            another model.
        divided: for a width, the product that it must be a multiple of, because transformers refuses to load any other.
        queries: rows that are scaled when head_dim changes, so that attention keeps its temperature; where queries,
            keys and values are one matrix, the first of its fixed factor.
        temperature: whether scores are divided by √head_dim; where not, queries keep theirs as they are.
        scaled: for rows that models multiply by a power of a width, or that make up for it, the product that they are
            scaled with when a cut changes it. `row + 1` is a row to which the model adds one before it multiplies.
        attributes: modules' own attributes that repeat widths: a product.
        pooler: the module that pools a sequence into one vector.
        once: rows whose module runs once a sequence and not once a token.
        once_with_pooler: the same, where there is a pooler.
        once_for_sequences: the same, in classes that tell sequences apart (`...ForSequenceClassification`) or choose
            one of several.
        distances: rows that project embeddings of distances, whose axis is called `distance`, once a sequence; every
            token is compared with what they make. Those that are not in `once` project tokens as well.
        lm_head: modules that turn hidden states into logits over the vocabulary, in the order in which they run.
        logit_scale: the power of `hidden` that the last states are multiplied by before `lm_head`.
        logit_bias: the buffer that is added to logits after `lm_head`, whose last dimension is the vocabulary.
        logit_cap: the key of the configuration with c, where logits z become c·tanh(z / c) after `lm_head`.
        decoder: the module of encoder-decoders that reads the target.
        crossing: those of its modules that read what the encoder says.
        shared: the beginning of the names of parameters that all layers share: each is there once, and computed with
            in every layer.
        each_layer: keys of the configuration that are lists with an entry a layer, which leaves with its layer.
        class_tokens: tokens that a model puts before the patches of an image, such as the class token; 0 for models
            of text. The axis of the position embeddings is called `position` where there are any.
        attention_loss: whether every layer attends to the whole sequence and its queries and keys can be compared.
        note: what it cannot do, for those who ask.
    """

    name: str
    model_types: tuple[str, ...]
    rows: str
    heads: Mapping[str, str]
    widths: Mapping[str, str]
    counted: Mapping[str, str]
    config: Mapping[str, str]
    bound: bool
    queries: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, str]]
    requires: Mapping[str, object] = field(default_factory=dict)
    temperature: bool = True
    unequal: Mapping[str, str] = field(default_factory=dict)
    divided: Mapping[str, str] = field(default_factory=dict)
    scaled: Mapping[str, str] = field(default_factory=dict)
    pooler: str | None = None
    once: tuple[str, ...] = ()
    once_with_pooler: tuple[str, ...] = ()
    once_for_sequences: tuple[str, ...] = ()
    distances: tuple[str, ...] = ()
    lm_head: tuple[str, ...] = ()
    logit_scale: str = ""
    logit_bias: str = ""
    logit_cap: str = ""
    decoder: str = ""
    crossing: tuple[str, ...] = ()
    shared: str = ""
    each_layer: tuple[str, ...] = ("layer_types", "mlp_layer_types")
    class_tokens: int = 0
    attention_loss: bool = True
    note: str = ""
