"""The layers of a model as one list of modules, out of which whole layers may leave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedModel

from homodistil.axes.families.family import Family
from homodistil.axes.notation import parse_table


@dataclass(frozen=True)
class Stack:
    """The list of layers that the starred rows of a family's table run over.

    Attributes:
        path: the list's full name, such as `bert.encoder.layer`.
        count: how many layers it has.
        first_stays: whether the first layer has other parameters than the rest, so that no other can take its place.
        obstacle: why no layer can leave, as a clause; empty if they can.
    """

    path: str
    count: int
    first_stays: bool = False
    obstacle: str = ""

    @classmethod
    def of(cls, family: Family, model: PreTrainedModel, names: Iterable[str]) -> Stack | None:
        """The stack of a model with parameters of these names; None if its table has no starred rows, or several lists.

        The obstacle is found here: a configuration that does not count the layers, layers that differ, or settings
        with an entry a layer that the family does not name in `each_layer`.
        """
        modules = {name for name, _ in model.named_modules()}
        paths = [
            p + name for name in lists_of(family) for p in ("", f"{model.base_model_prefix}.") if p + name in modules
        ]
        if len(paths) != 1:
            return None
        stack = cls(paths[0], 0)
        parts: dict[int, set[str]] = {}
        for layer, rest in filter(None, map(stack.split, names)):
            parts.setdefault(layer, set()).add(rest)
        if not parts:
            return None
        count, config = len(parts), model.config
        own = {key for key, value in config.to_dict().items() if isinstance(value, list | tuple) and "layer" in key}
        unequal = sorted(k for k in own - set(family.each_layer) if len(getattr(config, k, ())) == count)
        if getattr(config, "num_hidden_layers", None) != count:
            obstacle = f"its configuration does not say that it has {count} layers"
        elif any(parts[k] != parts[count - 1] for k in range(1, count)):
            obstacle = "its layers do not all have the same parameters"
        elif unequal:
            obstacle = f"its configuration tells layers apart by {unequal[0]}"
        else:
            obstacle = ""
        return cls(paths[0], count, parts[0] != parts[count - 1], obstacle)

    def split(self, name: str) -> tuple[int, str] | None:
        """The layer of a parameter or module and its name in there; None if it is in no layer."""
        layer, _, rest = name.removeprefix(f"{self.path}.").partition(".")
        return (int(layer), rest) if name.startswith(f"{self.path}.") and layer.isdecimal() else None


def lists_of(family: Family) -> set[str]:
    """The lists of layers that a family's table speaks of, below the base model; layers leave where there is one."""
    tables = (family.rows, *family.heads.values())
    return {row.pattern.partition(".*.")[0] for t in tables for row in parse_table(t) if ".*." in row.pattern}
