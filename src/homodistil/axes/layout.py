"""A family's table bound to one model: which axes each parameter has, and closed forms for any shape."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from homodistil.axes.binding import bind
from homodistil.axes.counts import Counts, count
from homodistil.axes.families import Family
from homodistil.axes.notation import Dim, expand_braces, expression
from homodistil.axes.shape import LAYERS, Shape, evaluate
from homodistil.axes.stack import Stack, lists_of
from homodistil.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The axes of every parameter of one model. Holds names and fixed sizes, no tensor and no current width.

    Attributes:
        family: the family whose table it is.
        dims: for each parameter name, ties included, its dims with axes named `ffn.3` or `hidden`.
        fixed: sizes of the axes that are never cut, such as `vocab`.
        parent: for each nested axis, the axis whose units each have units of it (`qk.3` in `heads.3`).
        tied: parameter names that are another one's tensor, by the name that stands for it.
        modules: the names of all modules.
        prefix: what the names of the base model's modules and parameters begin with, where it has a head.
        stack: the list of layers; None if there is not one such list.
        counts: closed forms of parameters and operations.
    """

    family: Family
    dims: Mapping[str, tuple[Dim, ...]]
    fixed: Mapping[str, int]
    parent: Mapping[str, str]
    tied: Mapping[str, str]
    modules: tuple[str, ...] = ()
    prefix: str = ""
    stack: Stack | None = None
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """Bind the table of the model's family to the model, which may be on the meta device.

        Raises:
            UserError: no family has this model type or this configuration, a parameter is claimed by no row, rows that
                belong together match in part, or a width is not the same everywhere.
        """
        family, dims = bind(model)
        first: dict[int, str] = {}
        named = model.named_parameters(remove_duplicate=False)
        tied = {n: first[id(p)] for n, p in named if first.setdefault(id(p), n) != n}
        modules = tuple(name for name, _ in model.named_modules())
        layout = cls(family, dims, {}, {}, tied, modules, model.base_model_prefix)
        fixed = {a: n for a, n in layout.sizes(model).items() if _kind(a) not in family.widths}
        stack = Stack.of(family, model, dims)
        layout = replace(layout, fixed=fixed, parent=_parents(dims, fixed), stack=stack)
        _refuse_uneven(layout, model)
        return replace(layout, counts=count(layout, model))

    def sizes(self, model: PreTrainedModel) -> dict[str, int]:
        """How many units each axis of `model` has now; a nested axis counts those of one parent unit.

        `layers` is among them where layers may leave.

        Raises:
            UserError: two parameters disagree about an axis, or the configuration does not count one.
        """
        sizes = dict(self.fixed) | ({LAYERS: self.depth} if self.depth else {})
        for axis in {p for dims in self.dims.values() for dim in dims for p in dim if isinstance(p, str)}:
            if key := self.family.counted.get(_kind(axis)):
                if not hasattr(model.config, key):
                    raise UserError(
                        f"Cannot count {_kind(axis)} of this {type(model).__name__}: its configuration has no {key}.",
                        f"The {self.family.name} family says that {key} counts them.",
                        "Correct `counted` of the family.",
                    )
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
        widths = {self.width_of(axis): sizes[axis] for axis in self.axes}
        named = {width: widths[width] for width in dict.fromkeys(self.family.widths.values())}
        return named | ({LAYERS: sizes[LAYERS]} if LAYERS in sizes else {})

    @functools.cached_property
    def lists(self) -> dict[str, int]:
        """How many layers there are in each of the family's lists of layers that the model has, by its path."""
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
            modules=tuple(name for name in self.modules if stays(name)),
            stack=replace(self.stack, count=count),
        )

    def layer_of(self, key: str) -> tuple[str, int, str] | None:
        """What comes before a layer's number, the number, and what follows; None if there is none.

        Args:
            key: the name of a parameter, a module (`bert.encoder.layer.3.output`) or an axis (`ffn.3`).
        """
        if self.stack is not None and (place := self.stack.split(key)):
            return f"{self.stack.path}.", place[0], f".{place[1]}" if place[1] else ""
        kind, _, number = key.partition(".")
        return (f"{kind}.", int(number), "") if kind in self.family.widths and number.isdecimal() else None

    @functools.cached_property
    def axes(self) -> tuple[str, ...]:
        """The axes that may be cut, such as `hidden`, `ffn.0`; outer ones before those nested in them."""
        parts = [p for dims in self.dims.values() for dim in dims for p in dim if isinstance(p, str)]
        return tuple(a for a in dict.fromkeys(parts) if a not in self.fixed)

    def width_of(self, axis: str) -> str:
        """The width that an axis has: `head_dim` for `qk.3`."""
        if axis == LAYERS:
            return LAYERS
        return self.family.widths[_kind(axis)]

    def matches(self, pattern: str) -> Iterator[str]:
        """The full names, parameters' or modules', that a pattern of the family's stands for."""
        for relative in expand_braces(pattern):
            known = expression(relative)
            yield from (name for name, short in self._relative.items() if known.fullmatch(short))

    @functools.cached_property
    def _relative(self) -> dict[str, str]:
        """All names, of modules and parameters, and what they are below the base model."""
        return {name: name.removeprefix(f"{self.prefix}.") for name in (*self.modules, *self.dims)}

    @property
    def sequence(self) -> int | None:
        """The tokens of every sequence, class tokens and patches, of a model of images; None for a model of text."""
        return self.fixed["position"] if self.family and self.family.class_tokens else None

    def count(self, shape: Shape) -> int:
        """The number of parameters of the model at a shape, tied ones once. Exact."""
        return int(evaluate(self.counts.parameters, {LAYERS: self.depth, **shape}))

    def flops_per_token(self, shape: Shape, sequence: int) -> float:
        """Floating point operations (two a multiply-add) of a forward pass, a token, in matrix products.

        Args:
            shape: the widths.
            sequence: tokens in a sequence; attention's cost grows with it, a pooled head's shrinks. Of an
                encoder-decoder a token is one of the source and one of the target, equally many of each.
        """
        shape = {LAYERS: self.depth, **shape}
        return (
            evaluate(self.counts.token_flops, shape)
            + evaluate(self.counts.sequence_flops, shape) / sequence
            + evaluate(self.counts.attention_flops, shape) * sequence
        )

    def head_dims(self, query: str) -> Dim:
        """The dimension of a query's weight or bias that runs over heads."""
        heads = {axis for axis, width in self.family.widths.items() if width in ("heads", "kv_heads")}
        return next(dim for dim in self.dims[query] if any(isinstance(p, str) and _kind(p) in heads for p in dim))


def on_meta(model_class: type[PreTrainedModel], config: object, **options: bool) -> PreTrainedModel:
    """A model without storage, for counting and checking."""
    with torch.device("meta"):
        return model_class(config, **options)


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
