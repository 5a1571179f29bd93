"""The command line: `homodistil plan`, `distil` and `demo`. Imports what a verb needs when it is called."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from homodistil.errors import RunStopped, UserError, nearest

if TYPE_CHECKING:
    from homodistil.compress.plan import Planned
    from homodistil.distill.loop import Result
    from homodistil.recipe import Recipe

USAGE = """usage: homodistil VERB ...

Make pre-trained transformers small. The student starts as a copy of the teacher and is distilled on plain text while
its least important units are cut away.

  plan     what would come out: shape, parameters, operations, memory; no training
  distil   make smaller students of a teacher, or go on with a run that was stopped
  demo     halve all-MiniLM-L6-v2 on real text and show what came out

`homodistil VERB --help` says more.
"""
TARGET_HELP = (
    "a keep ratio of the width (0.5), a parameter budget (17.3M), a shape (hidden=240,heads=12,ffn=960) or a preset "
    "(homobert-base, homobert-small, homobert-xsmall, homobert-tiny); several times for several"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for input to correct, 128 + signal for a stop."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _be_quiet()
    try:
        if not words or words[0] in ("-h", "--help"):
            print(USAGE, end="")
            return 0 if words else 2
        if words[0] == "--version":
            from homodistil import __version__

            print(f"homodistil {__version__}")
            return 0
        if words[0] not in VERBS:
            raise UserError(
                f"There is no verb {words[0]!r}.",
                f"The verbs are {', '.join(VERBS)}.",
                nearest(words[0], VERBS),
            )
        VERBS[words[0]](words[1:])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except RunStopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("Stopped before the next save; what was saved before is whole.", file=sys.stderr)
        return 130
    return 0


def _plan(words: list[str]) -> None:
    parser = argparse.ArgumentParser("homodistil plan", description="What would come out of a teacher. No training.")
    parser.add_argument("teacher", metavar="TEACHER", help="a folder or a hub name; only its configuration is read")
    parser.add_argument("--target", action="append", required=True, help=TARGET_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a teacher")
    options = parser.parse_args(words)

    from homodistil.api import plan

    teacher, targets = plan(options.teacher, options.target, trust_remote_code=options.trust_remote_code)
    if options.json:
        own = {k: v for k, v in teacher.as_json().items() if k != "target"}
        print(json.dumps({"teacher": own, "targets": [p.as_json() for p in targets]}, indent=2))
    else:
        _show_plan(teacher, targets)


def _show_plan(teacher: Planned, targets: Sequence[Planned]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    budgets = any(row.missed is not None for row in targets)
    header = [
        "hidden",
        "heads",
        "ffn",
        "parameters",
        "MFLOPs/token",
        "MB",
        *(["off budget"] if budgets else []),
    ]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in (teacher, *targets):
        shape = row.shape
        cells = [str(shape["hidden"]), f"{shape['heads']} x {shape['head_dim']}", str(shape["ffn"])]
        cells += [f"{row.parameters:,}", f"{row.flops_per_token / 1e6:.1f}", f"{row.memory_bytes / 1e6:.1f}"]
        table.add_row(row.target, *cells, *(["" if row.missed is None else f"{row.missed:+.2%}"] if budgets else []))
    # a pipe counts as 80 columns, which would cut figures off
    Console(width=max(100, Console().width)).print(table)
    print("FLOPs of a forward pass at 128 tokens a sequence; MB of the weights in float32.")


def _distil(words: list[str]) -> None:
    if any(word.partition("=")[0] == "--resume" for word in words):
        parser = argparse.ArgumentParser("homodistil distil", usage="homodistil distil --resume FOLDER")
        parser.add_argument("--resume", metavar="FOLDER")
        known, others = parser.parse_known_args(words)
        if others:
            raise UserError(
                f"Cannot resume with other options ({' '.join(others)}).",
                "A run goes on with the recipe that it was started with.",
                f"Use `homodistil distil --resume {known.resume}` alone, or start a new run.",
            )

        from homodistil.api import resume
        from homodistil.report.live import Display

        _show_result(resume(known.resume, display=Display()))
        return
    recipe = _read_recipe(words)

    from homodistil.distill.loop import distil
    from homodistil.report.live import Display

    _show_result(distil(recipe, display=Display()))


def _read_recipe(words: list[str]) -> Recipe:
    """The recipe that the options of `distil` describe, on top of `--config` if it is given."""
    import yaml
    from jsonargparse import ArgumentError

    from homodistil.recipe import Recipe, parser, refuse_unknown, unreadable

    reader = parser(
        prog="homodistil distil",
        usage="homodistil distil TEACHER --data TEXT --target 0.5 --out FOLDER [options]\n"
        "       homodistil distil --config RECIPE.yaml [options]\n"
        "       homodistil distil --resume FOLDER",
    )
    if words and not words[0].startswith("-"):
        words = ["--teacher", *words]
    known = {option.lstrip("-") for action in reader._actions for option in action.option_strings}
    rewritten: list[str] = []
    targets = 0
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if name.startswith("--") and name[2:].rstrip("+") not in known:
            raise UserError(
                f"There is no option {name}.",
                "Options are those of a recipe.",
                nearest(name[2:], sorted(known)),
            )
        if name == "--target":
            value = value if equals else next(pending, "")
            # the first one replaces what a --config says, the others come on top
            rewritten.append(f"--target+={value}" if targets else f"--target={json.dumps([value])}")
            targets += 1
            continue
        if name == "--config":
            value = value if equals else next(pending, "")
            try:
                with open(value) as file:
                    content = yaml.safe_load(file)
            except (OSError, yaml.YAMLError) as error:
                raise UserError(
                    f"Cannot read the recipe {value}: {str(error).splitlines()[0]}",
                    "--config takes a YAML file of the options that --help lists.",
                    "Check the path, or correct the file.",
                ) from error
            refuse_unknown(content if isinstance(content, dict) else {})
            rewritten.append(f"--config={value}")
            continue
        rewritten.append(word)
    try:
        read = vars(reader.instantiate(reader.parse_args(rewritten)))
    except ArgumentError as error:
        raise unreadable(str(error)) from error
    return Recipe(**{name: value for name, value in read.items() if name != "config"}).resolved()


def _show_result(result: Result) -> None:
    for target, folder in result.students.items():
        held = "  ".join(f"{name} {value:.4f}" for name, value in result.heldout[target].items())
        print(f"{target}: {folder}\n    on held-out text: {held}")


def _demo(words: list[str]) -> None:
    parser = argparse.ArgumentParser("homodistil demo", description="Halve all-MiniLM-L6-v2 on real text.")
    parser.add_argument("--out", default="runs/demo", help="the run's folder; a number is added if it is taken")
    parser.add_argument("--tokens", default="600k", help="how long to train (default: 600k, some minutes on 2 cores)")
    options = parser.parse_args(words)

    from homodistil.demo import demo

    demo(options.out, options.tokens)


def _be_quiet() -> None:
    """One display at a time: other libraries' progress bars and notes would tear ours."""
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")


VERBS: dict[str, Callable[[list[str]], Any]] = {"plan": _plan, "distil": _distil, "demo": _demo}

if __name__ == "__main__":
    sys.exit(main())
