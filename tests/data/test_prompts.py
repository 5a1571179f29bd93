"""Prompts: texts are learnt from as users of a sentence encoder let it read them, and its students know them."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

import homodistil
from conftest import make
from homodistil.data.corpus import load_corpus
from homodistil.data.cutter import Cutter
from homodistil.data.pairs import PAIR
from homodistil.distill.prepare import Run, prepare
from homodistil.errors import UserError
from homodistil.models.sentence import prompts_of
from homodistil.reading import build
from tokenizers_zoo import KINDS, wrapped

QUERY, PASSAGE = "big dog: ", "small cat: "
QUICK: dict[str, Any] = {"steps": 4, "batch": 4, "text": {"length": 32}, "precision": "fp32", "target": ["0.5"]}


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Saves a sentence encoder with these prompts, and returns its folder."""

    def save(prompts: dict[str, str], usual: str | None = None, *, counts: bool = True) -> Path:
        plain, folder = (tmp_path_factory.mktemp(name) for name in ("plain", "encoder"))
        model = make(BertModel)
        model.save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        parts = [Transformer(str(plain)), Pooling(model.config.hidden_size, "mean", include_prompt=counts)]
        made = SentenceTransformer(modules=parts, prompts=prompts, default_prompt_name=usual)
        made.save_pretrained(str(folder))
        return folder

    return save


def _prepared(teacher: Path, corpus: Path, out: Path, **options: Any) -> Run:
    values = {**QUICK, "teacher": str(teacher), "data": str(corpus), "out": str(out), **options}
    return prepare(build(values), resume=False, texts=None)


def _opened(text: str, tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(prompt + text)["input_ids"] for prompt in prompts]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_after_a_prompt_has_the_tokens_that_both_have_in_one(kind: str) -> None:
    """Of any algorithm, whatever becomes of the border; each prompt comes, always the same before the same text."""
    tokenizer, prompts = wrapped(KINDS[kind]()), ("query: ", "", "the parliament:")
    texts = [f"{a} {b}" for a in ("the", "rivers", "a cell", "over") for b in ("city", "water is", "1,200", "of it")]
    made = Cutter(tokenizer, "text", 48, packed=False, prompts=prompts)({"text": texts})
    chosen = []
    for text, ids, opening in zip(texts, made["input_ids"], made["opening"], strict=True):
        whole = _opened(text, tokenizer, prompts)
        assert ids in whole
        chosen.append(prompts[whole.index(ids)])
        alone = tokenizer(chosen[-1])["input_ids"]
        # no more than the prompt, and all of it but for a token that the text has changed
        assert ids[:opening] == alone[:opening]
        assert opening >= len(alone) - len(tokenizer("")["input_ids"]) - 1
    assert set(chosen) == set(prompts)
    again = Cutter(tokenizer, "text", 48, packed=False, prompts=prompts)({"text": texts[::-1]})
    assert again["input_ids"][::-1] == made["input_ids"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_piece_keeps_the_prompt_of_its_text(stream: bool, tokenizer: Any, tmp_path: Path) -> None:
    """Prompt, a contiguous piece of the text, and the special tokens; whole held-out texts have a prompt too."""
    words = ["red", "blue", "old", "man", "tree", "house", "sees", "likes"]
    texts = [" ".join(itertools.islice(itertools.cycle(order), 20)) for order in itertools.permutations(words, 3)]
    (tmp_path / "long.txt").write_text("\n".join(texts))
    corpus = load_corpus(
        str(tmp_path / "long.txt"), tokenizer, length=40, packed=False, crops=0.5, prompts=(QUERY, PASSAGE), batch=4,
        stream=stream,
    )  # fmt: skip
    openings = [tokenizer(prompt)["input_ids"][:-1] for prompt in (QUERY, PASSAGE)]
    whole = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    seen = [list(ids) for ids in itertools.islice(corpus.train.sequences(0), 300)]
    bodies: list[list[int]] = []
    for ids in [*seen, *map(list, corpus.heldout)]:
        opening = next(o for o in openings if ids[: len(o)] == o)
        assert ids[-1] == tokenizer.sep_token_id
        bodies.append(ids[len(opening) : -1])
        assert any(bodies[-1] == text[i : i + len(bodies[-1])] for text in whole for i in range(20))
    assert {tuple(ids[: len(openings[0])]) for ids in seen} == {tuple(o) for o in openings}
    assert 0.35 < np.mean([len(body) < 20 for body in bodies[:300]]) < 0.65
    assert all(len(body) == 20 for body in bodies[300:])


def test_the_source_of_a_pair_is_read_after_a_prompt_and_its_target_is_not(tokenizer: Any, tmp_path: Path) -> None:
    """As encoder-decoders are told what to do."""
    rows = [{"text": "the red cat sees", "said": "a man"}, {"text": "on the house", "said": "near"}] * 4
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus(
        str(tmp_path / "pairs.jsonl"), tokenizer, target="said", length=16, packed=False, prompts=(QUERY,), batch=4
    )
    seen = {tuple(ids) for ids in itertools.islice(corpus.train.sequences(0), 20)}
    both = [(tokenizer(QUERY + row["text"])["input_ids"], tokenizer(row["said"])["input_ids"]) for row in rows]
    assert seen == {(*read, PAIR, *said) for read, said in both}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, ()),
        ({"prompts": {"query": "", "document": ""}, "default_prompt_name": None}, ()),
        ({"prompts": {"query": QUERY, "document": ""}, "default_prompt_name": None}, ("", QUERY)),
        ({"prompts": {"query": QUERY, "document": PASSAGE}, "default_prompt_name": "document"}, (PASSAGE, QUERY)),
        ({"prompts": {"query": QUERY, "web": QUERY}, "default_prompt_name": "query"}, (QUERY,)),
        ({"prompts": {"query": QUERY, "document": None}, "default_prompt_name": "query"}, (QUERY, "")),
    ],
)
def test_an_encoders_prompts_are_those_that_its_users_may_put_before_a_text(
    said: dict[str, Any], found: tuple[str, ...], prompted: Callable[..., Path], tmp_path: Path
) -> None:
    """Each once; none at all is one of them where `encode` puts none."""
    folder = shutil.copytree(prompted({}), tmp_path / "encoder")
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    assert prompts_of(folder) == found


