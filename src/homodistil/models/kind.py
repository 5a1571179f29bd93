"""What a model predicts and reads, as its class says: it decides how it is distilled."""

from __future__ import annotations

from typing import Literal

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from homodistil.errors import UserError

Kind = Literal["masked-lm", "causal-lm", "seq2seq-lm", "similarity", "labels", "multi-label", "token-labels", "span"]
"""What a model predicts: masked tokens; the next token; the next token of what it says to a text; an embedding whose
similarities count; a label, or many that do not exclude each other, a sequence or image; a label a token; the start
and end of an answer."""

LANGUAGE_MODELS: tuple[Kind, ...] = ("masked-lm", "causal-lm", "seq2seq-lm")
LABELLED: tuple[Kind, ...] = ("labels", "multi-label", "token-labels")

Reads = Literal["text", "images"]
INPUTS: dict[Reads, tuple[str, ...]] = {"text": ("input_ids", "attention_mask"), "images": ("pixel_values",)}
"""What models are given of a batch."""

_KINDS: dict[str, Kind] = {
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ElectraForPreTraining": "token-labels",
    "ForSequenceClassification": "labels",
    "ForTokenClassification": "token-labels",
    "ForQuestionAnswering": "span",
    "ForImageClassification": "labels",
    "ForImageClassificationWithTeacher": "labels",
    "Model": "similarity",
}


def reads_of(model_class: type[PreTrainedModel]) -> Reads:
    """What models of a class read."""
    return "images" if model_class.main_input_name == "pixel_values" else "text"


def kind_of(model_class: type[PreTrainedModel], config: PretrainedConfig) -> Kind:
    """What a model of this class and configuration predicts.

    Raises:
        UserError: nothing that has a loss of ours.
    """
    name = model_class.__name__
    # of their names some end as those of bare encoders do, and models of images and sound have such names, too
    if name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values():
        return "seq2seq-lm"
    for suffix, kind in _KINDS.items():
        if name.endswith(suffix):
            if "labels" in kind and config.num_labels == 0:
                raise UserError(
                    f"Cannot distil a {name} without labels (num_labels = 0).",
                    "A classifier must tell at least one.",
                    "Distil its encoder alone, saved as the base model.",
                )
            if kind == "labels" and config.problem_type == "regression" and config.num_labels > 1:
                raise UserError(
                    f"Cannot distil a {name} that tells {config.num_labels} numbers of a text.",
                    "A classifier must tell classes, or a single number.",
                    "Distil its encoder alone, saved as the base model.",
                )
            return "multi-label" if kind == "labels" and config.problem_type == "multi_label_classification" else kind
    raise UserError(
        f"Cannot distil a {name}.",
        "A teacher must be a masked, causal or sequence-to-sequence language model, a bare encoder, or have a "
        "sequence, token, question or image classification head.",
        "Save the model as one of them, for instance its encoder alone: AutoModel.from_pretrained(...).save_pretrained("
        "...).",
    )
