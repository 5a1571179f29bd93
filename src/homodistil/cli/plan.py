"""What can be cut, and what would come out: `homodistil families` and `homodistil plan`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from homodistil.cli.trim import PROMPT_HELP

if TYPE_CHECKING:
    from homodistil.compress.plan import Planned

TARGET_HELP = (
    "a keep ratio of the width (0.5), a parameter budget (17.3M), either of them with a depth (17.3M,layers=6), a "
    "shape (hidden=240,heads=12,ffn=960) or a published size (homobert-base, homobert-small, homobert-xsmall, "
    "homobert-tiny); several times for several"
)


def plan(words: list[str]) -> None:
    """Print what would come out."""
    parser = argparse.ArgumentParser(
        "homodistil plan", description="What would come out of a teacher. No training.", allow_abbrev=False
    )
    parser.add_argument("teacher", metavar="TEACHER", help="a folder or a hub name; no weights are loaded")
    parser.add_argument("--target", action="append", required=True, help=TARGET_HELP)
    parser.add_argument(
        "--data", metavar="TEXT", help="count only the tokens that this text uses, as --trim_vocab does"
    )
    parser.add_argument("--text-column", default="text", help="its column, where it has columns (default: text)")
    parser.add_argument("--text-target", metavar="COLUMN", help="a second column, of what is said to each text")
    parser.add_argument("--text-prompt", metavar="PROMPT", action="append", help=PROMPT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a teacher")
    parser.add_argument("--family", help="a file that describes the teacher's family (docs/adding-a-family.md)")
    options = parser.parse_args(words)

    from homodistil.api import plan
    from homodistil.compress.plan import refuse_growth
    from homodistil.errors import UserError

    teacher, targets = plan(
        options.teacher,
        options.target,
        data=options.data,
        column=options.text_column,
        target_column=options.text_target,
        prompts=options.text_prompt,
        trust_remote_code=options.trust_remote_code,
        family=options.family,
    )
    if options.json:
        own = {k: v for k, v in teacher.as_json().items() if k != "target"}
        print(json.dumps({"teacher": own, "targets": [p.as_json() for p in targets]}, indent=2))
    else:
        _show_plan(teacher, targets)
        try:
            refuse_growth(targets)
        except UserError as error:
            # they can be compared, and each be reached by itself
            print(f"\n{error}")


def _show_plan(teacher: Planned, targets: Sequence[Planned]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    budgets = any(row.missed is not None for row in targets)
    whole_heads = "head_dim" not in teacher.shape
    shallow = any(row.shape.get("layers") != teacher.shape.get("layers") for row in targets)
    widths = ["layers"] if shallow else []
    widths += [w for w in teacher.shape if w != "layers"] if whole_heads else ["hidden", "heads", "ffn"]
    header = [
        *widths,
        "parameters",
        "MFLOPs/token",
        "MB",
        *(["off budget"] if budgets else []),
    ]
    table = Table(box=box.SIMPLE_HEAD)
    # a long target is broken before a figure is cut off
    table.add_column("", overflow="fold")
    for name in header:
        table.add_column(name, justify="right", no_wrap=True)
    for row in (teacher, *targets):
        shape = row.shape
        written = {w: str(width) for w, width in shape.items()}
        written |= {} if whole_heads else {"heads": f"{shape['heads']} x {shape['head_dim']}"}
        cells = [written[w] for w in widths]
        cells += [f"{row.parameters:,}", f"{row.flops_per_token / 1e6:.1f}", f"{row.memory_bytes / 1e6:.1f}"]
        table.add_row(row.target, *cells, *(["" if row.missed is None else f"{row.missed:+.2%}"] if budgets else []))
    # a pipe counts as 80 columns
    Console(width=max(110, Console().width)).print(table)
    print(f"FLOPs of a forward pass at {teacher.sequence} tokens a sequence; MB of the weights in float32.")


def families(words: list[str]) -> None:
    """List the families."""
    parser = argparse.ArgumentParser(
        "homodistil families", description="Which models can be cut, along which axes.", allow_abbrev=False
    )
    parser.add_argument(
        "--family",
        help="a file of your own (docs/adding-a-family.md), listed as well; `plan` checks that it fits a model",
    )
    options = parser.parse_args(words)

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from homodistil.axes.families import known, read_family, register
    from homodistil.axes.shape import LAYERS
    from homodistil.axes.stack import lists_of

    if options.family:
        register(read_family(options.family))
    table = Table("family", "model types", "widths", "rules", box=box.SIMPLE_HEAD)
    for family in known():
        head_dim = "head_dim" if "head_dim" in family.widths.values() else "a fixed head_dim"
        rules = [f"hidden = heads x {head_dim}"] if family.bound else []
        rules += [f"{width} a multiple of {' x '.join(p.split())}" for width, p in family.divided.items()]
        rules += [family.note] if family.note else []
        rules += (
            ["the first layer stays"] if any("^" in table for table in (family.rows, *family.heads.values())) else []
        )
        rules += ["all layers stay"] if family.decoder else []
        widths = [*dict.fromkeys(family.widths.values()), *([LAYERS] if len(lists_of(family)) == 1 else [])]
        table.add_row(family.name, ", ".join(family.model_types), ", ".join(widths), "; ".join(rules))
    Console(width=max(110, Console().width)).print(table)
