"""What a step does on a GPU, recorded once and played back from then on (CUDA graphs).

A pass through a small model is a thousand kernels and more, each shorter than Python takes to ask for it, so that the
GPU waits most of the time. Played back, they follow one another without being asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from homodistil.errors import first_line
from homodistil.losses.outputs import Batch, unpadded

T = TypeVar("T")
Play = Callable[[], Any]
SETTLED = 16
"""Calls without a change of what is worked on before anything is recorded: while a student is cut it would be for
nothing, and what a machine makes at first use has been made by then."""
MOST = 64
"""Recordings at most, of which there is one for each shape of a batch."""


def on_gpu(function: Callable[[], T], pool: Any) -> tuple[T, Play]:
    """What a function makes, and what makes it anew in the same tensors. Nothing has been computed when this returns.

    Raises:
        RuntimeError: it waits for the GPU, or there is not enough memory.
    """
    graph = torch.cuda.CUDAGraph()
    # threads that look after other processes may ask for anything meanwhile
    mode = "thread_local" if torch.distributed.is_initialized() else "global"
    # its own stream outside, because a recording that fails leaves another one behind
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
        made = function()
    return made, graph.replay


@dataclass(frozen=True)
class _Recording(Generic[T]):
    """Holds everything that is read when it is played."""

    inputs: Batch
    function: Callable[[Batch], T]
    made: T
    play: Play


class Recorder(Generic[T]):
    """Calls a function of batches; on a GPU it plays back what was done to a batch of the same shape.

    Args:
        device: where the batches lie.
        record: as `on_gpu`, which it is for GPUs; None calls the function always.
    """

    def __init__(self, device: torch.device, record: Callable[..., tuple[T, Play]] | None = None) -> None:
        self._device = device
        self._record = on_gpu if record is None and device.type == "cuda" else record
        self.forget()

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients must stay the tensors that they are, and be zeroed in place."""
        return self._record is not None

    @property
    def recordings(self) -> int:
        """How many there are."""
        return len(self._recordings)

    def forget(self) -> None:
        """Drop all recordings, and the memory that they hold."""
        self._works_on: Sequence[Tensor] = ()
        self._calls = 0
        self._seen: set[Any] = set()
        self._recordings: dict[Any, _Recording[T]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None

    def stop(self) -> None:
        """Play nothing back from now on."""
        self.forget()
        self._record = None

    def __call__(self, function: Callable[[Batch], T], batch: Batch, works_on: Sequence[Tensor]) -> T:
        """The function of a batch.

        Args:
            function: does the same in every call, to the batch and to `works_on`; what it changes it changes in place,
                and it does not wait for the GPU.
            batch: tensors on the device, and counts that are not.
            works_on: if these are other tensors than in the call before, all recordings are void.

        Returns:
            What it made; where it is played back, the next call writes over it.
        """
        if self._record is None:
            return function(batch)
        if len(works_on) != len(self._works_on) or any(
            a is not b for a, b in zip(works_on, self._works_on, strict=True)
        ):
            self.forget()
            self._works_on = works_on
        self._calls += 1
        shape = (unpadded(batch), *((name, tensor.shape) for name, tensor in sorted(batch.items())))
        recording = self._recordings.get(shape)
        if recording is None and shape in self._seen and self._calls > SETTLED and len(self._recordings) < MOST:
            recording = self._recorded(function, batch)
        if recording is None:
            self._seen.add(shape)
            return function(batch)
        self._recordings[shape] = recording
        for name, tensor in recording.inputs.items():
            tensor.copy_(batch[name])
        recording.play()
        return recording.made

    def _recorded(self, function: Callable[[Batch], T], batch: Batch) -> _Recording[T] | None:
        assert self._record is not None
        inputs = {name: tensor.clone() for name, tensor in batch.items()}
        try:
            # one pool for all: no two are played at once, and none reads what another has left
            made, play = self._record(lambda: function(inputs), self._pool)
        except RuntimeError as error:
            self.stop()
            warnings.warn(f"Steps are not recorded, and so take longer on a GPU: {first_line(error)}", stacklevel=2)
            return None
        return _Recording(inputs, function, made, play)
