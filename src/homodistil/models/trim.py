"""A teacher with the vocabulary of its text: what is trimmed is the teacher, and its student is a copy of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os.path import abspath, exists, expanduser
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from homodistil.axes.layout import Layout
from homodistil.compress.vocabulary import Vocabulary, narrow, vocabulary_of, with_vocabulary
from homodistil.errors import UserError
from homodistil.models.student import save_student
from homodistil.models.teacher import Teacher, load_teacher, unloaded
from homodistil.reports.card import known_as
from homodistil.rundir import taken
from homodistil.text import open_text, strings


@dataclass(frozen=True)
class Trimmed:
    """A model whose vocabulary has been trimmed.

    Attributes:
        folder: where it is.
        tokens: before and after.
        parameters: before and after, tied ones once.
    """

    folder: Path
    tokens: tuple[int, int]
    parameters: tuple[int, int]


class Texts:
    """All texts of a corpus, as often as they are asked for.

    Args:
        data: a name for `text.open_text`, or the texts themselves.
        column: the text column.
        target: a second one.
        options: what the names of the columns begin with on the command line.

    Raises:
        UserError: the data cannot be found or read, or is a stream that can be read once only.
    """

    def __init__(
        self, data: str | Iterable[str], column: str = "text", target: str | None = None, options: str = "--text."
    ) -> None:
        if not isinstance(data, str) and iter(data) is data:
            raise UserError(
                "Cannot trim the vocabulary to a stream of text.",
                "All of the text is read before the first step, to know which tokens it uses, and then again.",
                "Give a file or a list of texts, or keep the whole vocabulary.",
            )
        self._rows = open_text(data, column, target=target, options=options) if isinstance(data, str) else data
        self._columns = [c for c in (column, target) if c is not None] if isinstance(data, str) else []

    def __iter__(self) -> Iterator[str]:
        if not self._columns:
            yield from strings(self._rows)
            return
        for rows in self._rows.select_columns(self._columns).iter(batch_size=1000):  # type: ignore[union-attr]
            for column in self._columns:
                yield from rows[column]


class InUse:
    """Texts as they are read in use: each of them after each of the prompts.

    Args:
        texts: can be read again and again.
        prompts: none at all is one that is empty.
    """

    def __init__(self, texts: Iterable[str], prompts: Sequence[str]) -> None:
        self._texts, self._prompts = texts, tuple(prompts) or ("",)

    def __iter__(self) -> Iterator[str]:
        # what is no text is passed over by who reads it
        return (p + t if isinstance(t, str) and t.strip() else t for t in self._texts for p in self._prompts)


def trim(teacher: Teacher, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase | None = None) -> Teacher:
    """The teacher with these tokens alone; its model is changed in place.

    Args:
        teacher: whole.
        vocabulary: what is left of its tokens.
        tokenizer: one with these tokens, if it has been made already.

    Raises:
        UserError: its tokenizer cannot be made smaller, or its configuration gives a role to a token that is gone.
    """
    made = tokenizer or with_vocabulary(teacher.tokenizer, vocabulary)
    return replace(teacher, processor=made, layout=narrow(teacher.model, teacher.layout, vocabulary))


def trim_to(teacher: Teacher, texts: Iterable[str], prompts: Sequence[str] | None = None) -> tuple[Teacher, Vocabulary]:
    """The teacher with the tokens of these texts alone, and which they are; its model is changed in place.

    Args:
        teacher: whole.
        texts: can be read again and again.
        prompts: what is put before them; by default the teacher's own.

    Raises:
        UserError: see `vocabulary_of`.
    """
    read = InUse(texts, teacher.prompts if prompts is None else prompts)
    vocabulary, tokenizer = vocabulary_of(read, teacher.tokenizer, teacher.model, teacher.layout)
    return trim(teacher, vocabulary, tokenizer), vocabulary


def trim_folder(
    source: str,
    texts: Iterable[str],
    out: Path,
    *,
    prompts: Sequence[str] | None = None,
    trust_remote_code: bool = False,
) -> Trimmed:
    """Save a model, in its own precision, with the tokens of these texts alone, after these prompts. No training.

    Raises:
        UserError: there is something at `out`, it cannot be written to, the disk is full, the model cannot be loaded
            (see `load_teacher`), or its vocabulary cannot be trimmed (see `vocabulary_of`).
    """
    if taken(out):
        raise UserError(
            f"Cannot save to {out}: something is there.",
            "The folder must be new or empty, so that nothing is overwritten.",
            "Give --out a new name.",
        )
    teacher = load_teacher(source, trust_remote_code=trust_remote_code)
    before = teacher.model.num_parameters()
    teacher, vocabulary = trim_to(teacher, texts, prompts)
    tokens = (vocabulary.before, len(vocabulary.rows))
    name = known_as(abspath(expanduser(source)) if exists(expanduser(source)) else source)
    save_student(
        out,
        teacher.model,
        teacher,
        f"# {name}, fewer tokens\n\n{name} with {tokens[1]:,} of its {tokens[0]:,} tokens, those of a corpus: texts of "
        "it have the same tokens and outputs as before. Other text can be read, in more and shorter tokens. Made with "
        "HomoDistil; it opens with plain transformers.\n",
        then="or give --out another place",
    )
    return Trimmed(out, tokens, (before, teacher.model.num_parameters()))


def trimmed_architecture(
    source: str, texts: Iterable[str], *, prompts: Sequence[str] | None = None, trust_remote_code: bool = False
) -> tuple[Layout, Vocabulary]:
    """The axes of a teacher with the tokens of these texts alone, after these prompts, without its weights.

    Raises:
        UserError: see `architecture` and `vocabulary_of`.
    """
    model, tokenizer, own = unloaded(source, trust_remote_code=trust_remote_code)
    layout = Layout.of(model)
    vocabulary, _ = vocabulary_of(InUse(texts, own if prompts is None else prompts), tokenizer, model, layout)
    return narrow(model, layout, vocabulary), vocabulary
