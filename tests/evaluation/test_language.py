"""Language modelling and agreement, on models whose answers are known."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from conftest import WORDS
from homodistil.data.cutter import Cutter
from homodistil.errors import UserError
from homodistil.evaluation import agreement as agreement_of
from homodistil.evaluation import language as language_of
from homodistil.evaluation.agreement import agreement, linear_cka, pairs_correlation
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.language import (
    LOGITS,
    attended,
    blocks,
    language,
    masked_positions,
    masked_predictions,
    pseudo_perplexity,
    usual,
)
from homodistil.evaluation.models import Opened, open_model
from zoo import tiny

TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 9]) for i in range(40)]
VOCABULARY = 5 + len(WORDS)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The folder of a tiny causal language model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("causal")
    GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def _silenced(opened: Opened) -> Opened:
    """The same model, which says the same of every token."""
    with torch.no_grad():
        for name, parameter in opened.model.named_parameters():
            if "predictions" in name or "wte" in name:
                parameter.zero_()
        if opened.head == "masked":
            opened.model.get_output_embeddings().weight.zero_()
    return opened


def test_blocks_are_full_and_special_at_both_ends(encoder: Path) -> None:
    """Each block has exactly its length, [CLS] first and [SEP] last."""
    opened = open_model(str(encoder))
    ids = blocks(opened, TEXTS, 32, 5)
    assert ids.shape == (5, 32)
    assert set(ids[:, 0].tolist()) == {opened.tokenizer.cls_token_id}
    assert set(ids[:, -1].tolist()) == {opened.tokenizer.sep_token_id}


@torch.no_grad()
def test_padding_says_and_changes_nothing(masked_lm: Path) -> None:
    """A masked language model reads whole texts, which are padded: each is predicted as it is alone."""
    opened = open_model(str(masked_lm))
    texts = [" ".join(text.split()[: 1 + k % 8]) for k, text in enumerate(TEXTS)]
    ids = blocks(opened, texts, 24, 9)
    mask = attended(opened, ids)
    assert len(set(mask.sum(1).tolist())) > 2
    assert torch.equal(mask.cummin(1).values, mask)
    chosen = masked_positions((opened, ids))
    said, right = (torch.cat(parts) for parts in zip(*masked_predictions(opened, ids, chosen), strict=True))
    alone = []
    for row, read, where in zip(ids, mask, chosen, strict=True):
        count = int(read.sum())
        hidden = row.masked_fill(where, opened.tokenizer.mask_token_id)[None, :count]
        alone.append(opened.model(input_ids=hidden).logits[0, where[:count]].log_softmax(-1))
    torch.testing.assert_close(said, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert opened.tokenizer.pad_token_id not in right
    states = agreement(opened, opened, ids, TEXTS[:9])
    assert states["hidden_cka"] == pytest.approx(1)


def test_a_block_is_as_long_as_a_language_models_texts(masked_lm: Path, encoder: Path, causal: Path) -> None:
    """As in training, as far as positions reach; what has no language model is read at 128 tokens."""
    long = ["the cat " * 90, "a dog", *["the dog sees a cat"] * 8]
    models = [open_model(str(folder)) for folder in (masked_lm, encoder, causal)]
    for opened in models:
        opened.model.config.max_position_embeddings = opened.model.config.n_positions = 400
        opened.tokenizer.model_max_length = 400
    assert [usual(opened, long) for opened in models] == [184, 128, 184]
    models[0].tokenizer.model_max_length = 64
    assert usual(models[0], long) == 64


def _proteins() -> PreTrainedTokenizerFast:
    """A tokenizer of capitals alone."""
    backend = Tokenizer(BPE({t: k for k, t in enumerate(("[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY"))}, []))
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


def _without_an_end(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """One that puts nothing around a text, as those of decoders do."""
    plain = copy.deepcopy(tokenizer)
    plain.backend_tokenizer.post_processor = None
    plain.eos_token = "[SEP]"
    return plain


@pytest.mark.parametrize(
    ("kind", "ends"), [("words", ("[CLS]", "[SEP]")), ("proteins", ("[CLS]", "[SEP]")), ("a decoder's", ("", ""))]
)
def test_a_text_is_cut_as_in_training(
    kind: str, ends: tuple[str, str], masked_lm: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Into the same blocks, whatever the alphabet, with an end of each text also where the tokenizer puts none."""
    kinds = {"words": tokenizer, "proteins": _proteins(), "a decoder's": _without_an_end(tokenizer)}
    opened = replace(open_model(str(masked_lm)), processor=kinds[kind])
    texts = ["MKVLAT" * (1 + k % 5) for k in range(40)] if kind == "proteins" else TEXTS
    cutter = Cutter(opened.tokenizer, "text", 24, packed=True, whole=opened.tokenizer.pad_token is not None)
    padded = blocks(opened, texts, 24, 1000)
    cut = [ids[read > 0].tolist() for ids, read in zip(padded, attended(opened, padded), strict=True)]
    assert cut == [ids for ids, _ in cutter.stream(texts)]
    assert all((block[0], block[-1]) == tuple(opened.tokenizer.convert_tokens_to_ids(ends)) for block in cut if ends[0])
    end = opened.tokenizer.convert_tokens_to_ids("[SEP]")
    if kind == "proteins":
        assert sum(block.count(end) for block in cut) >= len(texts) - 1
        return
    # whole ones in order, but for those of the last block
    inside = [block[1:-1] if ends[0] else block for block in cut]
    parted = [list(t) for block in inside for last, t in itertools.groupby(block, lambda i: i == end) if not last]
    assert parted == opened.tokenizer(texts, add_special_tokens=False)["input_ids"][: len(parted)]
    assert len(parted) >= len(texts) - 2


