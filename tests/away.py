"""A device that is not the CPU, on any machine: its tensors are kept apart from the CPU's, as a GPU's are.

    python away.py '[{"teacher": ..., "data": ..., "target": ..., "out": ..., ...}]'

runs each of these on it and prints what the held-out data says of the students. Values lie in tensors of the CPU
inside; whatever meets a tensor of another device is refused, where a GPU would refuse it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

import homodistil
from homodistil.distill import arrival, loop, prepare
from homodistil.distill.processes import Processes

CROSSING = ("copy_", "_to_copy", "_copy_from", "index", "index_put_", "index_put")
"""Operations that take tensors of two devices: those that copy, and indices that lie on the CPU."""


class Away(Tensor):
    """A tensor of the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    inside: Tensor

    def __new__(cls, inside: Tensor) -> Away:
        """Make a tensor of the device that has the values of one of the CPU."""
        form = {"strides": inside.stride(), "storage_offset": inside.storage_offset(), "dtype": inside.dtype}
        made: Away = torch.Tensor._make_wrapper_subclass(cls, inside.shape, device="away:0", **form)  # type: ignore
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore
        """Compute on the CPU what is asked of tensors that lie on one device."""
        options, name = kwargs or {}, function.overloadpacket.__name__
        met = [t for t in tree_leaves((args, options)) if isinstance(t, Tensor) and t.dim()]
        if name not in CROSSING and len({t.device for t in met}) > 1:
            raise AssertionError(f"{name} meets two devices: {[(t.device.type, tuple(t.shape)) for t in met]}")
        if name == "_fused_sdp_choice":
            return 0
        goes = options.get("device", args[0].device if isinstance(args[0], Tensor) else "away")
        on_cpu = options | ({"device": "cpu"} if options.get("device") is not None else {})
        given, named = tree_map_only(Away, lambda t: t.inside, (args, on_cpu))
        made = function(*given, **named)
        if torch.device(goes).type == "away":
            made = tree_map_only(Tensor, Away, made)
        return return_and_correct_aliasing(function, args, options, made)  # type: ignore[no-untyped-call]


class _Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _empty(size: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Away(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return Away(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    inner = [t.inside if isinstance(t, Away) else t for t in (source, target)]
    inner[1].copy_(inner[0])
    return target


def main(jobs: list[dict[str, Any]]) -> None:
    """Run them; one with `killed_at` is killed at that step and resumed."""
    backend_registration._setup_privateuseone_for_python_backend("away", _Backend())
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    kernels = {"empty.memory_format": _empty, "empty_strided": _empty_strided, "_copy_from": _copy_from}
    for name, kernel in kernels.items():
        library.impl(name, kernel, "PrivateUse1")
    device = SimpleNamespace(
        device=torch.device("away:0"), num_processes=1, process_index=0, is_main_process=True, wait_for_everyone=int
    )
    module, preparing, running, leaving = (cast(Any, part) for part in (torch.nn.Module, prepare, loop, arrival))
    preparing.Processes = SimpleNamespace(launched=lambda: Processes(cast(Any, device)))
    to, learn = module.to, running.learn

    def tied(moving: Any, *given: Any) -> Any:
        # between two classes of tensors a module makes new parameters, and ties are lost
        moved = to(moving, *given)
        getattr(moved, "tie_weights", int)()
        return moved

    module.to = tied
    # transformers asks for addresses of storages, which these tensors do not have
    leaving.save_student = lambda *_: None
    for job in jobs:
        kill = job.pop("killed_at", None)

        def killed(run: Any, batch: Any, step: int, **more: Any) -> Any:
            if step == kill:  # noqa: B023 - called within the same turn
                raise KeyboardInterrupt
            return learn(run, batch, step, **more)

        running.learn = killed
        with contextlib.suppress(KeyboardInterrupt):
            result = homodistil.distil(**job)
        running.learn = learn
        if kill is not None:
            result = homodistil.resume(job["out"])
        print(json.dumps(result.heldout))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
