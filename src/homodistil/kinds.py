"""What kind of value each option takes, in words. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Any, Literal, get_args, get_origin, get_type_hints

from homodistil.errors import UserError

Names = str | PathLike[str] | Sequence[str | PathLike[str]]
"""One name or path, or several."""

_KINDS: dict[Any, tuple[Any, str, str]] = {
    int: (Integral, "a whole number", "8"),
    float: (Real, "a number", "0.001"),
    bool: (bool, "true or false", "true"),
    str: (str, "a text", "'words'"),
}
"""By declared type: what counts as one, what it is called, and an example."""


def declared(group: type, key: str) -> Any:
    """The declared type of a dotted key, without None; None if there is no such key."""
    name, _, rest = key.partition(".")
    hint = get_type_hints(group).get(name)
    if type(None) in get_args(hint):
        hint = next(given for given in get_args(hint) if given is not type(None))
    return declared(hint, rest) if rest and is_dataclass(hint) and isinstance(hint, type) else hint


def wrong_kind(key: str, value: object, kind: Any) -> UserError:
    """What is said of a value that is not of its key's declared type."""
    # in Python it may be a whole model
    refused = f"Cannot use {key} = {' '.join(str(value).split())[:200]}."
    if is_dataclass(kind):
        return UserError(
            refused,
            f"{key} is a group: it must hold names of options, each with a value.",
            "Name the option below it, as in `homodistil distil --help`, or leave the group out.",
        )
    if get_origin(kind) is Literal:
        rule, example = f"one of {', '.join(get_args(kind))}", get_args(kind)[0]
    elif get_origin(kind) is list:
        # with the quotes that a shell takes off
        rule, example = "a list of texts", """'["query: "]'"""
    else:
        _, rule, example = _KINDS[kind]
    return UserError(refused, f"It must be {rule}.", f"Use, for example, {example}.")


def refuse_wrong_kinds(group: Any, prefix: str = "") -> None:
    """Refuse a value of a dataclass, or of one in it, that is not of its declared type.

    Raises:
        UserError: there is one.
    """
    hints = get_type_hints(type(group))
    for name in (f.name for f in fields(group)):
        value, kind = getattr(group, name), declared(type(group), name)
        if value is None and kind is not hints[name]:
            continue
        if not _fits(value, kind):
            raise wrong_kind(prefix + name, value, kind)
        if is_dataclass(kind):
            refuse_wrong_kinds(value, f"{prefix}{name}.")


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if is_dataclass(kind):
        return isinstance(value, kind)  # type: ignore[arg-type]
    # Python counts true and false as numbers
    return isinstance(value, _KINDS[kind][0]) and (kind is bool or not isinstance(value, bool))


def several(given: Names) -> list[str]:
    """One name or path, or several, as texts."""
    return [str(given)] if isinstance(given, str | PathLike) else [str(name) for name in given]


def model_named(source: object) -> str:
    """The folder or the hub name of a model, as a text."""
    return named("model", source, "the folder that its `save_pretrained` wrote")


def folder_named(out: object) -> str:
    """The path of a folder, as a text."""
    return named("folder", out, "'runs/half'")


def named(what: str, value: object, example: str) -> str:
    """A path or a name, as a text.

    Raises:
        UserError: it is neither, such as a model itself.
    """
    if not isinstance(value, str | PathLike):
        raise UserError(
            f"Cannot use {called(value)} as the {what}.",
            f"A {what} is given by its path or its name, as a text or a Path.",
            f"Give, for example, {example}.",
        )
    return str(value)


def called(value: object) -> str:
    """A value that may be as long as a model's description, in words."""
    return repr(value) if value is None or isinstance(value, bool | int | float) else f"a {type(value).__name__}"
