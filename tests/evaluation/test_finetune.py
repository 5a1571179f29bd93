"""Fine-tuning learns what can be learnt, in the same way each time, for every kind of label."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, BertForMaskedLM, BertJapaneseTokenizer, PreTrainedTokenizerBase

from conftest import WORDS, tiny_config
from homodistil.errors import UserError
from homodistil.evaluation import finetune as finetuning
from homodistil.evaluation.finetune import best_of_grid, defaults, finetune
from homodistil.evaluation.tasks import TASKS, Splits, Task
from homodistil.evaluation.training import Settings

EASY = Settings(learning_rate=2e-3, epochs=12, batch=16, length=32)


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny encoder as models are initialised, from which learning starts well."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("learner")
    BertForMaskedLM(tiny_config(initializer_range=0.05)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _rows(count: int, seed: int, label: Any) -> Dataset:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=6)) for _ in range(count)]
    return Dataset.from_dict({"text": texts, "label": [label(t) for t in texts]})


def _splits(label: Any, **task: Any) -> Splits:
    values = {"name": "own", "columns": ("text",), "labels": "classes", "metrics": ("accuracy",), **task}
    return Splits(Task(**values), _rows(256, 0, label), {"validation": _rows(64, 1, label)})


def test_what_a_word_tells_is_learnt_and_the_same_each_time(learner: Path) -> None:
    """Whether a text has a cat, told in words, is found; a seed gives the same numbers again."""
    splits = _splits(lambda text: "cat" if "cat" in text else "none")
    first, second = (finetune(learner, splits, EASY, seed=3) for _ in range(2))
    assert first["accuracy"] > 0.9
    assert first["score"] == pytest.approx(100 * first["accuracy"])
    assert first == second


def test_numbers_are_learnt(learner: Path) -> None:
    """How many cats there are is a number, and follows the text."""
    splits = _splits(lambda t: float(t.split().count("cat")), labels="number", metrics=("r2", "spearman", "mae"))
    made = finetune(learner, splits, EASY, seed=0)
    assert made["spearman"] > 0.5
    assert made["score"] == pytest.approx(100 * made["r2"])


@pytest.mark.parametrize(("offset", "scale"), [(60.0, 1.0), (-3.0, 1e5)])
def test_numbers_are_learnt_wherever_they_lie(offset: float, scale: float, learner: Path) -> None:
    """Another zero and another unit change no share of what is explained, and the error is in that unit."""
    options: dict[str, Any] = {"labels": "number", "metrics": ("r2", "spearman", "mae")}
    settings = replace(EASY, epochs=2)
    plain, moved = (
        finetune(learner, _splits(lambda t, a=a, b=b: a + b * t.split().count("cat"), **options), settings, seed=0)
        for a, b in ((0.0, 1.0), (offset, scale))
    )
    assert plain["r2"] > -0.5
    for name, unit in (("r2", 1.0), ("spearman", 1.0), ("mae", scale)):
        assert moved[name] / unit == pytest.approx(plain[name], abs=0.02)


def test_several_splits_are_named(encoder: Path) -> None:
    """Of a task with two scored splits, each metric is named by its split and the score is their mean."""
    splits = _splits(lambda text: len(text) % 2)
    two = Splits(splits.task, splits.train, {"one": splits.evaluated["validation"], "other": splits.train})
    made = finetune(encoder, two, Settings(learning_rate=1e-3, epochs=1, length=32), seed=0)
    assert made["score"] == pytest.approx(50 * (made["one/accuracy"] + made["other/accuracy"]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_questions_are_learnt(side: str, learner: Path, tmp_path: Path) -> None:
    """The span head learns where the cat is, better than by chance, whichever side the tokenizer pads by itself."""
    model = Path(shutil.copytree(learner, tmp_path / "model"))
    AutoTokenizer.from_pretrained(model, padding_side=side).save_pretrained(model)
    context = [" ".join([*random.Random(i).sample([w for w in WORDS if w != "cat"], 8), "cat"]) for i in range(96)]
    context = [" ".join(random.Random(i).sample(c.split(), 9)) + " a" * (5 * i % 31) for i, c in enumerate(context)]
    answers = [{"text": ["cat"], "answer_start": [f" {c} ".index(" cat ")]} for c in context]
    rows = Dataset.from_dict({"question": ["the cat"] * 96, "context": context, "answers": answers})
    made = finetune(model, Splits(TASKS["squad"], rows, {"validation": rows}), EASY, seed=0)
    assert made["exact"] > 0.9
    assert made["span_f1"] >= made["exact"]


def test_the_side_on_which_a_tokenizer_pads_changes_no_score(learner: Path, tmp_path: Path) -> None:
    """Of texts of many lengths, numbers are learnt from the same positions."""
    model = Path(shutil.copytree(learner, tmp_path / "model"))
    AutoTokenizer.from_pretrained(model, padding_side="left").save_pretrained(model)
    options: dict[str, Any] = {"labels": "number", "metrics": ("mae",)}
    splits = _splits(lambda text: float(len(text)), **options)
    longer = splits.train.map(lambda row, k: {"text": row["text"] + " cat" * (k % 20)}, with_indices=True)
    splits = Splits(splits.task, longer, {"validation": longer.select(range(64))})
    made = [finetune(folder, splits, replace(EASY, epochs=1), seed=0) for folder in (learner, model)]
    assert made[0] == made[1]


def test_the_grid_chooses_on_training_rows_alone() -> None:
    """The best learning rate is found without a look at the rows that are scored."""
    splits = _splits(lambda text: "cat" in text)
    seen: list[tuple[float, Splits]] = []

    def spy(inner: Splits, settings: Settings, *, seed: int) -> dict[str, float]:
        seen.append((settings.learning_rate, inner))
        return {"score": settings.learning_rate}

    assert best_of_grid(spy, splits, EASY).learning_rate == 2 * EASY.learning_rate
    assert [rate / EASY.learning_rate for rate, _ in seen] == pytest.approx([0.5, 1, 2])
    for _, inner in seen:
        used = [*inner.train["text"], *inner.evaluated["held"]["text"]]
        assert sorted(used) == sorted(splits.train["text"])


def test_a_class_of_a_single_row_is_not_what_a_learning_rate_is_chosen_by() -> None:
    """Where that row is held out, nothing could be learnt of it."""
    alone = _rows(256, 0, len).train_test_split(test_size=finetuning.GRID_HELDOUT, seed=0)["test"][3]["text"]
    splits, held = _splits(lambda text: 2 if text == alone else int("cat" in text)), list[list[Any]]()

    def spy(inner: Splits, settings: Settings, *, seed: int) -> dict[str, float]:
        held.append(inner.evaluated["held"]["label"][:])
        return {"score": 0.0}

    best_of_grid(spy, splits, EASY)
    assert [set(labels) for labels in held] == [{0, 1}] * 3
    assert len(held[0]) == 25


def test_small_tasks_get_more_epochs_and_narrow_models_higher_rates() -> None:
    """Epochs fall with the rows between 10 and 3; the rate is 3e-5 at 768 and grows as the width falls."""
    task = TASKS["rte"]
    epochs = [defaults(task, rows, 768).epochs for rows in (1_000, 5_000, 400_000)]
    assert epochs == [10, 6, 3]
    rates = [defaults(task, 5_000, hidden).learning_rate for hidden in (768, 384, 120)]
    assert rates == pytest.approx([3e-5, 6e-5, 1.92e-4])


def test_ones_own_texts_are_read_further_than_those_of_glue() -> None:
    """GLUE and SQuAD are read as BERT read them, and a user's own task four times as far."""
    tasks = (TASKS["rte"], TASKS["stsb"], TASKS["squad"], _splits(len).task, _splits(len, labels="number").task)
    assert [defaults(task, 5_000, 768).length for task in tasks] == [128, 128, 384, 512, 512]


