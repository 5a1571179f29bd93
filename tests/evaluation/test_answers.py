"""What a model's own head says of labelled rows is what it says of each of them alone, by its own names of classes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedTokenizerBase,
)

import homodistil
from conftest import WORDS
from homodistil.cli import main
from homodistil.errors import UserError
from homodistil.evaluation import squad
from homodistil.evaluation.answers import answers
from homodistil.evaluation.evaluation import evaluate
from homodistil.evaluation.models import open_model
from homodistil.evaluation.tasks import TASKS, Splits, Task

NAMES = {0: "Good", 1: "Bad", 2: "Neither"}
OWN: dict[str, Any] = {"labels": "classes", "metrics": ("accuracy", "macro_f1")}


@pytest.fixture(scope="module")
def classifier(save_teacher: Callable[..., Path]) -> Path:
    """The folder of a tiny classifier of three classes with names."""
    return save_teacher(BertForSequenceClassification, id2label=NAMES)


def _texts(count: int = 90) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 30))) for _ in range(count)]


@torch.no_grad()
def _alone(folder: Path, *columns: list[str]) -> torch.Tensor:
    """Logits of each row by itself, so that nothing is padded."""
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    return torch.cat([model(**tokenizer(*row, return_tensors="pt")).logits for row in zip(*columns, strict=True)])


def _splits(rows: Dataset, *columns: str, **task: Any) -> Splits:
    return Splits(Task(name="own", columns=columns, **task), Dataset.from_dict({}), {"validation": rows})


def test_classes_are_those_that_the_head_says_of_each_row_alone(classifier: Path) -> None:
    """In the order of the rows, whose lengths differ; words in any case, numbers, and what a data set calls numbers."""
    texts = _texts()
    said = _alone(classifier, texts).argmax(-1).tolist()
    assert len(set(said)) == 3
    # every third label is another one
    labels = [(k + (row % 3 == 0)) % 3 for row, k in enumerate(said)]
    opened = open_model(str(classifier))
    called = ["neither", "good", "bad"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=called)})
    for rows in (
        Dataset.from_dict({"text": texts, "label": [NAMES[k].upper() for k in labels]}),
        Dataset.from_dict({"text": texts, "label": labels}),
        Dataset.from_dict(
            {"text": texts, "label": [called.index(NAMES[k].lower()) for k in labels]}, features=features
        ),
    ):
        made = answers(opened, _splits(rows, "text", **OWN), 64)
        assert made["accuracy"] == pytest.approx(2 / 3)
        assert made["score"] == pytest.approx(100 * (made["accuracy"] + made["macro_f1"]) / 2)


def test_classes_that_case_alone_tells_apart_are_told_apart(save_teacher: Callable[..., Path]) -> None:
    """And a data set's number that has no name is none of them."""
    folder = save_teacher(BertForSequenceClassification, id2label={0: "us", 1: "US", 2: "it"})
    texts, names = _texts(), ["us", "US", "it"]
    said = _alone(folder, texts).argmax(-1).tolist()
    assert {0, 1} < set(said)
    opened = open_model(str(folder))
    splits = _splits(Dataset.from_dict({"text": texts, "label": [names[k] for k in said]}), "text", **OWN)
    assert answers(opened, splits, 64)["accuracy"] == 1
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    hidden = Dataset.from_dict({"text": texts[:2], "label": [1, -1]}, features=features)
    with pytest.raises(UserError, match="does not tell -1"):
        answers(opened, _splits(hidden, "text", **OWN), 64)


def test_a_pair_is_read_as_a_pair_and_a_number_is_the_heads(save_teacher: Callable[..., Path]) -> None:
    """As a cross-encoder tells how alike two texts are."""
    folder = save_teacher(BertForSequenceClassification, num_labels=1)
    first, second = _texts(40), _texts(80)[40:]
    said = _alone(folder, first, second)[:, 0].double().numpy()
    right = said + np.random.default_rng(0).normal(size=40) * said.std()
    rows = Dataset.from_dict({"a": first, "b": second, "label": right.tolist()})
    metrics = ("r2", "spearman", "mae")
    made = answers(open_model(str(folder)), _splits(rows, "a", "b", labels="number", metrics=metrics), 64)
    assert made["spearman"] == pytest.approx(spearmanr(said, right).statistic, abs=1e-3)
    assert made["mae"] == pytest.approx(np.abs(said - right).mean(), rel=1e-3)
    turned = answers(open_model(str(folder)), _splits(rows, "b", "a", labels="number", metrics=metrics), 64)
    assert turned["mae"] != pytest.approx(made["mae"], rel=1e-3)


