"""The walls: which part may know of which, read off the source."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import homodistil
from homodistil.axes.families import FAMILIES
from homodistil.axes.notation import parse_table

ROOT = Path(homodistil.__file__).parent
FLOORS = [
    {"errors"},
    {"settings", "kinds", "packing"},
    {"recipe", "rundir"},
    {"files"},
    {"text"},
    {"reading", "images", "loading"},
    {"tokenizer", "noise"},
    {"reports"},
    {"axes"},
    {"compress"},
    {"models", "fused"},
    {"data", "losses"},
    {"distill"},
    {"evaluation"},
    {"pinned"},
    {"assets"},
    {"api"},
    {"demo"},
    {"cli"},
]
"""From the floor that knows nothing to the one that may know everything."""

FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def _part(path: Path) -> str:
    """The floor's part that a file belongs to: its folder, or its own name."""
    return path.parts[0].removesuffix(".py")


LIGHT = [
    Path("compress/schedule.py"),
    *(p for p in FILES if _part(p) in ("errors", "kinds", "settings", "recipe", "reading", "rundir", "reports")),
]
"""What answers `--help` and refuses a wrong recipe, and must not wait seconds for torch."""


def _floor(part: str) -> int:
    return next(k for k, floor in enumerate(FLOORS) if part in floor)


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, for its types too; `from a import b` is `a.b`."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots, which these tests do not read"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _parts(path: Path) -> set[str]:
    """The parts of this package that a file imports."""
    names = {name for name in _imports(path) if name.split(".")[0] == "homodistil"}
    return {name.split(".")[1] if "." in name else "" for name in names - {"homodistil.__version__"}}


@pytest.mark.parametrize("path", [p for p in FILES if p != Path("__init__.py")], ids=str)
def test_a_file_knows_only_the_floors_above_it(path: Path) -> None:
    """A file imports from its own folder and from the floors before its own, and nothing else of the package."""
    part = _part(path)
    known = {name for floor in FLOORS[: _floor(part)] for name in floor} | {part}
    assert _parts(path) <= known


def test_every_part_has_a_floor() -> None:
    """No part of the package stands outside the floors, and the folders and files are really there."""
    assert {_part(path) for path in FILES} - {"__init__"} == {part for floor in FLOORS for part in floor}


@pytest.mark.parametrize("path", LIGHT, ids=str)
def test_what_must_be_quick_imports_no_torch(path: Path) -> None:
    """Nothing light imports torch or transformers, neither at the top nor inside a function."""
    assert not {name.split(".")[0] for name in _imports(path)} & {"torch", "transformers"}


def test_what_must_be_quick_loads_no_torch() -> None:
    """Importing everything light loads neither torch nor transformers by another way."""
    modules = [".".join(("homodistil", *path.with_suffix("").parts)).removesuffix(".__init__") for path in LIGHT]
    program = f"import sys, {', '.join(modules)}; sys.exit(str({{'torch', 'transformers'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert loaded.stderr.strip() == "set()"


def _names_of_families() -> set[str]:
    """Two neighbouring words of each parameter's or module's name in any family's table."""
    patterns = {p for f in FAMILIES for table in (f.rows, *f.heads.values()) for p in _patterns(table)}
    patterns |= {pattern for f in FAMILIES for pattern in f.attributes}
    words = [pattern.split(".") for pattern in patterns]
    return {f"{a}.{b}" for name in words for a, b in itertools.pairwise(name) if "*" not in (a, b)}


def _patterns(table: str) -> Iterator[str]:
    return (row.pattern for row in parse_table(table))


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "compress"], ids=str)
def test_the_cut_knows_no_familys_names(path: Path) -> None:
    """No string in compress holds a parameter's or module's name of any family: tables alone do."""
    names = _names_of_families()
    assert {"encoder.layer", "attention.self", "cls.predictions", "dense.weight"} <= names
    tree = ast.parse((ROOT / path).read_text())
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert not [text for text in strings if any(name in text for name in names)]


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "evaluation"], ids=str)
def test_evaluation_knows_nothing_of_how_a_model_was_made(path: Path) -> None:
    """Numbers about a model folder come from the folder alone: no distillation and no compression."""
    assert not _parts(path) & {"axes", "compress", "models", "fused", "data", "losses", "distill"}
