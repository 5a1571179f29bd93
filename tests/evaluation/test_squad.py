"""Questions: where answers are, which span is the best, and how it is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from conftest import WORDS
from homodistil.evaluation import squad
from homodistil.evaluation.tasks import TASKS, Splits

CONTEXT = "the old man sees a red cat near the house in the tree " * 4
QUESTION = "the man sees"


def _rows(answers: list[tuple[str, int] | None]) -> Dataset:
    rows = [
        {
            "question": QUESTION,
            "context": CONTEXT,
            "answers": {"text": [a[0]] if a else [], "answer_start": [a[1]] if a else []},
        }
        for a in answers
    ]
    return Dataset.from_list(rows)


def _splits(rows: Dataset, *, unanswerable: bool = False) -> Splits:
    return Splits(TASKS["squad_v2" if unanswerable else "squad"], rows, {"validation": rows})


@pytest.mark.parametrize("place", [CONTEXT.index("red cat"), CONTEXT.rindex("red cat")], ids=["first", "last"])
def test_a_model_that_knows_the_answer_is_right_wherever_it_is(place: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Windows overlap, and what is learnt as the answer's tokens comes out as its text: all the way round.

    The learner here knows the tokens that it was given to learn, and nothing else.
    """
    splits = _splits(_rows([("red cat", place), ("old man", CONTEXT.index("old man"))]))

    def oracle(train: Dataset, evaluated: Any) -> dict[str, Any]:
        windows = evaluated["validation"]
        assert len(windows) == len(train) > 2
        assert max(map(len, windows["input_ids"])) <= 24
        starts, ends = np.full((2, len(train), 24), -5.0)
        for row, (start, end) in enumerate(zip(train["start_positions"], train["end_positions"], strict=True)):
            # a window without the answer points at its first token
            starts[row, start] = ends[row, end] = 5.0 if start else 0.0
        return {"validation": (starts, ends)}

    found = squad.learn_and_answer(oracle, tokenizer, splits, 24)
    assert found == {"validation": {"exact": 1.0, "span_f1": 1.0}}


def test_nothing_is_an_answer_only_where_it_may_be(tokenizer: PreTrainedTokenizerBase) -> None:
    """Where the first token scores highest, SQuAD 2.0 says nothing and SQuAD 1.1 the best span."""

    def silent(train: Dataset, evaluated: Any) -> dict[str, Any]:
        starts, ends = np.zeros((2, len(evaluated["validation"]), 64))
        starts[:, 0] = ends[:, 0] = 3.0
        return {"validation": (starts, ends)}

    rows = _rows([None, None])
    assert squad.learn_and_answer(silent, tokenizer, _splits(rows, unanswerable=True), 64)["validation"]["exact"] == 1
    assert squad.learn_and_answer(silent, tokenizer, _splits(rows), 64)["validation"]["exact"] == 0


def test_spans_never_end_before_they_start_nor_leave_the_context() -> None:
    """Of starts and ends the best pair in order is taken, from tokens of the context alone."""
    spans = [[-1, -1], [-1, -1], [0, 3], [4, 7], [8, 11], [-1, -1]]
    windows = Dataset.from_dict({"question": [0], "spans": [spans]})
    start = np.array([[9.0, 9.0, 0.5, 1.0, 4.0, 9.0]])
    end = np.array([[9.0, 9.0, 3.0, 2.0, 1.0, 9.0]])
    assert squad.answers(["the old man"], windows, start, end, False) == ["man"]
    end[0, 4] = -9.0
    assert squad.answers(["the old man"], windows, start, end, False) == ["the"]


def test_an_answer_has_so_many_tokens_at_most() -> None:
    """A better pair that is one token longer is passed over."""
    count = squad.LONGEST + 1
    spans = [[-1, -1], *([2 * k, 2 * k + 1] for k in range(count))]
    windows, start, end = Dataset.from_dict({"question": [0], "spans": [spans]}), *np.zeros((2, 1, count + 1))
    start[0, 1], end[0, count - 1], end[0, count] = 5, 1, 5
    assert squad.answers(["a " * count], windows, start, end, False) == [" ".join("a" * squad.LONGEST)]


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_nothing_is_said_only_where_every_window_says_so(order: list[int]) -> None:
    """A window without the answer is surer of that than the one that has it, in whatever order they come."""
    windows = Dataset.from_dict({"question": [0, 0], "spans": [[[-1, -1], [0, 3], [4, 7]]] * 2})
    start, end = np.array([[-5.0, 1, 0], [5.0, 0, 0]])[order], np.array([[-5.0, 0, 1], [5.0, 0, 0]])[order]
    assert squad.answers(["the old"], windows, start, end, True) == ["the old"]


def test_an_answer_that_a_window_cuts_is_not_there() -> None:
    """On either side; one that it has to the letter is."""
    window = [None, (4, 7), (8, 11), None]
    for text, start, place in (("old man", 4, (1, 2)), ("the old", 0, (0, 0)), ("man sees", 8, (0, 0))):
        assert squad._place(window, {"text": [text], "answer_start": [start]}) == place


def test_answers_are_compared_as_the_official_scripts_do() -> None:
    """Case, punctuation and articles do not count; the nearest right answer does; F1 is over words."""
    assert squad.normalised("The  Old, man!") == "old man"
    for unanswerable in (False, True):
        assert squad.scores(["the Cat."], [["a cat", "dog"]], unanswerable) == {"exact": 1.0, "span_f1": 1.0}
        assert squad.token_f1("old red cat", "red cat", unanswerable) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
        assert squad.token_f1("", "cat", unanswerable) == squad.token_f1("the", "cat", unanswerable) == 0
        assert all(squad.token_f1(word, word, unanswerable) == 1 for word in WORDS if word not in ("a", "the"))
    assert squad.scores(["", "cat"], [[], []], True) == {"exact": 0.5, "span_f1": 0.5}


@pytest.mark.parametrize(
    ("unanswerable", "said", "right", "exact", "f1"),
    [
        (True, "", ["the", "cat"], 0, 0),
        (True, "cat", ["the", "cat"], 1, 1),
        (True, "", ["the", "!"], 1, 1),
        (False, "", ["the", "cat"], 1, 0),
        (False, "a", ["the"], 1, 0),
    ],
)
def test_an_answer_of_articles_alone_is_what_each_official_script_takes_it_for(
    unanswerable: bool, said: str, right: list[str], exact: float, f1: float
) -> None:
    """That of 2.0 leaves it out of the right ones; to that of 1.1 it is one, with no word that could be found."""
    assert squad.scores([said], [right], unanswerable) == {"exact": exact, "span_f1": f1}


def test_a_question_longer_than_a_window_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    """The context still has room, and a question that fits is read whole."""
    rows = _rows([("red cat", CONTEXT.index("red cat"))] * 2)
    rows = rows.map(lambda _, k: {"question": " ".join(WORDS * 3) if k else QUESTION}, with_indices=True)
    windows = squad._windows(rows, _splits(rows), tokenizer, 24, positions=False)
    assert max(map(len, windows["input_ids"])) <= 24
    first, *_, last = (tokenizer.decode(ids) for ids in windows["input_ids"])
    assert first.startswith(f"[CLS] {QUESTION} [SEP]")
    assert last.startswith(f"[CLS] {' '.join(WORDS[:12])} [SEP]")