def test_a_question_is_answered_by_the_models_own_spans(
    save_teacher: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    """As windows are answered one by one, without padding."""
    folder = save_teacher(BertForQuestionAnswering)
    contexts = [" ".join(_texts()[k : k + 1 + k % 5]) for k in range(12)]
    rows = Dataset.from_list(
        [{"question": "the man sees", "context": c, "answers": {"text": [c.split()[0]], "answer_start": [0]}}
         for c in contexts]
    )  # fmt: skip
    splits = Splits(TASKS["squad"], Dataset.from_dict({}), {"validation": rows})
    model = BertForQuestionAnswering.from_pretrained(folder).eval()
    windows: list[int] = []

    @torch.no_grad()
    def one_by_one(_: Dataset, asked: Any) -> dict[str, Any]:
        made = [model(**{name: torch.tensor([ids]) for name, ids in row.items()}) for row in asked["validation"]]
        windows.append(len(made))
        sides = ([getattr(m, side)[0].numpy() for m in made] for side in ("start_logits", "end_logits"))
        return {"validation": tuple([np.pad(x, (0, 24 - len(x))) for x in side] for side in sides)}

    expected = squad.learn_and_answer(one_by_one, tokenizer, splits, 24)["validation"]
    assert windows[0] > len(rows)
    made = answers(open_model(str(folder)), splits, 24)
    assert {name: made[name] for name in expected} == pytest.approx(expected)
    assert 0 < made["span_f1"] < 1


def test_a_student_with_its_teachers_head_is_scored_beside_it(
    classifier: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows of a file, by the classes' names, which a student keeps; nothing of it is learnt."""
    texts = _texts()
    said = _alone(classifier, texts).argmax(-1).tolist()
    rows = [{"text": t, "label": NAMES[k]} for t, k in zip(texts, said, strict=True)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    student = homodistil.distil(
        classifier, corpus, "0.5", tmp_path / "run", steps=4, batch=8, precision="fp32", text={"length": 32}
    ).students["0.5"]
    words = [str(student), "--against", str(classifier), "--answers", str(tmp_path / "own.jsonl"), "--no-speed"]
    assert main(["evaluate", *words, "--json", str(tmp_path / "numbers.json")]) == 0
    assert "own answers" in capsys.readouterr().out
    made = {r["model"]: r["values"] for r in json.loads((tmp_path / "numbers.json").read_text())["records"]
            if r["measure"] == "own answers"}  # fmt: skip
    assert made[str(classifier)] == {"accuracy": 1.0, "macro_f1": 1.0, "score": 100.0}
    expected = _alone(student, texts).argmax(-1).eq(torch.tensor(said)).float().mean()
    assert made[str(student)]["accuracy"] == pytest.approx(expected.item())


def test_rows_that_are_not_read_to_their_end_are_counted(classifier: Path) -> None:
    """A text that is as long as what is read may go on."""
    rows = Dataset.from_dict({"text": ["the man " * 40, "a cat", "the man " * 40], "label": [0, 1, 2]})
    with pytest.warns(UserWarning, match="2 of 3 rows of own fill all 16 tokens"):
        answers(open_model(str(classifier)), _splits(rows, "text", **OWN), 16)


def test_what_a_head_does_not_tell_is_refused(
    classifier: Path, masked_lm: Path, encoder: Path, save_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    """No head, another kind of answer, a class that it does not know; before anything is measured."""
    many = save_teacher(BertForSequenceClassification, num_labels=3, problem_type="multi_label_classification")
    number = save_teacher(BertForSequenceClassification, num_labels=1)

    def ask(folder: Path, *labels: Any, **options: Any) -> None:
        rows = [{"text": "a man", "label": label} for label in labels]
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
        evaluate(str(folder), answers=[str(tmp_path / "own.jsonl")], time=False, **options)

    for folder, tells in ((masked_lm, "nothing of the kind"), (encoder, "nothing of the kind"), (many, "many labels")):
        with pytest.raises(UserError, match=f"(?s)which are classes.*this one tells {tells}"):
            ask(folder, 0, 1)
    with pytest.raises(UserError, match=r"(?s)which are numbers.*this one tells classes"):
        ask(classifier, 0.5, 1.5)
    with pytest.raises(UserError, match=r"(?s)which are classes.*this one tells numbers"):
        ask(number, "good", "bad")
    # beside a teacher that does not tell it
    with pytest.raises(UserError, match=r"(?s)which are classes.*this one tells nothing"):
        ask(classifier, 0, 1, against=masked_lm)
    with pytest.raises(UserError, match=r"(?s)does not tell 'awful'.*Good, Bad, Neither, or the number of one, 0 to 2"):
        ask(classifier, "good", "awful")
    with pytest.raises(UserError, match="does not tell 3"):
        ask(classifier, 0, 3)
    with pytest.raises(UserError, match="does not tell -1"):
        ask(classifier, 0, -1)
    (tmp_path / "squad").mkdir()
    row = {"question": "a", "context": "the man", "answers": {"text": ["man"], "answer_start": [4]}}
    (tmp_path / "squad" / "validation.jsonl").write_text("\n".join([json.dumps(row)] * 2))
    with pytest.raises(UserError, match="which are parts of a text"):
        evaluate(str(classifier), answers=["squad"], data_dir=tmp_path, time=False)


def test_sentence_encoders_have_no_answers(encoder: Path, tmp_path: Path) -> None:
    """They tell embeddings, which probes and pairs ask for."""
    SentenceTransformer(str(encoder)).save_pretrained(str(tmp_path / "sentences"))
    rows = [{"text": "a man", "label": 0}, {"text": "a cat", "label": 1}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="this one tells embeddings"):
        evaluate(str(tmp_path / "sentences"), answers=[str(tmp_path / "own.jsonl")], time=False)