def test_a_run_learns_from_texts_after_the_prompts_that_its_teacher_comes_with(
    prompted: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """Some of each; the recipe's own in their place, or none; and none where the embedding leaves them out again."""
    teacher = prompted({"query": QUERY, "document": PASSAGE}, "query")
    tokenizer = AutoTokenizer.from_pretrained(teacher)

    def openings(run: Run, prompts: Sequence[str]) -> set[str]:
        seen = [list(ids) for ids in itertools.islice(run.corpus.train.sequences(0), 60)]
        known = {prompt: tokenizer(prompt)["input_ids"][:-1] for prompt in prompts}
        return {next((p for p, o in known.items() if ids[: len(o)] == o), "none") for ids in seen}

    run = _prepared(teacher, corpus, tmp_path / "own")
    assert run.recipe.text.prompts == [QUERY, PASSAGE]
    assert openings(run, (QUERY, PASSAGE)) == {QUERY, PASSAGE}
    other = {"length": 32, "prompts": ["old man: "]}
    assert openings(_prepared(teacher, corpus, tmp_path / "other", text=other), ("old man: ",)) == {"old man: "}
    off = {"length": 32, "prompts": []}
    assert openings(_prepared(teacher, corpus, tmp_path / "off", text=off), (QUERY, PASSAGE)) == {"none"}
    silent = prompted({"query": QUERY}, "query", counts=False)
    assert openings(_prepared(silent, corpus, tmp_path / "silent"), (QUERY,)) == {"none"}


def test_a_student_has_its_teachers_prompts_and_is_resumed_with_them(
    prompted: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    """What `encode` puts before a text is the same of both; a run that was only begun ends as one never stopped."""
    teacher = prompted({"query": QUERY, "document": ""})
    _prepared(teacher, corpus, tmp_path / "begun")
    resumed = homodistil.resume(tmp_path / "begun").students["0.5"]
    texts: dict[str, dict[str, Any]] = {"whole": {}, "alone": {"prompts": []}}
    whole, alone = (
        homodistil.distil(
            teacher, corpus, "0.5", tmp_path / name, steps=4, batch=4, precision="fp32", text={"length": 32, **text}
        ).students["0.5"]
        for name, text in texts.items()
    )
    weights = [load_file(folder / "model.safetensors") for folder in (resumed, whole, alone)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[2])
    student = SentenceTransformer(str(resumed))
    assert student.prompts == SentenceTransformer(str(teacher)).prompts == {"query": QUERY, "document": ""}


def test_a_trimmed_encoder_reads_every_text_after_every_prompt_as_before(
    prompted: Callable[..., Path], tmp_path: Path
) -> None:
    """Prompts need tokens too, which no text may have."""
    teacher = prompted({"query": QUERY, "document": ""})
    texts = ["the red man", "a tree near a house", "the old house"]
    made = homodistil.trim_vocabulary(teacher, texts, tmp_path / "trimmed")
    assert made.tokens[1] < made.tokens[0]
    whole, trimmed = (SentenceTransformer(str(folder)) for folder in (teacher, made.folder))
    for name in ("query", "document"):
        expected, found = (encoder.encode(texts, prompt_name=name) for encoder in (whole, trimmed))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    run = _prepared(teacher, _file(tmp_path, texts * 8), tmp_path / "run", trim_vocab=True)
    assert run.vocabulary is not None
    assert len(run.vocabulary.rows) == made.tokens[1]
    assert homodistil.plan(teacher, "0.5", data=texts)[1] == run.planned


def _file(folder: Path, texts: Sequence[str]) -> Path:
    (folder / "texts.txt").write_text("\n".join(texts))
    return folder / "texts.txt"


def test_prompts_that_would_not_be_read_as_in_use_are_refused(
    prompted: Callable[..., Path], masked_lm: Path, corpus: Path, tmp_path: Path
) -> None:
    """Before blocks, for embeddings that leave them out, and so long that no text is left."""
    text = {"length": 32, "prompts": [QUERY]}
    with pytest.raises(UserError, match="joined into blocks"):
        _prepared(masked_lm, corpus, tmp_path / "run", text=text)
    with pytest.raises(UserError, match="include_prompt"):
        _prepared(prompted({}, counts=False), corpus, tmp_path / "run", text=text)
    with pytest.raises(UserError, match="special tokens and a prompt"):
        _prepared(prompted({}), corpus, tmp_path / "run", text={"length": 8, "prompts": [QUERY * 2]})
    assert not (tmp_path / "run").exists()