def test_a_class_that_cannot_be_learnt_is_refused(encoder: Path) -> None:
    """A scored class that no training row has is named."""
    train, scored = _rows(32, 0, lambda _: "cat"), _rows(8, 1, lambda _: "dog")
    task = _splits(lambda _: 0).task
    with pytest.raises(UserError, match="'dog'"):
        finetune(encoder, Splits(task, train, {"validation": scored}), EASY, seed=0)


@pytest.mark.parametrize("said", [{"output_hidden_states": True}, {"output_attentions": True}])
def test_what_a_configuration_asks_for_beside_is_no_answer(
    said: dict[str, bool], learner: Path, tmp_path: Path
) -> None:
    """States and maps are not scored: figures are those of the model without."""
    model = Path(shutil.copytree(learner, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | said))
    splits = _splits(lambda text: len(text) % 2)
    made = [finetune(folder, splits, replace(EASY, epochs=1), seed=0) for folder in (learner, model)]
    assert made[0] == made[1]


def test_pairs_and_questions_need_no_second_type_of_token(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A model with one has no row for a second text: what its tokenizer says of types changes nothing."""
    torch.manual_seed(0)
    model = BertForMaskedLM(tiny_config(type_vocab_size=1))
    for name in ("typed", "untyped"):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    said = tmp_path / "untyped" / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    said.write_text(json.dumps(json.loads(said.read_text()) | names))
    both = [tmp_path / "typed", tmp_path / "untyped"]
    pairs = Dataset.from_dict({"a": ["the cat"] * 16, "b": ["a dog", "big"] * 8, "label": [0, 1] * 8})
    task = Task(name="own", columns=("a", "b"), labels="classes", metrics=("accuracy",))
    quick = replace(EASY, epochs=1)
    made = [finetune(folder, Splits(task, pairs, {"validation": pairs}), quick, seed=0) for folder in both]
    assert made[0] == made[1]
    answers = [{"text": ["cat"], "answer_start": [4]}] * 16
    rows = Dataset.from_dict({"question": ["a cat"] * 16, "context": ["the cat"] * 16, "answers": answers})
    made = [finetune(folder, Splits(TASKS["squad"], rows, {"validation": rows}), quick, seed=0) for folder in both]
    assert made[0] == made[1]


def test_answers_need_a_tokenizer_that_knows_characters(tmp_path: Path) -> None:
    """One that is written in Python does not say where its tokens stand."""
    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    slow = BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), word_tokenizer_type="basic")
    slow.save_pretrained(tmp_path)
    rows = Dataset.from_dict({"question": ["a"], "context": ["b"], "answers": [{"text": ["b"], "answer_start": [0]}]})
    with pytest.raises(UserError, match="is written in Python"):
        finetune(tmp_path, Splits(TASKS["squad"], rows, {"validation": rows}), EASY, seed=0)
