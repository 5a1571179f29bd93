"""A family's table laid over a model: which row describes which parameter, checked both ways."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from transformers import PreTrainedModel

from homodistil.axes.families import Family, known
from homodistil.axes.families.own import registered
from homodistil.axes.notation import Dim, parse_table
from homodistil.errors import UserError


def bind(model: PreTrainedModel) -> tuple[Family, dict[str, tuple[Dim, ...]]]:
    """The family of a model and the dims of each of its parameters, ties included.

    Raises:
        UserError: no family has this model type or this configuration, a parameter is claimed by no row or not saved
            with the model, or rows that belong together match in part.
    """
    if (positions := getattr(model.config, "position_embedding_type", None)) not in (None, "absolute"):
        raise UserError(
            f"Cannot cut this {type(model).__name__}: its configuration says position_embedding_type = {positions}.",
            "transformers computes positions of the kind `absolute` alone, and would leave out the weights of others.",
            "Use a model with such positions.",
        )
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    families = families_of(model.config.model_type)
    fit = [f for f in families if not _unmet(f, model.config)]
    if not fit:
        raise _unfit_setting(families[0], model)
    # a user's own is meant, also where a row of it is wrong and a table of the package's would fit
    own = [f for f in fit if f in registered]
    tried = [_bind(f, named, model.base_model_prefix) for f in own or fit]
    bound = min(tried, key=lambda b: len(b.strangers) + len(b.broken))
    if bound.strangers or bound.broken:
        raise _misfit(bound, type(model).__name__)
    _refuse_unsaved(model)
    return bound.family, bound.dims


def families_of(model_type: str) -> list[Family]:
    """The families of a configuration's `model_type`: one, or several that differ in their tables.

    Raises:
        UserError: none of ours; the message names those that are.
    """
    if found := [family for family in known() if model_type in family.model_types]:
        return found
    names = ", ".join(f.name for f in known())
    if any(mark in model_type for mark in ("moe", "mixtral")):
        raise UserError(
            f"Cannot cut a model of type {model_type!r}: it is a mixture of experts.",
            "All of a layer's tokens must pass through the same weights; which expert reads what is not described by "
            "any family.",
            f"Use a dense model, of one of these families: {names}.",
        )
    raise UserError(
        f"Cannot cut a model of type {model_type!r}.",
        "A model's family must be known, because its table says which dimensions belong together.",
        f"Use a model of one of these families: {names}. Or describe its family (docs/adding-a-family.md) and give "
        "--family.",
    )


class _Bound(NamedTuple):
    """A table laid over a model: the dims of each parameter, those that no row describes, rows that found none."""

    family: Family
    dims: dict[str, tuple[Dim, ...]]
    strangers: list[str]
    broken: list[str]


def _bind(family: Family, names: Iterable[str], prefix: str) -> _Bound:
    """Give each parameter the dims of its row. Checks both ways: parameters without a row, rows without one."""
    tables = {"base model": family.rows, **family.heads}
    dims: dict[str, tuple[Dim, ...]] = {}
    unmatched: dict[str, list[str]] = defaultdict(list)
    matched: set[str] = set()
    relative = {name: name.removeprefix(f"{prefix}.") for name in names}
    # a row for each layer must match in as many layers as the first one of its list does
    layers: dict[str, int] = {}
    for table, text in tables.items():
        for row in parse_table(text):
            bound = {n: d for n, short in relative.items() if (d := row.bind(short)) is not None}
            dims |= bound
            path, starred, _ = row.pattern.partition(".*.")
            if starred:
                layers[path] = layers.get(path) or len(bound)
            if bound:
                matched.add(table)
            each = layers.get(re.split(r"\.[*^]\.", row.pattern)[0], 1)
            if len(bound) < (each - 1 if "^" in row.pattern else each):
                unmatched[table].append(row.pattern)
    strangers = [n for n in relative if n not in dims]
    broken = [row for table in tables if table in matched or table == "base model" for row in unmatched[table]]
    return _Bound(family, dims, strangers, broken)


def _refuse_unsaved(model: PreTrainedModel) -> None:
    """What is not saved is made anew, as it was before it was cut or learnt."""
    left_out = set(model._keys_to_ignore_on_save or ())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # what is tied is saved by its other name
    saved = {id(parameter) for name, parameter in parameters.items() if name not in left_out}
    if lost := [name for name, parameter in parameters.items() if id(parameter) not in saved]:
        raise UserError(
            f"Cannot cut this {type(model).__name__}: transformers does not save its parameter {lost[0]}.",
            "All that is cut and learnt must be saved, or the model that is opened would be another one.",
            "Use a model of a class that saves all of its parameters.",
        )


def _unmet(family: Family, config: object) -> list[str]:
    """The keys of the configuration that do not say what the family's table requires."""
    return [key for key, value in family.requires.items() if getattr(config, key, False) != value]


def _unfit_setting(family: Family, model: PreTrainedModel) -> UserError:
    key = _unmet(family, model.config)[0]
    return UserError(
        f"Cannot cut this {type(model).__name__}: its configuration says {key} = {getattr(model.config, key, None)}.",
        f"The table of the {family.name} family describes models with {key} = {family.requires[key]}.",
        "Use such a model, or describe this one (docs/adding-a-family.md) and give --family.",
    )


def _misfit(bound: _Bound, model_class: str) -> UserError:
    strangers = bound.strangers
    what = f"parameter {strangers[0]}" if strangers else f"nothing for the row {bound.broken[0]}"
    return UserError(
        f"Cannot cut this {model_class}: it has {what}"
        + (f" and {len(strangers) - 1} more" if len(strangers) > 1 else "")
        + (" that no row describes." if strangers else "."),
        f"The table of the {bound.family.name} family must describe every parameter, and every parameter must be "
        "there.",
        "Use a plain model of the family, without adapters, cross-attention, quantised or removed layers; in a table "
        "of your own correct the row.",
    )
