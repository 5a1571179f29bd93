"""A tiny random model of each family, in the class that its users distil, and of other classes that stand on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel

VOCAB = 32
"""Room for the 27 tokens of the tests' tokenizer and for what some classes of tokenizers add."""
LAYERS = 2
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "num_attention_heads": 4}
_OPT = {k: v for k, v in _COMMON.items() if k not in ("intermediate_size", "initializer_range")} | {
    "ffn_dim": 96,
    "word_embed_proj_dim": 48,
    "init_std": 0.2,
}


_PATCHES = {k: _COMMON[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")} | {
    "image_size": 24,
    "patch_size": 6,
    "initializer_range": 0.2,
    "num_labels": 5,
}
# as DeBERTa v3 is made
_DEBERTA: dict[str, Any] = _COMMON | {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
# as v2 is, with all that v3 leaves out
_DEBERTA_V2 = _DEBERTA | {"conv_kernel_size": 3, "attention_head_size": 12, "type_vocab_size": 2}
# caps that bend what these tiny models say
_GEMMA_2 = _GROUPED | {
    "head_dim": 16,
    "query_pre_attn_scalar": 10,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 5.0,
}


_T5: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 96,
    "num_layers": LAYERS,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "initializer_factor": 1.0,
    "decoder_start_token_id": 0,
}
# as v1.1 is, with a decoder that is deeper than the encoder
_T5_1 = _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": LAYERS + 1}
_BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS + 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 66,
    "init_std": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
    "forced_eos_token_id": 3,
}


def _modernbert(**changes: Any) -> hf.ModernBertConfig:
    own = {"cls_token_id": 2, "sep_token_id": 3, "local_attention": 6, "global_attn_every_n_layers": 2}
    return hf.ModernBertConfig(**_COMMON | own | changes)


def _distilbert(**changes: Any) -> hf.DistilBertConfig:
    own = {"dim": 48, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 66}
    return hf.DistilBertConfig(**{"vocab_size": VOCAB, "initializer_range": 0.2, "pad_token_id": 0} | own | changes)


def _gpt2(**changes: Any) -> hf.GPT2Config:
    own = {"n_embd": 48, "n_layer": LAYERS, "n_head": 4, "n_positions": 66, "bos_token_id": 2, "eos_token_id": 3}
    return hf.GPT2Config(**{"vocab_size": VOCAB, "initializer_range": 0.2, "pad_token_id": 0} | own | changes)


