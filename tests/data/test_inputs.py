"""How long what a run reads is, where its recipe does not say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertModel, PreTrainedModel

import homodistil
from conftest import WORDS, make
from homodistil.distill.prepare import Run, prepare
from homodistil.reading import build
from zoo import tiny


def _texts(longest: int) -> list[str]:
    """A hundred, of which one is far longer than all others."""
    draw = random.Random(0)
    lengths = [*(1 + k * longest // 99 for k in range(99)), 450]
    draw.shuffle(lengths)
    return [" ".join(draw.choices(WORDS, k=length)) for length in lengths]


def _folder(model: PreTrainedModel, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder, model_max_length=512).save_pretrained(folder)
    return folder


@pytest.fixture
def run_of(tokenizer: Any, tmp_path: Path) -> Callable[..., Run]:
    """What a run of a model would be, on data in memory, or in a file."""

    def run(model: PreTrainedModel, data: Any, **options: Any) -> Run:
        teacher = _folder(model, tokenizer, tmp_path / "teacher")
        named = {"teacher": str(teacher), "target": "0.5", "steps": 4, "out": str(tmp_path / "run"), **options}
        texts = None if isinstance(data, str) else data
        return prepare(build({**named, "data": data if texts is None else "<texts>"}), resume=False, texts=texts)

    return run


def _masked_lm(positions: int = 512) -> PreTrainedModel:
    return make(BertForMaskedLM, max_position_embeddings=positions)


@pytest.mark.parametrize("kind", ["file", "stream", "list"])
def test_a_language_model_reads_as_far_as_nearly_all_texts_reach(
    kind: str, run_of: Callable[..., Run], tmp_path: Path
) -> None:
    """Of a file, a stream and a list alike; it is written down, and a block has no more tokens."""
    texts = _texts(200)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    data = texts if kind == "list" else str(tmp_path / "texts.txt")
    run = run_of(_masked_lm(), data, text={"stream": kind == "stream"})
    # 99 of 100 have 199 words at most, and two special tokens
    assert run.recipe.text.length == 200
    assert max(map(len, run.corpus.heldout)) <= 200
    assert "length: 200" in (run.dir.path / "recipe.yaml").read_text()


def test_what_can_be_read_once_is_not_looked_at(run_of: Callable[..., Run]) -> None:
    """All that the models read, up to 512 tokens, is given to texts that nobody has counted."""
    assert run_of(_masked_lm(400), iter(_texts(200) * 9)).recipe.text.length == 400


@pytest.mark.parametrize(
    ("options", "length"), [({"length": 40}, 40), ({"packing": "texts"}, 200), ({"packing": "blocks"}, 200)]
)
def test_what_a_recipe_says_is_done(options: dict[str, Any], length: int, run_of: Callable[..., Run]) -> None:
    """A length as it is given, and otherwise what nearly all texts have, however they are joined."""
    assert run_of(_masked_lm(), _texts(200), text=options).recipe.text.length == length


def test_no_more_is_read_than_there_are_positions(run_of: Callable[..., Run]) -> None:
    """Where nobody asks for more, fewer positions than 128 are no error."""
    assert run_of(_masked_lm(64), _texts(200)).recipe.text.length == 64


def test_an_encoder_without_a_language_model_reads_128_tokens(run_of: Callable[..., Run]) -> None:
    """Its embeddings are of whole texts."""
    assert run_of(make(BertModel, max_position_embeddings=512), _texts(200)).recipe.text.length == 128


@pytest.mark.parametrize(("packing", "length"), [("auto", 92), ("whole", 92), ("texts", 92), ("blocks", 128)])
def test_a_masked_language_model_reads_whole_texts(packing: str, length: int, run_of: Callable[..., Run]) -> None:
    """Of which two would not fit into one block, unless it is asked for full ones."""
    texts = [" ".join(random.Random(k).choices(WORDS, k=90)) for k in range(60)]
    run = run_of(_masked_lm(), texts, text={"packing": packing})
    assert {len(block) for block in run.corpus.heldout} == {length}


def test_of_pairs_the_longer_side_counts(run_of: Callable[..., Run], tmp_path: Path) -> None:
    """Both are read as far."""
    short, long = (_texts(longest) for longest in (20, 300))
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"text": a, "said": b}) + "\n" for a, b in zip(short, long, strict=True))
    )
    run = run_of(tiny("T5"), str(tmp_path / "pairs.jsonl"), text={"target": "said"})
    assert run.recipe.text.length == 304


@pytest.mark.parametrize("model", ["GPT-2", "T5"])
def test_what_is_no_masked_language_model_reads_full_blocks(model: str, run_of: Callable[..., Run]) -> None:
    """Whatever texts are in them."""
    texts = [" ".join(random.Random(k).choices(WORDS, k=40)) for k in range(90)]
    heldout = run_of(tiny(model), texts, text={"length": 48}).corpus.heldout
    assert {len(block) for block in heldout} == {48}


def test_a_students_positions_beyond_the_text_are_moved(tokenizer: Any, tmp_path: Path) -> None:
    """None stays what was cut out of the teacher, and none goes further than those that have learnt; types, too."""
    teacher = _folder(_masked_lm(64), tokenizer, tmp_path / "teacher")
    texts = [" ".join(random.Random(k).choices(WORDS, k=30)) for k in range(200)]
    options: dict[str, Any] = {"steps": 12, "batch": 4, "precision": "fp32", "optim": {"weight_decay": 0.0}}
    made = homodistil.distil(teacher, texts, "0.5", tmp_path / "run", text={"length": 32}, **options)
    opened = BertForMaskedLM.from_pretrained(made.students["0.5"])
    kept = _kept(made.out / "units" / "0.5.json")
    before, after = (m.bert.embeddings for m in (BertForMaskedLM.from_pretrained(teacher), opened))
    start, table = before.position_embeddings.weight[:, kept], after.position_embeddings.weight
    assert not (table[32:] == start[32:]).any(dim=1).all()
    assert torch.isfinite(table).all()
    assert (table - start)[32:].norm(dim=1).max() < 2 * (table - start)[:32].norm(dim=1).max()
    # a single text has one type
    learnt, told = after.token_type_embeddings.weight - before.token_type_embeddings.weight[:, kept]
    torch.testing.assert_close(told, learnt, atol=1e-6, rtol=1e-5)
    assert learnt.abs().max() > 1e-4


def _kept(file: Path) -> list[int]:
    units: list[int] = json.loads(file.read_text())["kept"]["hidden"]
    return units
