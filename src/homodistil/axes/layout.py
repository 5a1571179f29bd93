"""A family's table bound to one model: which axes each parameter has, and closed forms for any shape."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from homodistil.axes.families import Family, known
from homodistil.axes.notation import Dim, Row, expand_braces, parse_table
from homodistil.axes.stack import LAYERS, Stack, lists_of
from homodistil.errors import UserError

Shape = Mapping[str, int]
"""A width for each kind of axis, and the depth: `{"hidden": 240, "heads": 12, "head_dim": 20, "ffn": 960,
"layers": 6}`.

Where a shape does not name `layers`, all of them are meant."""

Polynomial = Counter[tuple[str, ...]]
"""A sum of products of widths: `{("hidden", "hidden"): 12.0}` is 12 hidden²."""


def describe(shape: Shape) -> str:
    """A shape as a person writes it: `hidden=240, heads=12, head_dim=20, ffn=960`."""
    return ", ".join(f"{name}={width}" for name, width in shape.items())


def evaluate(polynomial: Polynomial, shape: Shape) -> float:
    """The value of a closed form at a shape."""
    return sum(factor * math.prod(shape[w] for w in term) for term, factor in polynomial.items())


def product(text: str, shape: Shape) -> float:
    """The value of a family's product at a shape: `heads head_dim` multiplied, `head_dim^-0.5` a power."""
    value: float = 1
    for word in text.split():
        width, _, power = word.partition("^")
        value *= shape[width] ** float(power) if power else shape[width]
    return value


