"""The command line: its verbs, each of which imports what it needs when it is called."""

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

  plan      what would come out: shape, parameters, operations, memory; no training
  distil    make smaller students of a teacher, or go on with a run that was stopped
  evaluate  what a model can do, how large and how fast it is, beside its teacher
  families  which models can be cut, along which axes
  report    one page of pictures and tables out of runs
  demo      halve all-MiniLM-L6-v2 on real text and show what came out

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
    parser.add_argument("--family", help="a file that describes the teacher's family (docs/adding-a-family.md)")
    options = parser.parse_args(words)

    from homodistil.api import plan

    teacher, targets = plan(
        options.teacher, options.target, trust_remote_code=options.trust_remote_code, family=options.family
    )
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
    whole_heads = "head_dim" not in teacher.shape
    header = [
        *(teacher.shape if whole_heads else ("hidden", "heads", "ffn")),
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
        both = () if whole_heads else (shape["hidden"], f"{shape['heads']} x {shape['head_dim']}", shape["ffn"])
        cells = [str(width) for width in (both or shape.values())]
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

    from homodistil.reading import PRESETS, parser, preset, refuse_unknown, unreadable
    from homodistil.recipe import Recipe

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
        if name.startswith("--") and name[2:].rstrip("+") not in {*known, "preset"}:
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
        if name == "--preset":
            value = value if equals else next(pending, "")
            preset(value)
            rewritten.append(f"--config={PRESETS / value}.yaml")
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


def _evaluate(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "homodistil evaluate",
        description="What a model can do, how large and how fast it is. Numbers of finished parts are kept in --json.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder or hub name that from_pretrained opens")
    add("--against", metavar="TEACHER", help="the teacher, which is measured alike, beside it")
    add("--tasks", type=_names, default=[], help="fine-tune on them: names of GLUE, squad, squad_v2, or own files")
    add(
        "--pairs",
        type=_names,
        default=[],
        help="compare pairs by similarity, without fine-tuning: stsb, or a file",
    )
    add("--text", help="plain text that it did not learn from: language modelling, agreement with the teacher")
    add("--data-dir", help="where the tasks lie, as NAME/train.jsonl or glue/NAME/train.jsonl (default: the hub)")
    add("--seeds", type=int, default=3, help="how often each task is learnt (default: 3)")
    add("--grid", action="store_true", help="choose the learning rate on training rows that are held out")
    add("--limit", type=int, help="learn each task from that many rows at most")
    add("--columns", type=_names, default=[], help="the text columns of one's own tasks")
    add("--label", default="label", help="the label's column of one's own tasks (default: label)")
    add("--text-column", default="text", help="the column of --text, where it has columns (default: text)")
    add("--lengths", type=_numbers, default=[32, 128], help="tokens at which it is timed (default: 32,128)")
    add("--threads", type=int, help="of the processor while timing (default: all)")
    add("--no-speed", action="store_true", help="leave the timing out")
    add("--trust-remote-code", action="store_true", help="run code that comes with a model")
    add("--json", metavar="FILE", help="keep the numbers there; those that it holds are not measured again")
    options = parser.parse_args(words)
    for name in ("seeds", "limit", "threads"):
        _check_count(f"--{name}", getattr(options, name))
    for length in options.lengths:
        _check_count("--lengths", length)

    from pathlib import Path

    from rich.console import Console

    from homodistil.evaluate.evaluation import evaluate
    from homodistil.report.tables import terminal

    notes = Console(stderr=True)
    records = evaluate(
        options.model,
        tasks=options.tasks,
        pairs=options.pairs,
        text=options.text,
        data_dir=options.data_dir,
        against=options.against,
        seeds=options.seeds,
        grid=options.grid,
        limit=options.limit,
        columns=options.columns,
        label=options.label,
        text_column=options.text_column,
        lengths=options.lengths,
        threads=options.threads,
        time=not options.no_speed,
        trust_remote_code=options.trust_remote_code,
        json=Path(options.json) if options.json else None,
        say=lambda what: notes.print(f"measuring {what} ...", highlight=False),
    )
    # a pipe counts as 80 columns, which would cut figures off
    Console(width=max(120, Console().width)).print(terminal(records))
    print("± is the standard deviation over seeds; scores are 0 to 100, as GLUE defines them.")


def _names(text: str) -> list[str]:
    return [name for name in (word.strip() for word in text.split(",")) if name]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _names(text)]


def _check_count(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"Cannot use {option} {value}.", "It must be a whole number from 1 up.", f"Use {option} 1.")


def _report(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "homodistil report", description="One self-contained page, and its pictures, out of runs.", allow_abbrev=False
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="FILE",
        help="what `homodistil evaluate --json` wrote; several times for several; RUN/evaluation.json is found",
    )
    parser.add_argument("--out", default="report", help="the folder of index.html and its pictures (default: report)")
    options = parser.parse_args(words)

    from pathlib import Path

    from homodistil.report.page import report

    page = report([Path(run) for run in options.runs], [Path(f) for f in options.evaluation], Path(options.out))
    print(page)


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


def _families(words: list[str]) -> None:
    parser = argparse.ArgumentParser("homodistil families", description="Which models can be cut, along which axes.")
    parser.add_argument("--family", help="a file of your own (docs/adding-a-family.md), checked and listed as well")
    options = parser.parse_args(words)

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from homodistil.axes.families import known, read_family, register

    if options.family:
        register(read_family(options.family))
    table = Table("family", "model types", "widths", "rules", box=box.SIMPLE_HEAD)
    for family in known():
        head_dim = "head_dim" if "head_dim" in family.widths.values() else "a fixed head_dim"
        rules = [f"hidden = heads x {head_dim}"] if family.bound else []
        rules += [family.note] if family.note else []
        widths = ", ".join(dict.fromkeys(family.widths.values()))
        table.add_row(family.name, ", ".join(family.model_types), widths, "; ".join(rules))
    Console(width=max(110, Console().width)).print(table)


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "plan": _plan,
    "distil": _distil,
    "evaluate": _evaluate,
    "families": _families,
    "report": _report,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