Make = tuple[type[PreTrainedModel], Callable[..., Any], dict[str, Any]]
FAMILIES: dict[str, Make] = {
    "BERT": (hf.BertForMaskedLM, hf.BertConfig, _COMMON),
    "RoBERTa": (hf.RobertaForMaskedLM, hf.RobertaConfig, _COMMON),
    "XLM-R": (hf.XLMRobertaForMaskedLM, hf.XLMRobertaConfig, _COMMON),
    "ELECTRA": (hf.ElectraForPreTraining, hf.ElectraConfig, _COMMON | {"embedding_size": 48}),
    "ELECTRA generator": (hf.ElectraForMaskedLM, hf.ElectraConfig, _COMMON | {"embedding_size": 48}),
    "ELECTRA small": (hf.ElectraForMaskedLM, hf.ElectraConfig, _COMMON | {"embedding_size": 20}),
    "DistilBERT": (hf.DistilBertForMaskedLM, _distilbert, {}),
    "MPNet": (hf.MPNetForMaskedLM, hf.MPNetConfig, _COMMON),
    "ALBERT": (hf.AlbertForMaskedLM, hf.AlbertConfig, _COMMON | {"embedding_size": 20, "num_hidden_layers": 3}),
    "ModernBERT": (hf.ModernBertForMaskedLM, _modernbert, {}),
    "EuroBERT": (hf.EuroBertForMaskedLM, hf.EuroBertConfig, _GROUPED | {"head_dim": 16, "mask_token_id": 1}),
    "DeBERTa": (hf.DebertaV2ForMaskedLM, hf.DebertaV2Config, _DEBERTA),
    "DeBERTa v2": (hf.DebertaV2ForMaskedLM, hf.DebertaV2Config, _DEBERTA_V2),
    "DeBERTa of own distances": (
        hf.DebertaV2ForMaskedLM,
        hf.DebertaV2Config,
        _DEBERTA | {"share_att_key": False, "position_biased_input": True},
    ),
    "GPT-2": (hf.GPT2LMHeadModel, _gpt2, {}),
    "OPT": (hf.OPTForCausalLM, hf.OPTConfig, _OPT),
    "GPT-NeoX": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, _COMMON),
    "Llama": (hf.LlamaForCausalLM, hf.LlamaConfig, _GROUPED | {"tie_word_embeddings": True}),
    "Llama with a wide head_dim": (hf.LlamaForCausalLM, hf.LlamaConfig, _GROUPED | {"head_dim": 20}),
    "Mistral": (hf.MistralForCausalLM, hf.MistralConfig, _GROUPED),
    "Qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, _GROUPED),
    "Qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, _GROUPED | {"head_dim": 16}),
    "Gemma": (hf.GemmaForCausalLM, hf.GemmaConfig, _GROUPED | {"head_dim": 16}),
    "Gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, _GEMMA_2),
    "Gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, _GEMMA_2 | {"final_logit_softcapping": None}),
    "T5": (hf.T5ForConditionalGeneration, hf.T5Config, _T5),
    "T5 v1.1": (hf.T5ForConditionalGeneration, hf.T5Config, _T5_1),
    "BART": (hf.BartForConditionalGeneration, hf.BartConfig, _BART),
    "ViT": (hf.ViTForImageClassification, hf.ViTConfig, _PATCHES),
    "DeiT": (hf.DeiTForImageClassificationWithTeacher, hf.DeiTConfig, _PATCHES),
}
OTHERS: dict[str, Make] = {
    "RoBERTa encoder": (hf.RobertaModel, hf.RobertaConfig, _COMMON),
    "RoBERTa sequence": (hf.RobertaForSequenceClassification, hf.RobertaConfig, _COMMON),
    "RoBERTa token": (hf.RobertaForTokenClassification, hf.RobertaConfig, _COMMON),
    "RoBERTa question": (hf.RobertaForQuestionAnswering, hf.RobertaConfig, _COMMON),
    "ELECTRA encoder": (hf.ElectraModel, hf.ElectraConfig, _COMMON | {"embedding_size": 20}),
    "ELECTRA sequence": (hf.ElectraForSequenceClassification, hf.ElectraConfig, _COMMON | {"embedding_size": 48}),
    "DistilBERT encoder": (hf.DistilBertModel, _distilbert, {}),
    "DistilBERT sequence": (hf.DistilBertForSequenceClassification, _distilbert, {}),
    "DistilBERT token": (hf.DistilBertForTokenClassification, _distilbert, {}),
    "DistilBERT question": (hf.DistilBertForQuestionAnswering, _distilbert, {}),
    "MPNet encoder": (hf.MPNetModel, hf.MPNetConfig, _COMMON),
    "MPNet sequence": (hf.MPNetForSequenceClassification, hf.MPNetConfig, _COMMON),
    "ALBERT encoder": (hf.AlbertModel, hf.AlbertConfig, _COMMON | {"embedding_size": 20}),
    "ALBERT sequence": (hf.AlbertForSequenceClassification, hf.AlbertConfig, _COMMON | {"embedding_size": 20}),
    "EuroBERT sequence": (hf.EuroBertForSequenceClassification, hf.EuroBertConfig, _GROUPED | {"mask_token_id": 1}),
    "ModernBERT encoder": (hf.ModernBertModel, _modernbert, {}),
    "ModernBERT sequence": (hf.ModernBertForSequenceClassification, _modernbert, {}),
    "ModernBERT token": (hf.ModernBertForTokenClassification, _modernbert, {}),
    "DeBERTa encoder": (hf.DebertaV2Model, hf.DebertaV2Config, _DEBERTA),
    "DeBERTa sequence": (hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config, _DEBERTA),
    "DeBERTa token": (hf.DebertaV2ForTokenClassification, hf.DebertaV2Config, _DEBERTA),
    "DeBERTa question": (hf.DebertaV2ForQuestionAnswering, hf.DebertaV2Config, _DEBERTA),
    "GPT-2 encoder": (hf.GPT2Model, _gpt2, {}),
    "GPT-2 token": (hf.GPT2ForTokenClassification, _gpt2, {}),
    "GPT-2 question": (hf.GPT2ForQuestionAnswering, _gpt2, {}),
    "OPT question": (hf.OPTForQuestionAnswering, hf.OPTConfig, _OPT),
    "GPT-NeoX token": (hf.GPTNeoXForTokenClassification, hf.GPTNeoXConfig, _COMMON),
    "GPT-NeoX question": (hf.GPTNeoXForQuestionAnswering, hf.GPTNeoXConfig, _COMMON),
    "Llama with biases": (hf.LlamaForCausalLM, hf.LlamaConfig, _GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "Llama token": (hf.LlamaForTokenClassification, hf.LlamaConfig, _GROUPED),
    "Llama question": (hf.LlamaForQuestionAnswering, hf.LlamaConfig, _GROUPED),
    "Llama encoder": (hf.LlamaModel, hf.LlamaConfig, _GROUPED),
    "Llama sequence": (hf.LlamaForSequenceClassification, hf.LlamaConfig, _GROUPED),
    "Gemma with a head of its own": (
        hf.GemmaForCausalLM,
        hf.GemmaConfig,
        _GROUPED | {"head_dim": 16, "tie_word_embeddings": False},
    ),
    "Gemma encoder": (hf.GemmaModel, hf.GemmaConfig, _GROUPED | {"head_dim": 16}),
    "Gemma sequence": (hf.GemmaForSequenceClassification, hf.GemmaConfig, _GROUPED | {"head_dim": 16}),
    "mT5": (hf.MT5ForConditionalGeneration, hf.MT5Config, _T5),
    "ViT encoder": (hf.ViTModel, hf.ViTConfig, _PATCHES),
    "ViT that says its head_dim": (hf.ViTForImageClassification, hf.ViTConfig, _PATCHES | {"head_dim": 12}),
    "ViT without biases": (hf.ViTForImageClassification, hf.ViTConfig, _PATCHES | {"qkv_bias": False}),
    "DeiT encoder": (hf.DeiTModel, hf.DeiTConfig, _PATCHES),
    "DeiT of one token": (hf.DeiTForImageClassification, hf.DeiTConfig, _PATCHES),
}
EVERY = FAMILIES | OTHERS

FIXED_DEPTH = ("ALBERT", "T5", "mT5", "BART")
"""Families whose layers are one, or two lists, so that none can leave."""
DEPTH = {"DistilBERT": "n_layers", "GPT-2": "n_layer"}
"""What the number of layers is called, where it is not `num_hidden_layers`."""


def loses_layers(name: str) -> bool:
    """Whether whole layers can leave a model of the zoo."""
    return not name.startswith(FIXED_DEPTH)


def deep(name: str, layers: int = 4) -> Any:
    """A tiny model of more layers than two."""
    family = next((known for known in DEPTH if name.startswith(known)), "")
    return tiny(name, **{DEPTH.get(family, "num_hidden_layers"): layers})


def tiny(name: str, **changes: Any) -> Any:
    """A model whose biases and norms are random too, so that cutting them wrongly shows."""
    model_class, config, options = EVERY[name]
    torch.manual_seed(0)
    model = model_class(config(**options | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer in (b for name, b in model.named_buffers() if name == "final_logits_bias"):
            buffer.add_(torch.randn_like(buffer))
    return model


def reads_images(model: Any) -> bool:
    """Whether a model is one of images."""
    return bool(model.main_input_name == "pixel_values")


def reads_pairs(model: Any) -> bool:
    """Whether a model reads a source and a target."""
    return bool(model.config.is_encoder_decoder)


def inputs(model: Any, rows: int = 3, length: int = 7, *, padded: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """What a model reads, the same each time, and a mask (rows, sequence) of what is no padding."""
    draw = torch.Generator().manual_seed(5)
    if reads_images(model):
        pixels = torch.randn(rows, 3, 24, 24, generator=draw)
        return {"pixel_values": pixels}, torch.ones(rows, model.base_model.embeddings.position_embeddings.shape[1])
    mask = torch.ones(rows, length, dtype=torch.long)
    if padded:
        mask[1, length - 2 :] = mask[2, length - 4 :] = 0
    given = {"input_ids": torch.randint(4, 25, (rows, length), generator=draw), "attention_mask": mask}
    if reads_pairs(model):
        target = torch.randint(4, 25, (rows, length), generator=draw)
        given |= {"decoder_input_ids": target, "decoder_attention_mask": mask}
    return given, mask