def test_no_special_token_is_ever_masked(masked_lm: Path) -> None:
    """What is predicted are ordinary tokens, about 15 % of them, the same at each call."""
    opened = open_model(str(masked_lm))
    ids = blocks(opened, TEXTS, 32, 8)
    said, right = (torch.cat(parts) for parts in zip(*masked_predictions(opened, ids), strict=True))
    ordinary = ~torch.isin(ids, torch.tensor(opened.tokenizer.all_special_ids))
    assert not set(right.tolist()) & set(opened.tokenizer.all_special_ids)
    assert len(right) == pytest.approx(0.15 * int(ordinary.sum()), rel=0.1)
    again = torch.cat([part for part, _ in masked_predictions(opened, ids)])
    assert torch.equal(said, again)


def test_a_model_that_knows_nothing_is_as_perplexed_as_the_vocabulary_is_large(masked_lm: Path, causal: Path) -> None:
    """Equal probabilities for all tokens give a perplexity of the vocabulary's size, masked and causal."""
    for folder, name in ((masked_lm, "pseudo_perplexity"), (causal, "perplexity")):
        opened = _silenced(open_model(str(folder)))
        assert language(opened, blocks(opened, TEXTS, 16, 3))[name] == pytest.approx(VOCABULARY, rel=1e-4)


@torch.no_grad()
def test_a_decoder_is_asked_for_each_token_that_follows(causal: Path) -> None:
    """Its accuracy is the share that it finds, and its perplexity goes by the mean over them."""
    opened = open_model(str(causal))
    # it says each token once more, as the texts do
    opened.model.transformer.wte.weight.mul_(20)
    ids = blocks(opened, [text.replace(" ", " a a ") for text in TEXTS], 16, 4)
    said, right = opened.model(input_ids=ids).logits[:, :-1].transpose(1, 2), ids[:, 1:]
    hits = (said.argmax(1) == right).float().mean().item()
    assert 0 < hits < 1
    loss = F.cross_entropy(said, right).item()
    assert language(opened, ids) == pytest.approx({"perplexity": math.exp(loss), "next_accuracy": hits}, rel=1e-4)