@dataclass(frozen=True)
class Layout:
    """The axes of every parameter of one model. Holds names and fixed sizes, no tensor and no current width.

    Attributes:
        family: the family whose table it is; None for tensors of ours (see `of_rows`).
        dims: for each parameter name, ties included, its dims with axes named `ffn.3` or `hidden`.
        fixed: sizes of the axes that are never cut, such as `vocab`.
        parent: for each nested axis, the axis whose units each have units of it (`qk.3` in `heads.3`).
        tied: parameter names that are another one's tensor, by the name that stands for it.
        parameters: closed form of the number of parameters, tied ones once.
        token_flops: closed form of a forward pass's floating point operations a token, without attention.
        sequence_flops: the same, what is spent once a sequence.
        attention_flops: the same, what is spent a token and for each token attended to.
        stack: the list of layers; None if there is not one such list, and for tensors of ours.
    """

    family: Family | None
    dims: Mapping[str, tuple[Dim, ...]]
    fixed: Mapping[str, int]
    parent: Mapping[str, str]
    tied: Mapping[str, str]
    parameters: Polynomial
    token_flops: Polynomial
    sequence_flops: Polynomial
    attention_flops: Polynomial
    stack: Stack | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """Bind the table of the model's family to the model, which may be on the meta device.

        Raises:
            UserError: no family has this model type or this configuration, a parameter is claimed by no row, rows that
                belong together match in part, or a width is not the same everywhere.
        """
        named = dict(model.named_parameters(remove_duplicate=False))
        families = families_of(model.config.model_type)
        fit = [f for f in families if not _unmet(f, model.config)]
        if not fit:
            raise _unfit_setting(families[0], model)
        tried = [_bind(f, named, model.base_model_prefix) for f in fit]
        bound = min(tried, key=lambda b: len(b.strangers) + len(b.broken))
        if bound.strangers or bound.broken:
            raise _misfit(bound, type(model).__name__)
        family, dims = bound.family, bound.dims
        first: dict[int, str] = {}
        tied = {n: first[id(p)] for n, p in named.items() if first.setdefault(id(p), n) != n}
        layout = cls(family, dims, {}, {}, tied, Counter(), Counter(), Counter(), Counter())
        fixed = {a: n for a, n in layout.sizes(model).items() if _kind(a) not in family.widths}
        stack = Stack.of(family, model, dims)
        layout = replace(layout, fixed=fixed, parent=_parents(dims, fixed), stack=stack)
        _refuse_uneven(layout, model)
        layout._count(model)
        return layout

    @classmethod
    def of_rows(cls, dims: Mapping[str, tuple[Dim, ...]]) -> Layout:
        """A layout for tensors of ours that follow a model's axes, such as the projections."""
        return cls(None, dims, {}, _parents(dims, ()), {}, Counter(), Counter(), Counter(), Counter())

    def sizes(self, model: PreTrainedModel) -> dict[str, int]:
        """How many units each axis of `model` has now; a nested axis counts those of one parent unit.

        `layers` is among them where layers may leave.

        Raises:
            UserError: two parameters disagree about an axis.
        """
        assert self.family is not None
        sizes = dict(self.fixed) | ({LAYERS: self.depth} if self.depth else {})
        for axis in {p for dims in self.dims.values() for dim in dims for p in dim if isinstance(p, str)}:
            if key := self.family.counted.get(_kind(axis)):
                sizes[axis] = getattr(model.config, key)
        waiting = [
            (name, dim, size)
            for name, tensor in model.named_parameters()
            for dim, size in zip(self.dims[name], tensor.shape, strict=True)
        ]
        while waiting:
            later = []
            for name, dim, size in waiting:
                known = math.prod(p if isinstance(p, int) else sizes.get(p, 1) for p in dim)
                unknown = [p for p in dim if isinstance(p, str) and p not in sizes]
                if size % known or (not unknown and size != known):
                    raise UserError(
                        f"Cannot read the axes of {name}: a dimension has {size} units.",
                        f"Other parameters and the configuration say that {dim} has {known}.",
                        "Load the model with the configuration that it was saved with.",
                    )
                if len(unknown) > 1:
                    later.append((name, dim, size))
                elif unknown:
                    sizes[unknown[0]] = size // known
            # a dimension with two unknown axes waits for another one that tells one of them
            assert len(later) < len(waiting), later
            waiting = later
        return sizes

    def shape(self, model: PreTrainedModel) -> dict[str, int]:
        """The width of each kind of axis of `model` now, the same in all layers, and their number if it may fall."""
        return self.shape_of(self.sizes(model))

    def shape_of(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The width of each kind of axis, of which `sizes` has one a layer."""
        assert self.family is not None
        widths = {self.width_of(axis): sizes[axis] for axis in self.axes}
        named = {width: widths[width] for width in dict.fromkeys(self.family.widths.values())}
        return named | ({LAYERS: sizes[LAYERS]} if LAYERS in sizes else {})

    @functools.cached_property
    def lists(self) -> dict[str, int]:
        """How many layers there are in each of the family's lists of layers that the model has, by its path."""
        assert self.family is not None
        paths = {path: re.compile(rf"(?:.*\.)?{re.escape(path)}\.(\d+)\..*") for path in sorted(lists_of(self.family))}
        found = {path: {m[1] for name in self.dims if (m := known.fullmatch(name))} for path, known in paths.items()}
        return {path: len(numbers) for path, numbers in found.items() if numbers}

    @property
    def depth(self) -> int:
        """How many layers there are, of which some may leave; 0 if none may."""
        return self.stack.count if self.stack is not None and not self.stack.obstacle else 0

    def shallower(self, count: int) -> Layout:
        """The layout of the same model with fewer layers, which are numbered from 0 on as before."""
        assert self.stack is not None

        def stays(key: str) -> bool:
            layer = self.layer_of(key)
            return layer is None or layer[1] < count

        return replace(
            self,
            dims={name: dims for name, dims in self.dims.items() if stays(name)},
            parent={axis: parent for axis, parent in self.parent.items() if stays(axis)},
            stack=replace(self.stack, count=count),
        )

    def layer_of(self, key: str) -> tuple[str, int, str] | None:
        """What comes before a layer's number, the number, and what follows; None if there is none.

        Args:
            key: the name of a parameter, a module (`bert.encoder.layer.3.output`) or an axis (`ffn.3`).
        """
        assert self.family is not None
        if self.stack is not None and (place := self.stack.split(key)):
            return f"{self.stack.path}.", place[0], f".{place[1]}" if place[1] else ""
        kind, _, number = key.partition(".")
        return (f"{kind}.", int(number), "") if kind in self.family.widths and number.isdecimal() else None

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes that may be cut, such as `hidden`, `ffn.0`; outer ones before those nested in them."""
        parts = [p for dims in self.dims.values() for dim in dims for p in dim if isinstance(p, str)]
        return tuple(a for a in dict.fromkeys(parts) if a not in self.fixed)

    def of_one_layer(self, axis: str) -> bool:
        """Whether an axis belongs to one layer, as `ffn.3` does, and the residual stream does not."""
        return "." in axis

    def width_of(self, axis: str) -> str:
        """The width that an axis has: `head_dim` for `qk.3`."""
        if axis == LAYERS:
            return LAYERS
        return self.family.widths[_kind(axis)] if self.family else _kind(axis)

    def matches(self, pattern: str, model: PreTrainedModel) -> Iterator[str]:
        """The full names, parameters' or modules', that a pattern of the family's stands for in `model`."""
        known = [*(n for n, _ in model.named_modules()), *self.dims]
        for relative in expand_braces(pattern):
            own = Row(relative, ())
            yield from (n for n in known if own.bind(n.removeprefix(f"{model.base_model_prefix}.")) is not None)

    @property
    def sequence(self) -> int | None:
        """The tokens of every sequence, class tokens and patches, of a model of images; None for a model of text."""
        return self.fixed["position"] if self.family and self.family.class_tokens else None

    def count(self, shape: Shape) -> int:
        """The number of parameters of the model at a shape, tied ones once. Exact."""
        return int(evaluate(self.parameters, {LAYERS: self.depth, **shape}))

    def flops_per_token(self, shape: Shape, sequence: int) -> float:
        """Floating point operations (two a multiply-add) of a forward pass, a token, in matrix products.

        Args:
            shape: the widths.
            sequence: tokens in a sequence; attention's cost grows with it, a pooled head's shrinks. Of an
                encoder-decoder a token is one of the source and one of the target, equally many of each.
        """
        shape = {LAYERS: self.depth, **shape}
        return (
            evaluate(self.token_flops, shape)
            + evaluate(self.sequence_flops, shape) / sequence
            + evaluate(self.attention_flops, shape) * sequence
        )

    def head_dims(self, query: str) -> Dim:
        """The dimension of a query's weight or bias that runs over heads."""
        counted = self.family.counted if self.family else {}
        return next(dim for dim in self.dims[query] if any(isinstance(p, str) and _kind(p) in counted for p in dim))

    def _product(self, parts: Iterable[str | int]) -> tuple[int, tuple[str, ...]]:
        """A product of axes as a fixed factor and the widths that vary."""
        parts = list(parts)
        factor = math.prod(p if isinstance(p, int) else self.fixed.get(p, 1) for p in parts)
        return factor, tuple(sorted(self.width_of(p) for p in parts if isinstance(p, str) and p not in self.fixed))

    def _count(self, model: PreTrainedModel) -> None:
        family = self.family
        assert family is not None
        has_pooler = family.pooler is not None and any(self.matches(family.pooler, model))
        rows = (*family.once, *(family.once_with_pooler if has_pooler else ()))
        pooled = {n for row in rows for n in self.matches(row, model)}
        projected = {n for row in family.distances for n in self.matches(row, model)}
        distances = self.fixed.get("distance", 0)
        for name, dims in self.dims.items():
            parts = [p for dim in dims for p in dim]
            module = model.get_submodule(name.rpartition(".")[0])
            for factor, term in self._repeated(name, parts):
                if name not in self.tied:
                    self.parameters[term] += factor
                if len(dims) == 2 and not isinstance(module, nn.Embedding):
                    each = 2 * factor * self._times(name, model)
                    if name not in pooled:
                        self.token_flops[term] += each
                    if name in pooled or name in projected:
                        self.sequence_flops[term] += each * (distances if name in projected else 1)
                elif isinstance(module, nn.Conv1d | nn.Conv2d) and len(dims) > 1:
                    # once a patch: at every token but the class tokens
                    self.token_flops[term] += 2 * factor
                    self.sequence_flops[term] -= 2 * factor * family.class_tokens
        for name in projected:
            for factor, term in self._repeated(name, [p for p in self.head_dims(name) if isinstance(p, str)]):
                self.token_flops[term] += 2 * factor * distances
        for query in {n for row in family.queries for n in self.matches(row, model)} - pooled:
            if len(self.dims[query]) == 2:
                # scores and their product with the values: a multiply-add a head dimension each
                for factor, term in self._repeated(query, [p for p in self.head_dims(query) if isinstance(p, str)]):
                    self.attention_flops[term] += 4 * factor * self._times(query, model)

    def _times(self, name: str, model: PreTrainedModel) -> int:
        """How often a forward pass computes with a parameter."""
        assert self.family is not None
        shared = self.family.shared and self.family.shared in name
        return int(model.config.num_hidden_layers) if shared else 1

    def _repeated(self, name: str, parts: Iterable[str | int]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """What a parameter adds to a count, as products; the last layer's stand for those of every layer."""
        factor, term = self._product(parts)
        place = self.stack.split(name) if self.stack is not None and self.depth else None
        if self.stack is None or place is None:
            yield factor, term
            return
        layer, rest = place
        first, last = (f"{self.stack.path}.{k}.{rest}" in self.dims for k in (0, self.depth - 1))
        if layer == self.depth - 1:
            yield factor, (*term, LAYERS)
            if not first:
                # every layer but the first has it
                yield -factor, term
        elif layer == 0 and not last:
            yield factor, term


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


def on_meta(model_class: type[PreTrainedModel], config: object) -> PreTrainedModel:
    """A model without storage, for counting and checking."""
    with torch.device("meta"):
        return model_class(config)


def _kind(axis: str) -> str:
    return axis.partition(".")[0]


def _parents(dims: Mapping[str, tuple[Dim, ...]], fixed: Container[str]) -> dict[str, str]:
    parents: dict[str, str] = {}
    for dim in (dim for of_name in dims.values() for dim in of_name):
        names = [p for p in dim if isinstance(p, str) and p not in fixed]
        parents |= dict(zip(names[1:], names, strict=False))
    return parents


def _refuse_uneven(layout: Layout, model: PreTrainedModel) -> None:
    """A width is one number: the shape of a model whose parts differ in it could not be written."""
    sizes = layout.sizes(model)
    first: dict[str, str] = {}
    for axis in layout.axes:
        other = first.setdefault(layout.width_of(axis), axis)
        if sizes[axis] != sizes[other]:
            raise UserError(
                f"Cannot cut this {type(model).__name__}: it has {sizes[other]} units of {other} and {sizes[axis]} of "
                f"{axis}.",
                f"The width {layout.width_of(axis)} must be the same in all layers and on both sides.",
                "Use a model whose layers are alike.",
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
        + (f" and {len(strangers) - 1} more that no row describes." if strangers else "."),
        f"The table of the {bound.family.name} family must describe every parameter, and every parameter must be "
        "there.",
        "Use a plain model of the family, without adapters, cross-attention, quantised or removed layers.",
    )
