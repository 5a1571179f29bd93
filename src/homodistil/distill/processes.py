"""Several processes as one run: each learns from its share of a step's batches, and all hold the same student.

A launcher (`torchrun`) starts them, one a device. Gradients, and what layers read, are summed over them, so that every
optimizer takes the same step and every cut knows all that was read. What is cut, and what the layers that stay take
over, is decided by the main process and told to the others: rounding on another device must not make another student.
The main process alone writes.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather, gather_object, reduce
from torch import Tensor, nn

from homodistil.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long processes wait for each other: the main one may tokenise for hours, and a launcher notices the dead."""


@functools.cache
def _leave_at_exit() -> None:
    """Part from the others before the interpreter goes: threads that still listen to them would abort it."""
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())


@dataclass(frozen=True)
class Processes:
    """Those of this run, seen from one of them.

    Attributes:
        state: this one's device and number, and the way to the others.
    """

    state: PartialState

    @classmethod
    def launched(cls) -> Processes:
        """Those that the launcher has started, or this one alone."""
        # without a device accelerate joins processes only if it is told that they compute on the CPU
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
        if state.num_processes > 1:
            _leave_at_exit()
        return cls(state)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.state.device
        return device

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the one that decides and writes."""
        return bool(self.state.is_main_process)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what all have."""
        return items[self.state.process_index :: self.count]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over all processes of each value; all give the same names in the same order."""
        if self.count == 1:
            return dict(values)
        summed = reduce(torch.tensor([*values.values()], device=self.device), "sum")
        return dict(zip(values, summed.tolist(), strict=True))

    def sum_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, which give as many, as large, of one type."""
        mine = list(tensors)
        if self.count == 1 or not mine:
            return
        # as one vector, because hundreds of small messages would each wait for the slowest process
        summed: Tensor = reduce(torch.cat([tensor.flatten() for tensor in mine]), "sum")
        for tensor, part in zip(mine, torch.split(summed, [tensor.numel() for tensor in mine]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def each(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What all processes give, in their order: of the same names, and as large."""
        parts = {name: tensor.chunk(self.count) for name, tensor in gather(dict(tensors)).items()}
        return [{name: chunks[process] for name, chunks in parts.items()} for process in range(self.count)]

    def as_main(self, value: T) -> T:
        """The main process's value, of anything that can be pickled; tensors must lie on the CPU."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    @torch.no_grad()
    def copy_main(self, model: nn.Module) -> None:
        """Give a model the parameters that the main process's has."""
        if self.count > 1:
            for parameter in model.parameters():
                broadcast(parameter.data)

    def main_first(self, make: Callable[[], T]) -> T:
        """What `make` makes, here and in all others, in the main process first: they find what it has written.

        Raises:
            UserError: in all processes, if `make` does in one of them.
        """
        made: list[T] = []
        for turn in (self.main, not self.main):
            if turn:
                self.agreed(lambda: made.append(make()))
            else:
                self.agreed(lambda: None)
        return made[0]

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` makes here, unless it fails in one of the processes, which all come here.

        Raises:
            UserError: in all processes, if `make` does in one: its own, or what the first of the others said.
        """
        made: list[T] = []
        refusal: UserError | None = None
        try:
            made.append(make())
        except UserError as error:
            refusal = error
        refusals: list[UserError | None] = gather_object([refusal])
        if first := refusal or next((said for said in refusals if said is not None), None):
            raise first
        return made[0]

    def wait(self) -> None:
        """Go on when all have come here."""
        self.state.wait_for_everyone()

    def refuse_different(self, having: Mapping[str, object]) -> None:
        """Make sure that all processes have the same of what makes a run.

        Args:
            having: what this one has, by what it is called; all name the same in the same order.

        Raises:
            UserError: in all processes, if one has another.
        """
        everywhere: list[Mapping[str, object]] = gather_object([dict(having)])
        for name in having:
            if len(found := {str(has[name]) for has in everywhere}) > 1:
                raise UserError(
                    f"Cannot share a run among {self.count} processes: {name} is not the same in all of them "
                    f"({', '.join(sorted(found))}).",
                    "All processes of a run must have the same recipe, teacher and data, and see the same checkpoints.",
                    "Give them the same files, on a disk that all machines share, and texts in memory in one order.",
                )
