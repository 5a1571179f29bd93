"""The main job: `homodistil distil`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from homodistil.errors import UserError

if TYPE_CHECKING:
    from homodistil.distill.arrival import Result
    from homodistil.recipe import Recipe


def distil(words: list[str]) -> None:
    """Make students, or go on with a run."""
    if any(word.partition("=")[0] == "--resume" for word in words):
        parser = argparse.ArgumentParser("homodistil distil", usage="homodistil distil --resume FOLDER")
        parser.add_argument("--resume", metavar="FOLDER", nargs="?", help="the folder of a run that was stopped")
        known, others = parser.parse_known_args(words)
        if known.resume is None:
            from homodistil.reading import no_value

            raise no_value("--resume")
        if others:
            raise UserError(
                f"Cannot resume with other options ({' '.join(others)}).",
                "A run goes on with the recipe that it was started with.",
                f"Use `homodistil distil --resume {known.resume}` alone, or start a new run.",
            )

        from homodistil.api import resume
        from homodistil.reports.live import Display

        _show_result(resume(known.resume, display=Display()))
        return
    recipe = read_recipe(words)

    from homodistil.distill.loop import distil
    from homodistil.reports.live import Display

    _show_result(distil(recipe, display=Display()))


def read_recipe(words: list[str]) -> Recipe:
    """The recipe that the options of `distil` describe, on top of `--config` if it is given."""
    from jsonargparse import ArgumentError

    from homodistil.reading import PRESETS, content_of, nearest_option, no_value, parser, plain, preset, unreadable
    from homodistil.recipe import Recipe

    reader = parser(
        prog="homodistil distil",
        usage="homodistil distil TEACHER --data TEXT --target 0.5 --out FOLDER [--preset paper] [options]\n"
        "       homodistil distil --config RECIPE.yaml [options]\n"
        "       homodistil distil --resume FOLDER",
        description="Distil while cutting. --resume goes on with a run that was stopped, by its own recipe. --preset "
        "paper cuts and learns as the paper does; options win over it.",
    )
    if words and not words[0].startswith("-"):
        words = ["--teacher", *words]
    known = {option.lstrip("-") for action in reader._actions for option in action.option_strings}
    words = _as_declared(words, {name for name, value in reader.get_defaults().items() if isinstance(value, bool)})
    recipes: list[str] = []
    options: list[str] = []
    targets = 0
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if name.startswith("--") and name[2:].rstrip("+") not in {*known, "preset"}:
            raise UserError(
                f"There is no option {name}.",
                "Options are those of a recipe.",
                nearest_option(name[2:]),
            )
        if name in ("--target", "--preset", "--config") and not equals:
            value = next(pending, "--")
            if value.startswith("--"):
                raise no_value(name)
        if name == "--target":
            # the first one replaces what a --config says, the others come on top
            options.append(f"--target+={value}" if targets else f"--target={json.dumps([value])}")
            targets += 1
            continue
        if name == "--preset":
            preset(value)
            recipes.append(f"--config={PRESETS / value}.yaml")
            continue
        if name == "--config":
            content = content_of(
                value, "recipe", "--config takes a YAML file, in UTF-8, of the options that --help lists."
            )
            # in YAML as it is written, 1e6 is a text to one reader and a number to another
            recipes.append(f"--config={json.dumps(plain(content), ensure_ascii=False, default=str)}")
            continue
        options.append(word)
    if _asked("--tokens", options) and not _asked("--steps", options):
        # steps win over tokens, and an option over both
        recipes.append("--steps=null")
    try:
        # the parser takes what comes last, and options win wherever they stand
        read = vars(reader.instantiate(reader.parse_args([*recipes, *options])))
    except ArgumentError as error:
        raise unreadable(str(error)) from error
    return Recipe(**{name: value for name, value in read.items() if name != "config"}).resolved()


def _asked(name: str, options: list[str]) -> bool:
    return any(option.partition("=")[0] == name for option in options)


def _as_declared(words: list[str], switches: set[str]) -> list[str]:
    """Options with underscores where dashes were written, and a switch without a value turned on."""
    made = []
    for word, after in zip(words, [*words, "--"][1:], strict=True):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
            on = "=true" if name in switches and not equals and after.startswith("--") else ""
            word = f"--{name}{equals}{value}{on}"
        made.append(word)
    return made


def _show_result(result: Result) -> None:
    from accelerate import PartialState

    # a backend that is not told of the end complains of it
    PartialState().destroy_process_group()
    if not PartialState().is_main_process:
        return
    for target, folder in result.students.items():
        held = "  ".join(f"{name} {value:.4f}" for name, value in result.heldout[target].items())
        print(f"{target}: {folder}\n    on held-out data: {held}")
