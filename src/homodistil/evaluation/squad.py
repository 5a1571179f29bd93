"""Answering questions: long contexts in overlapping windows, the best span over all of them, exact match and F1.

The rules of SQuAD's official scripts (Rajpurkar et al. 2016, 2018): answers are compared without case, punctuation
and articles; of several right answers the nearest counts; with unanswerable questions, saying nothing is an answer.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from homodistil.errors import UserError
from homodistil.evaluation.tasks import Splits, Task

STRIDE = 128
"""Tokens by which two windows of a context overlap."""
LONGEST = 30
"""Tokens of an answer at most."""
QUESTION = 64
"""Tokens of a question that are read at most, as BERT's script has it; of narrow windows half."""
BEST = 20
"""Starts and ends of each window that are combined."""

Learner = Callable[[Dataset, Mapping[str, Dataset]], dict[str, Any]]


def learn_and_answer(
    learn: Learner, tokenizer: PreTrainedTokenizerBase, splits: Splits, length: int
) -> dict[str, dict[str, float]]:
    """Cut into windows, train, and score each split.

    Args:
        learn: trains on the windows, if there are any, and returns start and end logits of each split's windows.
        tokenizer: a fast one, because answers are found by characters.
        splits: questions with contexts.
        length: tokens of a window at most.
    """
    train = _windows(splits.train, splits, tokenizer, length, positions=True)
    plain = {s: _windows(rows, splits, tokenizer, length, positions=False) for s, rows in splits.evaluated.items()}
    hidden = ("question", "spans")
    logits = learn(
        train, {s: rows.remove_columns([c for c in hidden if c in rows.column_names]) for s, rows in plain.items()}
    )
    results = {}
    for split, rows in splits.evaluated.items():
        starts, ends = logits[split]
        said = answers(rows[splits.task.columns[1]], plain[split], starts, ends, splits.task.unanswerable)
        right = [answer["text"] for answer in rows[splits.task.label]]
        results[split] = scores(said, right, splits.task.unanswerable)
    return results


def refuse_slow(source: str, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """Raise the error of a tokenizer that does not know where its tokens stand."""
    if not tokenizer.is_fast:
        raise UserError(
            f"Cannot answer the questions of {task.name} with {source}: its tokenizer is written in Python.",
            "Answers are found by characters, which fast tokenizers alone keep.",
            "Use the model's fast tokenizer, or leave the task out.",
        )


def _windows(
    rows: Dataset, splits: Splits, tokenizer: PreTrainedTokenizerBase, length: int, *, positions: bool
) -> Dataset:
    """Windows of question and context, with the answer's tokens to learn, or the characters of tokens to answer."""
    question, context = splits.task.columns
    label = splits.task.label

    def cut(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, Any]:
        made = tokenizer(
            [_shortened(q.strip(), tokenizer, min(QUESTION, length // 2)) for q in batch[question]],
            batch[context],
            truncation="only_second",
            max_length=length,
            stride=min(STRIDE, length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        owner, offsets = made.pop("overflow_to_sample_mapping"), made.pop("offset_mapping")
        inside = [
            [tuple(span) if kind == 1 else None for span, kind in zip(spans, made.sequence_ids(i), strict=True)]
            for i, spans in enumerate(offsets)
        ]
        if not positions:
            spans = [[list(s) if s else [-1, -1] for s in window] for window in inside]
            return {**made, "question": [indices[o] for o in owner], "spans": spans}
        found = [_place(window, batch[label][o]) for window, o in zip(inside, owner, strict=True)]
        return {**made, "start_positions": [s for s, _ in found], "end_positions": [e for _, e in found]}

    return rows.map(cut, batched=True, with_indices=True, remove_columns=rows.column_names, load_from_cache_file=False)


def _shortened(question: str, tokenizer: PreTrainedTokenizerBase, most: int) -> str:
    """The question as far as its first tokens reach."""
    spans = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return question[: spans[most - 1][1]] if len(spans) > most else question


def _place(window: Sequence[tuple[int, int] | None], answer: Mapping[str, Sequence[Any]]) -> tuple[int, int]:
    """First and last token of the answer in a window; (0, 0), the first token, if it is not there."""
    if not answer["text"]:
        return 0, 0
    first = answer["answer_start"][0]
    last = first + len(answer["text"][0])
    tokens = [i for i, span in enumerate(window) if span is not None and span[0] < last and span[1] > first]
    spans = [s for s in window if s is not None]
    if not tokens or not spans or spans[0][0] > first or spans[-1][1] < last:
        return 0, 0
    return tokens[0], tokens[-1]


def answers(
    contexts: Sequence[str],
    windows: Dataset,
    starts: NDArray[np.floating],
    ends: NDArray[np.floating],
    unanswerable: bool,
) -> list[str]:
    """The best span of each question over its windows; nothing, where that scores higher and is allowed.

    Args:
        contexts: of each question.
        windows: with `question`, whose window it is, and `spans`, the characters of each token, -1 outside.
        starts: logits (windows, tokens), padded on the right.
        ends: the same for ends.
        unanswerable: whether nothing may be said.
    """
    best: dict[int, tuple[float, str]] = {}
    nothing: dict[int, float] = collections.defaultdict(lambda: np.inf)
    for owner, spans, start, end in zip(windows["question"], windows["spans"], starts, ends, strict=True):
        places = np.asarray(spans)
        nothing[owner] = min(nothing[owner], float(start[0] + end[0]))
        usable = np.flatnonzero(places[:, 0] >= 0)
        first = usable[np.argsort(start[usable])[::-1][:BEST]]
        last = usable[np.argsort(end[usable])[::-1][:BEST]]
        # (starts, ends): what each pair scores, where it is a span
        pairs = start[first][:, None] + end[last][None, :]
        width = last[None, :] - first[:, None]
        pairs = np.where((width >= 0) & (width < LONGEST), pairs, -np.inf)
        if pairs.size and np.isfinite(pairs.max()):
            i, j = np.unravel_index(pairs.argmax(), pairs.shape)
            text = contexts[owner][places[first[i]][0] : places[last[j]][1]]
            best[owner] = max(best.get(owner, (-np.inf, "")), (float(pairs[i, j]), text))
    said = []
    for owner in range(len(contexts)):
        value, text = best.get(owner, (-np.inf, ""))
        said.append("" if unanswerable and nothing[owner] > value else text)
    return said


def scores(said: Sequence[str], right: Sequence[Sequence[str]], unanswerable: bool) -> dict[str, float]:
    """Exact match and token F1, means over questions, 0 to 1.

    Args:
        said: the answer to each question.
        right: the right answers to each, of which none means that nothing is right.
        unanswerable: whether nothing may be said; of right answers those of articles and punctuation alone are none
            then, as they are to the script of 2.0.
    """
    if unanswerable:
        right = [[r for r in rs if normalised(r)] for rs in right]
    pairs = list(zip(said, [rs or [""] for rs in right], strict=True))
    return {
        "exact": float(np.mean([max(float(normalised(s) == normalised(r)) for r in rs) for s, rs in pairs])),
        "span_f1": float(np.mean([max(token_f1(s, r, unanswerable) for r in rs) for s, rs in pairs])),
    }


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces."""
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(said: str, right: str, unanswerable: bool) -> float:
    """F1 over the words of two answers; 0 if one has none, and 1 if neither has any and nothing may be said."""
    ours, theirs = normalised(said).split(), normalised(right).split()
    if not ours and not theirs:
        return float(unanswerable)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)