@torch.no_grad()
def test_pseudo_perplexity_is_of_each_word_masked_alone(masked_lm: Path) -> None:
    """Of no special token, as those are known; a plain loop says the same."""
    opened = open_model(str(masked_lm))
    ids = blocks(opened, TEXTS, 16, 3)
    found = []
    for row, place in itertools.product(range(3), range(16)):
        if ids[row, place] not in opened.tokenizer.all_special_ids:
            hidden = ids[row : row + 1].clone()
            hidden[0, place] = opened.tokenizer.mask_token_id
            mask = attended(opened, hidden)
            logits = opened.model(input_ids=hidden, attention_mask=mask).logits
            found.append(F.cross_entropy(logits[0, place], ids[row, place]))
    assert pseudo_perplexity(opened, ids) == pytest.approx(math.exp(sum(found) / len(found)), rel=1e-4)


def test_an_encoder_has_no_language(encoder: Path) -> None:
    """Without a language-model head there is nothing to measure, and no error."""
    opened = open_model(str(encoder))
    assert opened.head == "none"
    assert language(opened, blocks(opened, TEXTS, 16, 2)) == {}


@pytest.mark.parametrize("kind", ["masked_lm", "encoder", "causal"])
def test_a_model_agrees_with_itself(kind: str, request: pytest.FixtureRequest) -> None:
    """Every token alike, no divergence, hidden states and similarities the same."""
    opened = open_model(str(request.getfixturevalue(kind)))
    found = agreement(opened, opened, blocks(opened, TEXTS, 16, 4), TEXTS[:9])
    expected = {"hidden_cka": 1.0, "similarity": 1.0} | ({} if kind == "encoder" else {"top1": 1.0, "kl": 0.0})
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["RoBERTa sequence", "Llama sequence"])
def test_classifiers_agree_by_what_they_say_of_texts(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A copy wholly, another head less, by how far it diverges; labels that do not exclude each other, and numbers, are
    not compared.
    """
    opened = []
    for place, changes in (("one", {}), ("two", {}), ("many", {"problem_type": "multi_label_classification"})):
        model = tiny(name, num_labels=3, **changes)
        if place == "two":
            model.load_state_dict(
                {n: -p if "score" in n or "out_proj" in n else p for n, p in model.state_dict().items()}
            )
        model.save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
        opened.append(open_model(str(tmp_path / place)))
    ids = blocks(opened[0], TEXTS, 16, 2)
    same, other, many = (agreement(one, opened[0], ids, TEXTS[:9]) for one in opened)
    assert same["top1"] == 1
    assert same["kl"] == pytest.approx(0, abs=1e-6)
    assert other["top1"] < 0.5
    assert other["hidden_cka"] == pytest.approx(1)
    said, right = (agreement_of._classes(one, TEXTS[:9]).log_softmax(-1) for one in (opened[1], opened[0]))
    assert other["kl"] == pytest.approx(F.kl_div(said, right, log_target=True, reduction="batchmean").item())
    assert "top1" not in many


@pytest.mark.parametrize(
    ("names", "compared"),
    [
        (["good", "bad", "so-so"], True),
        (["Good", "SO-SO", "Bad"], True),
        (["LABEL_0", "LABEL_1", "LABEL_2"], False),
        (["good", "bad", "wild"], None),
        (["bad", "bad", "good"], None),
    ],
)
def test_classes_are_compared_by_their_names(
    names: list[str], compared: bool | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """In whatever order and case; by their numbers where one has no names, and not at all where they differ."""
    theirs = ["bad", "so-so", "good"]
    order = [theirs.index(name.casefold()) for name in names] if compared else [2, 0, 1]
    opened = []
    for place, named, rows in (("one", names, order), ("two", theirs, [0, 1, 2])):
        model = tiny("RoBERTa sequence", num_labels=3, id2label=dict(enumerate(named)))
        head = model.classifier.out_proj
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter[rows])
        model.save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
        opened.append(open_model(str(tmp_path / place)))
    student, teacher = opened
    found = agreement(student, teacher, blocks(student, TEXTS, 16, 2), TEXTS[:9])
    assert found["hidden_cka"] == pytest.approx(1)
    assert ("top1" in found) == (compared is not None)
    if compared:
        assert found["top1"] == 1
        assert found["kl"] == pytest.approx(0, abs=1e-6)
    elif compared is not None:
        assert found["top1"] < 1
        assert found["kl"] > 0.01


@pytest.mark.parametrize("model_class", [GPT2ForSequenceClassification, GPT2Model])
def test_the_side_on_which_a_tokenizer_pads_changes_no_number(
    model_class: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A copy of a decoder whose tokenizer pads on the left says of each text of a batch what the original says."""
    torch.manual_seed(0)
    model = model_class(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5))
    opened = []
    for side in ("left", "right"):
        model.save_pretrained(tmp_path / side)
        tokenizer.save_pretrained(tmp_path / side)
        AutoTokenizer.from_pretrained(tmp_path / side, padding_side=side).save_pretrained(tmp_path / side)
        opened.append(open_model(str(tmp_path / side)))
    texts = [" ".join(WORDS[: 3 + 5 * k % 17]) for k in range(12)]
    copied, original = opened
    found = agreement(copied, original, blocks(original, TEXTS, 16, 2), texts)
    assert found["similarity"] == pytest.approx(1)
    assert found.get("kl", 0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["masked_lm", "causal"])
