"""How recipes are read: from the command line, YAML, presets and Python; an unknown key is an error. No torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from homodistil.errors import UserError, first_line, nearest
from homodistil.kinds import declared, wrong_kind
from homodistil.recipe import Recipe, as_written, scalar, targets_of

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PRESETS = Path(__file__).parent / "presets"
"""Recipes in part, by name."""
_GROUPS = {name for name, hint in get_type_hints(Recipe).items() if is_dataclass(hint)}
_NEEDED = {
    "teacher": "sentence-transformers/all-MiniLM-L6-v2",
    "data": "corpus.txt",
    "target": "0.5",
    "out": "runs/half",
}
"""What a recipe must say, with examples."""
_CLOSE = 0.6
"""From which likeness on, of 0 to 1, a name counts as a misspelt one."""
_RULE = "A recipe is a YAML file, in UTF-8, of the options that `homodistil distil --help` lists."


def preset(name: str) -> dict[str, Any]:
    """The values of a recipe that comes with the package: `paper`.

    Raises:
        UserError: there is no such preset.
    """
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in known:
        raise UserError(f"There is no preset {name!r}.", f"Presets are {', '.join(known)}.", nearest(str(name), known))
    values: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    return values


def over(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe with options over them; of a group only those that are named, as on the command line.

    Raises:
        UserError: a group is a dataclass, which does not tell what was named, and there are other values of it.
    """
    made = {**values, **options}
    if "tokens" in options and "steps" not in options:
        # steps win over tokens, and an option over both
        made.pop("steps", None)
    for group in _GROUPS & values.keys() & options.keys():
        if is_dataclass(options[group]):
            raise UserError(
                f"Cannot lay a {type(options[group]).__name__} over the preset, which has values of {group} as well.",
                "Of a group that a preset has, options must be named one by one, so that the others stay the preset's.",
                f"Give them as a mapping, for example {group}={{{next(iter(values[group]), 'name')!r}: ...}}.",
            )
        if isinstance(values[group], Mapping) and isinstance(options[group], Mapping):
            made[group] = {**values[group], **options[group]}
    return made


def parser(**options: Any) -> ArgumentParser:
    """A command-line parser of all that a recipe says, which raises instead of leaving."""
    from jsonargparse import ArgumentParser

    made = ArgumentParser(exit_on_error=False, **options)
    made.add_argument("--config", action="config", help="a YAML file with any of the options below; options win")
    made.add_class_arguments(Recipe)
    target = next(action for action in made._actions if action.dest == "target")
    # the parser calls a list by brackets, in which nobody gives it
    target.metavar = "TARGET"
    return made


def build(values: Mapping[str, Any]) -> Recipe:
    """A recipe out of values as from YAML or Python; see `plain`.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type or range.
    """
    from jsonargparse import ArgumentError

    reader = parser()
    try:
        read = vars(reader.instantiate(reader.parse_object(plain(values))))
    except ArgumentError as error:
        raise unreadable(str(error)) from error
    return Recipe(**{name: value for name, value in read.items() if name != "config"})


def load(path: Path) -> Recipe:
    """The recipe that a run's folder holds.

    Raises:
        UserError: it is missing, no YAML, or no recipe.
    """
    return build(content_of(path, "recipe", _RULE))


