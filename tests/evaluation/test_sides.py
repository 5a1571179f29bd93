"""Encoder-decoders are measured by what they say to a text: of all tokens of the target, and of no padding."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase, T5Model

import homodistil
from conftest import WORDS
from homodistil.axes.layout import Layout
from homodistil.cli import main
from homodistil.errors import UserError
from homodistil.evaluation.agreement import agreement
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.language import blocks, language, predictions
from homodistil.evaluation.models import Opened, open_model
from homodistil.evaluation.sides import Sides, noised, paired
from zoo import tiny

SENTINELS = [f"<extra_id_{k}>" for k in range(9)]
SOURCES = [" ".join(WORDS[k % 7 : k % 7 + 3 + k % 5]) for k in range(12)]
TARGETS = [" ".join(WORDS[k % 5 : k % 5 + 2 + k % 7]) for k in range(12)]


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Saves a tiny encoder-decoder with random weights and a tokenizer that has sentinels."""

    def saved(name: str, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("sides")
        told = copy.deepcopy(tokenizer)
        told.add_tokens(SENTINELS, special_tokens=True)
        model = tiny(name, vocab_size=len(told), pad_token_id=told.pad_token_id)
        torch.manual_seed(seed)
        # what a random model says hardly hangs on what it reads
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        told.save_pretrained(folder)
        return folder

    return saved


def _texts(folder: Path) -> Path:
    """A file of texts beside a model."""
    file = folder / "held.txt"
    file.write_text("\n".join(" ".join(WORDS[k % 9 : k % 9 + 9]) for k in range(60)))
    return file


def _sides(opened: Opened) -> Sides:
    return paired(opened, SOURCES, TARGETS, 64)


@pytest.mark.parametrize("name", ["T5", "T5 v1.1", "BART", "mT5"])
def test_perplexity_is_that_of_its_own_loss(name: str, save: Callable[..., Path]) -> None:
    """As transformers computes it from labels, a pair at a time, so that nothing is padded."""
    folder = save(name)
    opened = open_model(str(folder))
    made = language(opened, _sides(opened))
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, hits, count = 0.0, 0, 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        labels = tokenizer(text_target=target, return_tensors="pt").input_ids
        with torch.no_grad():
            said = model(input_ids=tokenizer(source, return_tensors="pt").input_ids, labels=labels)
        total += said.loss.item() * labels.numel()
        hits += int((said.logits.argmax(-1) == labels).sum())
        count += labels.numel()
    assert made == pytest.approx({"perplexity": math.exp(total / count), "next_accuracy": hits / count}, rel=1e-4)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_predictions_are_the_same_in_batches_of_any_size(name: str, save: Callable[..., Path]) -> None:
    """Padding of either side is neither read nor predicted."""
    opened = open_model(str(save(name)))
    sides = _sides(opened)
    whole, single = (
        [torch.cat(part) for part in zip(*predictions(opened, sides, batch=size), strict=True)] for size in (12, 1)
    )
    assert len(whole[0]) == sum(map(len, sides.targets))
    assert torch.equal(whole[1], torch.cat(sides.targets))
    torch.testing.assert_close(whole[0], single[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_a_copy_agrees_with_its_teacher_and_another_model_does_not(name: str, save: Callable[..., Path]) -> None:
    """In tokens, in the decoder's states and in the encoder's similarities."""
    teacher, other = (open_model(str(save(name, seed))) for seed in (0, 1))
    sides = _sides(teacher)
    same = agreement(teacher, teacher, sides, SOURCES)
    assert same == pytest.approx({"top1": 1, "kl": 0, "hidden_cka": 1, "similarity": 1}, abs=1e-5)
    apart = agreement(other, teacher, sides, SOURCES)
    assert apart["kl"] > 0.1
    assert apart["top1"] < 0.9
    assert apart["hidden_cka"] < 0.99
    assert apart["similarity"] < 0.99


def test_noise_is_that_of_a_run_and_the_same_each_time(save: Callable[..., Path]) -> None:
    """Of a block of text source and target are the text together, told by sentinels."""
    opened = open_model(str(save("T5")))
    ids = blocks(opened, [" ".join(WORDS)] * 30, 32, 5)
    first, again = noised(opened, ids), noised(opened, ids)
    marks = opened.tokenizer.convert_tokens_to_ids(SENTINELS)
    for block, source, target, repeated in zip(ids, first.sources, first.targets, again.sources, strict=True):
        assert torch.equal(source, repeated)
        spans = dict[int, list[int]]()
        for token in target.tolist():
            if token in marks:
                spans[token] = now = []
            else:
                now.append(token)
        assert [t for token in source.tolist() for t in spans.get(token, [token])] == block.tolist()
        assert sum(map(len, spans.values())) >= 0.1 * len(block)


def test_a_student_with_fewer_tokens_is_compared_by_what_they_mean(save: Callable[..., Path]) -> None:
    """A vocabulary that was trimmed to the text leaves nothing to disagree about."""
    folder = save("T5")
    text = _texts(folder)
    trimmed = folder / "trimmed"
    assert main(["trim", str(folder), "--data", str(text), "--out", str(trimmed)]) == 0
    used = evaluate(str(trimmed), against=str(folder), text=str(text), time=False)
    values = {record["measure"]: record["values"] for record in used if record["model"] == str(trimmed)}
    assert values["size"]["parameters"] < open_model(str(folder)).model.num_parameters()
    assert values["agreement with the teacher"] == pytest.approx(
        {"top1": 1, "kl": 0, "hidden_cka": 1, "similarity": 1}, abs=1e-4
    )


def test_a_student_is_evaluated_beside_its_teacher_from_a_file(
    save: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By noise and by pairs, in size and speed; FLOPs are those of a token on each side."""
    folder = save("T5")
    rows: list[dict[str, str | None]]
    rows = [{"ask": source, "answer": target} for source, target in zip(SOURCES, TARGETS, strict=True)]
    rows += [{"ask": "the red cat", "answer": ""}, {"ask": None, "answer": "a man"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    student = homodistil.distil(
        folder, _texts(folder), "0.5", tmp_path / "run", steps=3, batch=4, precision="fp32", text={"length": 32}
    ).students["0.5"]
    out = tmp_path / "numbers.json"
    options = ["--against", str(folder), "--text", str(tmp_path / "pairs.jsonl"), "--text-column", "ask"]
    words = [str(student), *options, "--text-target", "answer", "--lengths", "16", "--json", str(out)]
    assert main(["evaluate", *words]) == 0
    assert "perplexity" in capsys.readouterr().out
    said = {(r["model"], r["measure"]): r["values"] for r in json.loads(out.read_text())["records"]}
    teacher, opened = open_model(str(folder)), open_model(str(student))
    assert said[str(student), "language"] == pytest.approx(language(opened, _sides(opened)))
    assert said[str(folder), "language"] == pytest.approx(language(teacher, _sides(teacher)))
    assert said[str(student), "agreement with the teacher"] == pytest.approx(
        agreement(opened, teacher, _sides(opened), SOURCES)
    )
    assert said[str(student), "speed at 16 tokens"]["latency_ms"] > 0
    for one in (teacher, opened):
        layout = Layout.of(one.model)
        expected = layout.flops_per_token(layout.shape(one.model), 64)
        assert one.longest == 64
        assert said[one.source, "size"]["flops_per_token"] == pytest.approx(expected)


def test_what_an_encoder_decoder_cannot_be_asked_is_refused(
    save: Callable[..., Path], encoder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    """Labels, a teacher of another kind, targets of a model that says none, and one without a language model."""
    folder = save("T5")
    text = str(_texts(folder))
    for option in ("tasks", "pairs", "probes"):
        given: dict[str, Any] = {option: ["stsb"], "data_dir": folder}
        with pytest.raises(UserError, match=f"Cannot use --{option} with"):
            evaluate(str(folder), time=False, **given)
    with pytest.raises(UserError, match="the other is none"):
        evaluate(str(folder), against=str(encoder), text=text, time=False)
    with pytest.raises(UserError, match="Cannot use --text-target said"):
        evaluate(str(encoder), text=text, text_target="said", time=False)
    with pytest.raises(UserError, match="without --text"):
        evaluate(str(folder), text_target="said", time=False)
    with pytest.raises(UserError, match=r"the column 'said'.*\n.*\n.*--text-target"):
        evaluate(str(folder), text=text, text_target="said", time=False)
    (tmp_path / "two.jsonl").write_text('{"text": "a man", "said": "one"}\n' * 2)
    with pytest.raises(UserError, match="holds 2 pairs"):
        evaluate(str(folder), text=str(tmp_path / "two.jsonl"), text_target="said", time=False)
    model = tiny("T5")
    T5Model(model.config).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"T5Model encoder-decoder.*\n.*\n.*AutoModelForSeq2SeqLM"):
        evaluate(str(tmp_path / "bare"), time=False)
    del model.config.decoder_start_token_id
    model.generation_config.decoder_start_token_id = None
    model.save_pretrained(tmp_path / "startless")
    tokenizer.save_pretrained(tmp_path / "startless")
    with pytest.raises(UserError, match="decoder_start_token_id"):
        evaluate(str(tmp_path / "startless"), time=False)
