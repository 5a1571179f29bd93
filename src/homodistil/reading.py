"""How recipes are read: from the command line, YAML, presets and Python; an unknown key is an error. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from homodistil.errors import UserError, nearest
from homodistil.recipe import Recipe

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PRESETS = Path(__file__).parent / "presets"
"""Recipes in part, by name."""


def preset(name: str) -> dict[str, Any]:
    """The values of a recipe that comes with the package: `paper`.

    Raises:
        UserError: there is no such preset.
    """
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise UserError(f"There is no preset {name!r}.", f"Presets are {', '.join(known)}.", nearest(name, known))
    values: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    return values


def parser(**options: Any) -> ArgumentParser:
    """A command-line parser of all that a recipe says, which raises instead of leaving."""
    from jsonargparse import ArgumentParser

    made = ArgumentParser(exit_on_error=False, **options)
    made.add_argument("--config", action="config", help="a YAML file with any of the options below; options win")
    made.add_class_arguments(Recipe)
    return made


def build(values: Mapping[str, Any]) -> Recipe:
    """A recipe out of plain values, as from YAML or Python: nested groups may be mappings or dataclasses.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type or range.
    """
    plain = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for k, v in values.items()}
    if isinstance(plain.get("target"), str):
        plain["target"] = [plain["target"]]
    refuse_unknown(plain)
    from jsonargparse import ArgumentError

    reader = parser()
    try:
        read = vars(reader.instantiate(reader.parse_object(plain)))
    except ArgumentError as error:
        raise unreadable(str(error)) from error
    return Recipe(**{name: value for name, value in read.items() if name != "config"})


def load(path: Path) -> Recipe:
    """The recipe that a run's folder holds.

    Raises:
        UserError: it is missing, no YAML, or no recipe.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"Cannot read the recipe {path}: {str(error).splitlines()[0]}",
            "A recipe is a YAML file of the options that `homodistil distil --help` lists.",
            "Check the path, or correct the file.",
        ) from error
    return build(values if isinstance(values, dict) else {})


def refuse_unknown(values: Mapping[str, Any], group: Any = Recipe, prefix: str = "") -> None:
    """Raise a UserError that names the nearest known key if `values` has a key that no recipe has."""
    known = {f.name for f in fields(group)}
    hints = get_type_hints(group)
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"A recipe has no key {prefix}{key}.",
                f"Each key must be one of those that {'this group' if prefix else 'a recipe'} has.",
                nearest(key, sorted(known)),
            )
        if is_dataclass(hints[key]) and isinstance(value, Mapping):
            refuse_unknown(value, hints[key], f"{prefix}{key}.")


def unreadable(message: str) -> UserError:
    """What the parser said, in our three sentences."""
    words = " ".join(message.split())
    return UserError(
        f"Cannot read the recipe: {words}",
        "Each option must be known, and have a value of its type.",
        "`homodistil distil --help` lists them all.",
    )