def content_of(path: str | Path, what: str, rule: str) -> dict[str, Any]:
    """The mapping that a user's YAML file holds; an empty file holds an empty one.

    Args:
        path: of the file.
        what: the message calls it.
        rule: what such a file must be, as a sentence of the message.

    Raises:
        UserError: it is no path, cannot be read, is not in UTF-8, no YAML, or something else than a mapping.
    """
    try:
        # bytes: YAML says itself how they are to be read, and refuses those that cannot be
        content = yaml.safe_load(Path(expanduser(path)).read_bytes()) or {}
        if not isinstance(content, dict):
            raise ValueError(f"it holds no names with values, but a {type(content).__name__}.")
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"Cannot read the {what} {path}: {first_line(error)}",
            rule,
            "Check the path, or correct the file.",
        ) from error
    return {str(key): value for key, value in content.items()}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as from YAML or Python as the parser takes them.

    Groups may be mappings, dataclasses, or empty; targets one or several; targets and tokens texts or numbers, which
    may be numpy's.

    Raises:
        UserError: an unknown key, or a group that is none.
    """
    values = {k: str(v) if hasattr(v, "__fspath__") else v for k, v in values.items()}
    made = {k: asdict(v) if is_dataclass(v) and not isinstance(v, type) else scalar(v) for k, v in values.items()}
    made = {k: {name: scalar(n) for name, n in v.items()} if isinstance(v, Mapping) else v for k, v in made.items()}
    # a group says nothing where all of its lines are comments
    made |= {k: {} for k, v in made.items() if v is None and k in _GROUPS}
    refuse_unknown(made)
    written = {"target": targets_of, "tokens": as_written}
    return made | {k: write(made[k]) for k, write in written.items() if k in made}


def refuse_unknown(values: Mapping[str, Any], group: Any = Recipe, prefix: str = "") -> None:
    """Refuse a key that no recipe has, by the nearest known one, and a mere value where a group must stand.

    Raises:
        UserError: there is one.
    """
    known = {f.name for f in fields(group)}
    hints = get_type_hints(group)
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"A recipe has no key {prefix}{key}.",
                f"Each key must be one of those that {'this group' if prefix else 'a recipe'} has.",
                # YAML has numbers for keys, too
                nearest(str(key), sorted(known)),
            )
        if not is_dataclass(hints[key]):
            continue
        if not isinstance(value, Mapping):
            raise wrong_kind(f"{prefix}{key}", value, hints[key])
        refuse_unknown(value, hints[key], f"{prefix}{key}.")


def nearest_option(word: str) -> str:
    """The options that were probably meant, by their whole names, last parts or initials; or where all are listed."""
    options = ["config", "preset", "resume", *_leaves(Recipe)]

    def alike(option: str) -> float:
        last = option.rpartition(".")[2]
        # as in lr and wd
        initials = "".join(part[0] for part in last.split("_"))
        if len(initials) > 1 and word.rpartition(".")[2] == initials:
            return 1.0
        return max(difflib.SequenceMatcher(None, word, name).ratio() for name in (option, last))

    scores = {option: alike(option) for option in options}
    best = max(scores.values())
    meant = " or ".join(repr(option) for option, score in scores.items() if score == best >= _CLOSE)
    return (f"Did you mean {meant}? " if meant else "") + "`homodistil distil --help` lists them all."


def _leaves(group: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all that can be set."""
    for name, hint in get_type_hints(group).items():
        yield from _leaves(hint, f"{prefix}{name}.") if is_dataclass(hint) else [prefix + name]


def unreadable(message: str) -> UserError:
    """What the parser said, in our three sentences."""
    words = " ".join(message.split())
    if missing := re.search(r"arguments are required: (.+)", words):
        names = [name for name in _NEEDED if name in missing[1].split(", ")]
        return UserError(
            f"Cannot start a run without {', '.join(f'--{name}' for name in names)}.",
            "A run needs a teacher, data, a target and a folder, as options or in its recipe.",
            f"Add, for example, {' '.join(f'--{name} {_NEEDED[name]}' for name in names)}.",
        )
    if stray := re.search(r"unrecognized arguments: (\S+)", words):
        return UserError(
            f"Cannot tell what {stray[1]!r} is for.",
            "Only the teacher stands by itself; every other value follows the option that it is for.",
            f"Write --data {stray[1]} if it is the text, or quote a value of several words.",
        )
    if bare := re.search(r"argument (--[\w.]+).*: expected one argument", words):
        return no_value(bare[1])
    keys = re.findall(r'Parser key "([\w.]+)"', words)
    value = re.search(r".*(?:(?:Given|Got) value:|Unable to load config) ?(.*)", words)
    if keys and value and (kind := declared(Recipe, keys[-1])) is not None:
        return wrong_kind(keys[-1], value[1].strip('"'), kind)
    return UserError(
        f"Cannot read the recipe: {words}",
        "Each option must be known, and have a value of its type.",
        "`homodistil distil --help` lists them all.",
    )


def no_value(option: str) -> UserError:
    """What is said of an option that is the last word, or is followed by another option."""
    example = _NEEDED.get(option[2:]) or {"preset": "paper", "config": "recipe.yaml", "resume": "runs/half"}.get(
        option[2:], "VALUE"
    )
    return UserError(
        f"Cannot read {option} without a value.",
        "Each option is followed by its value, except one that is switched on.",
        f"Write, for example, {option} {example}.",
    )
