"""HomoDistil: make pre-trained transformers small.

import homodistil

result = homodistil.distil(teacher="path-or-hub-id", data="corpus.txt", target="0.5", out="runs/half")
model = AutoModel.from_pretrained(result.students["0.5"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homodistil.api import distil, plan, resume, trim_vocabulary
    from homodistil.axes.families import Family, read_family, register
    from homodistil.compress.plan import Planned
    from homodistil.compress.shrink import shrink
    from homodistil.distill.arrival import Result
    from homodistil.errors import RunStopped, UserError
    from homodistil.evaluation.evaluation import evaluate
    from homodistil.models.trim import Trimmed
    from homodistil.recipe import Recipe
    from homodistil.reports.live import Display
    from homodistil.reports.page import report

__version__ = "0.1.0"
__all__ = [
    "Display",
    "Family",
    "Planned",
    "Recipe",
    "Result",
    "RunStopped",
    "Trimmed",
    "UserError",
    "distil",
    "evaluate",
    "plan",
    "read_family",
    "register",
    "report",
    "resume",
    "shrink",
    "trim_vocabulary",
]

_HOMES = {
    "Display": "homodistil.reports.live",
    "Family": "homodistil.axes.families",
    "Planned": "homodistil.compress.plan",
    "Recipe": "homodistil.recipe",
    "Result": "homodistil.distill.arrival",
    "RunStopped": "homodistil.errors",
    "Trimmed": "homodistil.models.trim",
    "UserError": "homodistil.errors",
    "distil": "homodistil.api",
    "evaluate": "homodistil.evaluation.evaluation",
    "plan": "homodistil.api",
    "read_family": "homodistil.axes.families",
    "register": "homodistil.axes.families",
    "report": "homodistil.reports.page",
    "resume": "homodistil.api",
    "shrink": "homodistil.compress.shrink",
    "trim_vocabulary": "homodistil.api",
}


def __getattr__(name: str) -> object:
    # torch and transformers take seconds to import, which `homodistil --help` must not wait for
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # what is imported when it is asked for is no global yet
    return sorted({*globals(), *__all__})