def test_a_large_vocabulary_changes_how_much_is_predicted_at_once_and_no_number(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block by block a text says what it says as a whole, of two models with vocabularies of their own as well."""
    teacher, student = (open_model(str(request.getfixturevalue(kind))) for _ in range(2))
    student.model.resize_token_embeddings(VOCABULARY + 40)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ids = blocks(teacher, TEXTS, 16, 7)
    read: list[int] = []
    teacher.model.register_forward_pre_hook(
        lambda _, args, given: read.append(len(given["input_ids"])), with_kwargs=True
    )
    made, most = [], []
    for limit in (LOGITS, 2 * 16 * (VOCABULARY + 40), 1):
        for part in (language_of, agreement_of):
            monkeypatch.setattr(part, "LOGITS", limit)
        made.append(language(teacher, ids) | agreement(student, teacher, ids, TEXTS[:9]))
        most.append(max(read))
        read.clear()
    assert most[0] >= 7 > most[1] > most[2] == 1
    assert made == [pytest.approx(made[0], rel=1e-4)] * 3
    assert 0 < made[0]["top1"] < 1


def test_both_models_are_asked_for_tokens_that_are_special_to_neither(masked_lm: Path) -> None:
    """Where their tokenizers do not call the same tokens special, a copy agrees wholly, in either order."""
    teacher = open_model(str(masked_lm))
    other = copy.deepcopy(teacher.tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["cat", "two"]})
    student = replace(teacher, processor=other)
    ids = blocks(teacher, TEXTS, 16, 4)
    for one, two in ((student, teacher), (teacher, student)):
        assert agreement(one, two, ids, TEXTS[:9])["kl"] == pytest.approx(0, abs=1e-6)
    both = masked_positions((student, ids), (teacher, ids))
    assert not set(ids[both].tolist()) & set(other.all_special_ids)
    assert not torch.equal(both, masked_positions((teacher, ids)))


def test_divergence_is_zero_only_for_the_teacher(masked_lm: Path) -> None:
    """A model that says nothing diverges from one that does, by log(vocabulary) less its entropy."""
    teacher, silent = open_model(str(masked_lm)), _silenced(open_model(str(masked_lm)))
    ids = blocks(teacher, TEXTS, 16, 4)
    found = agreement(silent, teacher, ids, TEXTS[:9])
    said = torch.cat([part for part, _ in masked_predictions(teacher, ids)])
    entropy = -(said.exp() * said).sum(-1).mean()
    assert found["kl"] == pytest.approx(math.log(VOCABULARY) - float(entropy), rel=1e-4)
    assert found["top1"] < 1


def test_a_text_is_embedded_as_if_alone(encoder: Path) -> None:
    """By the mean over its own tokens: padding beside a longer text is none of them."""
    opened = open_model(str(encoder))
    texts = ["one dog", " ".join(WORDS)]
    both = agreement_of._embeddings(opened, texts)
    for text, row in zip(texts, both, strict=True):
        torch.testing.assert_close(agreement_of._embeddings(opened, [text])[0], row, atol=1e-5, rtol=1e-5)
    one, other = (agreement_of._embeddings(opened, [f"{' '.join(WORDS * 2)} {word}"]) for word in ("cat", "dog"))
    assert not torch.allclose(one, other)


def test_alignment_sees_through_rotation_and_width() -> None:
    """Rotated, scaled and moved states are the same; independent ones are not; widths need not agree."""
    torch.manual_seed(0)
    states = torch.randn(500, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert linear_cka(states, 3 * states @ rotation + 2) == pytest.approx(1, abs=1e-6)
    assert linear_cka(states, torch.randn(500, 12)) < 0.1
    assert pairs_correlation(states, 2 * states @ rotation) == pytest.approx(1, abs=1e-4)


def test_constant_states_are_aligned_with_nothing() -> None:
    """Neither with other states nor with themselves, whatever rounding leaves of them."""
    states, constant = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)), torch.rand(8).expand(500, -1)
    assert linear_cka(constant, states) == linear_cka(states, constant) == linear_cka(constant, constant) == 0
    assert pairs_correlation(torch.eye(8)[:1].expand(9, -1), states[:9]) == 0


def test_models_with_other_vocabularies_are_not_compared(masked_lm: Path, save_teacher: Callable[..., Path]) -> None:
    """What one of them reads, the other does not know."""
    from transformers import BertForMaskedLM

    other = save_teacher(BertForMaskedLM, vocab_size=VOCABULARY + 8)
    first, second = open_model(str(other)), open_model(str(masked_lm))
    first.tokenizer.add_tokens(["zebra"])
    with pytest.raises(UserError, match="one vocabulary"):
        agreement(first, second, blocks(first, TEXTS, 16, 2), TEXTS[:5])


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """What cannot be opened is named."""
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_model(str(tmp_path))


def test_text_that_a_tokenizer_cannot_read_is_refused(masked_lm: Path, tmp_path: Path) -> None:
    """Of unknown words none can be masked, so that there is nothing to predict."""
    (tmp_path / "text.txt").write_text("слово другое третье\n" * 200)
    with pytest.raises(UserError, match="knows no word of it"):
        evaluate(str(masked_lm), text=str(tmp_path / "text.txt"), time=False)


def test_a_masked_language_model_without_a_mask_token_is_refused(
    masked_lm: Path, encoder: Path, tokenizer: PreTrainedTokenizerBase, corpus: Path, tmp_path: Path
) -> None:
    """Before anything is measured, where there is text to mask; other models need none."""
    bare = copy.deepcopy(tokenizer)
    bare.mask_token = None
    for source, place in ((masked_lm, "masked"), (encoder, "encoder")):
        shutil.copytree(source, tmp_path / place)
        bare.save_pretrained(tmp_path / place)
        assert open_model(str(tmp_path / place)).tokenizer.mask_token_id is None
    with pytest.raises(UserError, match="Cannot mask text for"):
        evaluate(str(tmp_path / "masked"), text=str(corpus), time=False, say=lambda what: pytest.fail(what))
    assert evaluate(str(tmp_path / "masked"), time=False)
    assert evaluate(str(tmp_path / "encoder"), against=str(encoder), text=str(corpus), time=False)


def test_masked_accuracy_is_the_share_of_hidden_tokens_that_are_found(masked_lm: Path) -> None:
    """Of a model that says one word of everything, the share of that word."""
    opened = open_model(str(masked_lm))
    ids = blocks(opened, TEXTS, 16, 40)
    always = int(opened.tokenizer.convert_tokens_to_ids(WORDS[7]))
    with torch.no_grad():
        opened.model.cls.predictions.bias[always] += 50
    right = torch.cat([part for _, part in masked_predictions(opened, ids)])
    share = (right == always).float().mean().item()
    assert 0 < share < 0.5
    assert language(opened, ids)["masked_accuracy"] == pytest.approx(share)
