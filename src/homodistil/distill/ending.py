"""What ends a run early: a signal, a full disk, or a loss that is no number."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import FrameType

from homodistil.errors import UserError
from homodistil.rundir import FULL, RunDir, disk_failure


def refuse_nonfinite(terms: Mapping[str, float], gradient: float, step: int, run_dir: RunDir) -> None:
    """Raise UserError if a loss, or the norm of all gradients, is no finite number."""
    wrong = {name: value for name, value in terms.items() if not math.isfinite(value)}
    # a loss that is no number has such gradients, too
    what = f"{' and the '.join(wrong)} loss" if wrong else "norm of the gradients"
    if wrong or not math.isfinite(gradient):
        saved = any(run_dir.checkpoints.glob("step-*"))
        left = f"the last checkpoint in {run_dir.checkpoints} is whole" if saved else "there is no checkpoint before it"
        raise UserError(
            f"The {what} became {next(iter(wrong.values()), gradient)} at step {step}.",
            f"Losses and gradients must stay finite; the run has stopped, nothing of this step is saved, and {left}.",
            "Start a new run with a lower --optim.learning_rate, or with --precision fp32.",
        )


@contextlib.contextmanager
def stop_requested(*, insisting: bool = True) -> Iterator[list[int]]:
    """A list that the numbers of SIGTERM and SIGINT fall into, in place of what they would do, inside the block.

    Args:
        insisting: whether a second one interrupts at once. A launcher repeats what its processes have got already.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, _: FrameType | None) -> None:
        if seen and insisting:
            # asked twice: whoever insists does not want to wait for the save
            signal.default_int_handler(number, None)
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def disk_explained(path: Path) -> Iterator[None]:
    """Raise UserError in place of the system's error inside the block, of a full disk or of what is in `path`."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str | PathLike)]
        if error.errno in FULL or any(Path(name).absolute().is_relative_to(path.absolute()) for name in names):
            raise disk_failure(path, error) from error
        raise
