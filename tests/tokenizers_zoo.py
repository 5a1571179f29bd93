"""A small tokenizer of each algorithm, trained on a few sentences, and the sentences."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WIDE = (
    """The quick brown fox jumps over the lazy dog while seven wizards mix a poisonous brew in the kitchen.
Parliament passed the law on agricultural subsidies after a lengthy and acrimonious debate about its financing.
Mitochondria are organelles; their membranes hold the enzymes of oxidative phosphorylation.
She sells sea shells by the sea shore, and the shells that she sells are sea shells, surely.
Researchers rediscovered unbelievably misunderstood manuscripts in the archive's uncatalogued basement.
Café owners naïvely re-evaluated 1,234 invoices (12% of 10,283) on 2021-03-04.""".splitlines()
    * 3
)
NARROW = [
    "She sells sea shells by the lazy sea shore.",
    "The quick wizards mix the brew, and surely she jumps over 12 shells!",
    "Sea foxes  are naïvely   misunderstood",
    "a mark <mark> in it, an emoji \N{GRINNING FACE} and a kanji \u6f22 \n and zzz",
]
UNSEEN = ["Parliament rediscovered mitochondria.", "over-financed subsidies 1,283", "xylophone quartz"]
ROLES = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    tokenizer.train_from_iterator(WIDE, trainer)
    # after training, as users do: numbers beyond those of the algorithm
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.add_tokens([AddedToken("<mark>", normalized=False)])
    _surround(tokenizer)


def _surround(tokenizer: Tokenizer) -> None:
    around = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B:1 </s>:1", special_tokens=list(around.items())
    )


def _surround_as_roberta(tokenizer: Tokenizer) -> None:
    end, start = ((token, tokenizer.token_to_id(token) or 0) for token in ("</s>", "<s>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)


def _special_last(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokens, of which the special ones have the highest numbers, so that those move where others go."""
    spec = json.loads(tokenizer.to_str())
    vocab = spec["model"]["vocab"]
    ids = {token: at for at, token in enumerate(sorted(vocab, key=lambda token: (token in SPECIAL, vocab[token])))}
    spec["model"]["vocab"], spec["post_processor"] = ids, None
    for added in spec["added_tokens"]:
        added["id"] = ids.get(added["content"], added["id"])
    spec["added_tokens"].sort(key=lambda added: added["id"])
    made = Tokenizer.from_str(json.dumps(spec))
    surround = _surround_as_roberta if isinstance(tokenizer.post_processor, processors.RobertaProcessing) else _surround
    surround(made)
    return made


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>", max_input_chars_per_word=20))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    _train(made, trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL))
    return made


def _byte_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(made, trainers.BpeTrainer(vocab_size=460, special_tokens=SPECIAL, initial_alphabet=alphabet))
    _surround_as_roberta(made)
    return made


def _metaspace_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(made, trainers.BpeTrainer(vocab_size=520, special_tokens=[*SPECIAL, *fallback]))
    return made


def _suffix_bpe() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="@@"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, end_of_word_suffix="</w>", continuing_subword_prefix="@@"
    )
    _train(made, trainer)
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    _train(made, trainers.UnigramTrainer(vocab_size=220, special_tokens=SPECIAL, unk_token="<unk>"))
    return made


def _word_level() -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(made, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": _wordpiece,
    "byte-level BPE": _byte_bpe,
    "Metaspace BPE": _metaspace_bpe,
    "BPE with a suffix": _suffix_bpe,
    "Unigram": _unigram,
    "WordLevel": _word_level,
    "WordPiece with special tokens last": lambda: _special_last(_wordpiece()),
    "byte-level BPE with special tokens last": lambda: _special_last(_byte_bpe()),
}


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers around one of the library."""
    roles = {role: token for role, token in ROLES.items() if backend.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **roles)
