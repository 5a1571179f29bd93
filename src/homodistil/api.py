"""The package's own verbs, for Python: the same runs as the command line's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from os.path import exists, expanduser
from pathlib import Path
from typing import Any

from homodistil.axes.families import read_family, register
from homodistil.compress import plan as planning
from homodistil.compress.plan import Planned
from homodistil.distill import loop
from homodistil.distill.arrival import Result
from homodistil.errors import UserError
from homodistil.kinds import called, folder_named, model_named, named
from homodistil.models.teacher import architecture
from homodistil.models.trim import Texts, Trimmed, trim_folder, trimmed_architecture
from homodistil.reading import build, load, over
from homodistil.reading import preset as presets
from homodistil.recipe import IN_MEMORY, Target
from homodistil.reports.live import Display
from homodistil.rundir import RunDir


def distil(
    teacher: str | PathLike[str],
    data: str | PathLike[str] | Iterable[str],
    target: Target | Iterable[Target],
    out: str | PathLike[str],
    *,
    display: Display | None = None,
    preset: str | None = None,
    **options: Any,
) -> Result:
    """Make a smaller student of a teacher, without labels.

    Args:
        teacher: a folder or a hub name.
        data: a text file, a folder, a dataset (see `Recipe`), or the texts themselves: those of a list, an array or a
            column are shuffled, those of any other iterable come in its order, and its first ones are held out.
        target: a keep ratio (0.5), a parameter budget (8_000_000 or "8M"), a shape or a published size, or several of
            them.
        out: the run's folder; it must be new.
        display: where progress is shown, such as `homodistil.Display()`; nowhere by default.
        preset: a recipe in part that comes with the package, such as `paper`; options win over it, one by one.
        options: any other key of `Recipe`, such as `tokens="2M"` or `losses={"attention": 0}`.

    Returns:
        Where the students are, and what was measured.

    Raises:
        UserError: input that the caller can correct.
        RunStopped: SIGTERM or Ctrl-C; the state has been saved.
    """
    texts = _texts(data)
    values = {
        "teacher": model_named(teacher),
        "data": texts if isinstance(texts, str) else IN_MEMORY,
        "target": target,
        "out": folder_named(out),
        **over(presets(preset) if preset else {}, options),
    }
    return loop.distil(build(values).resolved(), texts=None if isinstance(texts, str) else texts, display=display)


def resume(out: str | PathLike[str], *, data: Iterable[str] | None = None, display: Display | None = None) -> Result:
    """Go on with a run that was stopped or killed, from its newest whole checkpoint; a finished run is returned.

    Args:
        out: the run's folder.
        data: the texts, for a run that was given texts and no file.
        display: where progress is shown, such as `homodistil.Display()`; nowhere by default.

    Returns:
        Where the students are, and what was measured.

    Raises:
        UserError: there is no run, or its recipe, its teacher or its data has changed or is missing, or no checkpoint
            is whole.
        RunStopped: SIGTERM or Ctrl-C; the state has been saved.
    """
    folder = RunDir(Path(expanduser(folder_named(out))))
    if not exists(folder.recipe):
        raise UserError(
            f"Cannot resume {out}: there is no run.",
            "A run's folder holds the recipe.yaml that it was started with.",
            "Check the path, or start a run with `homodistil distil TEACHER --data TEXT --target 0.5 --out FOLDER`.",
        )
    recipe = replace(load(folder.recipe), out=str(folder.path))
    return loop.distil(recipe, resume=True, texts=data if data is None else _texts(data), display=display)


def plan(
    teacher: str | PathLike[str],
    target: Target | Iterable[Target],
    *,
    data: str | PathLike[str] | Iterable[str] | None = None,
    column: str = "text",
    target_column: str | None = None,
    prompts: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    family: str | PathLike[str] | None = None,
) -> tuple[Planned, list[Planned]]:
    """What would come out of a teacher: its own figures, and those of each target, widest first. No training.

    Reads the teacher's configuration, and of a folder which weights its file holds, without loading them. Bytes are of
    weights in float32.

    Args:
        teacher: a folder or a hub name.
        target: one or several, as `distil` takes them.
        data: plan for the tokens of this text alone, as with `trim_vocab`; a file, a folder, a dataset, or the texts.
        column: its text column, of data that has columns.
        target_column: a second one, such as what an encoder-decoder says to a text.
        prompts: what is put before its texts; by default what a sentence encoder comes with.
        trust_remote_code: run code that comes with the teacher.
        family: a file that describes the teacher's family, where it is none of the package's.

    Returns:
        The teacher's figures, and those of each target.

    Raises:
        UserError: the teacher, a target or the data cannot be used.
    """
    if family is not None:
        register(read_family(named("family", family, "'family.yaml'")))
    layout, shape = architecture(model_named(teacher), trust_remote_code=trust_remote_code)
    figures = planning.teacher_figures(layout, shape)
    if data is not None:
        layout, _ = trimmed_architecture(
            model_named(teacher),
            _columns(data, column, target_column),
            prompts=_before(prompts, target_column),
            trust_remote_code=trust_remote_code,
        )
    return figures, planning.plan(layout, shape, target)


def trim_vocabulary(
    model: str | PathLike[str],
    data: str | PathLike[str] | Iterable[str],
    out: str | PathLike[str],
    *,
    column: str = "text",
    target_column: str | None = None,
    prompts: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    family: str | PathLike[str] | None = None,
) -> Trimmed:
    """Drop the tokens that a text never uses, from tokenizer, embeddings and language-model head. No training.

    The text is split into the same tokens as before, and the model says the same of it. Special and added tokens, and
    single characters and bytes, stay, so that other text can be read too.

    Args:
        model: a folder or a hub name, of a model that `distil` takes as a teacher.
        data: a text file, a folder, a dataset (see `Recipe`), or the texts themselves, readable twice.
        out: the folder of the trimmed model; it must be new.
        column: the text column of data that has columns.
        target_column: a second one, such as what an encoder-decoder says to a text.
        prompts: what is put before the texts; by default what a sentence encoder comes with.
        trust_remote_code: run code that comes with the model.
        family: a file that describes the model's family, where it is none of the package's.

    Returns:
        Where it is, and what was left of it.

    Raises:
        UserError: the model or the text cannot be used, the tokenizer is no fast one, or `out` is taken.
    """
    if family is not None:
        register(read_family(named("family", family, "'family.yaml'")))
    return trim_folder(
        model_named(model),
        _columns(data, column, target_column),
        Path(expanduser(folder_named(out))),
        prompts=_before(prompts, target_column),
        trust_remote_code=trust_remote_code,
    )


def _texts(data: str | PathLike[str] | Iterable[str]) -> str | Iterable[str]:
    """A path or a name as a text, and texts as they are."""
    if isinstance(data, str | PathLike):
        return str(data)
    # of a mapping, such as a dataset in splits, the names would be read
    if not isinstance(data, Iterable) or isinstance(data, Mapping | bytes):
        raise UserError(
            f"Cannot read text from {called(data)}.",
            "Data must be a path or the name of a dataset, as a text or a Path, or texts, each a string.",
            "Give, for example, 'corpus.txt' or dataset['train']['text'].",
        )
    return data


def _columns(data: str | PathLike[str] | Iterable[str], column: str, target: str | None) -> Texts:
    texts = _texts(data)
    if target is not None and not isinstance(texts, str):
        raise UserError(
            f"Cannot read a second column of texts in memory (target_column = {target}).",
            "Columns are those of a file or of a dataset.",
            "Give the texts of both as one list, or save them as .jsonl.",
        )
    return Texts(texts, column, target, options="--text-")


def _before(prompts: Sequence[str] | None, target: str | None) -> Sequence[str] | None:
    """What texts are read after; what is said to one stands after no prompt."""
    if prompts is None:
        return None
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(
            f"Cannot put {prompts!r} before texts.",
            "Prompts are a list, each of them a text.",
            "Give, for example, prompts=['query: ', 'passage: '].",
        )
    return prompts if target is None else [*prompts, ""]
