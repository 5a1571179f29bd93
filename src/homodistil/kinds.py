"""What kind of value each option takes, in words. No torch."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

from homodistil.errors import UserError

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
