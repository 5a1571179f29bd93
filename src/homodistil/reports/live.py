"""What a person sees while a run goes on: a live panel on a terminal, plain lines elsewhere. No torch."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

SMOOTH = 0.9
"""What the running mean of the time a step takes keeps of itself."""


class _Screen(Console):
    """A console that falls silent when nobody reads it any more, as behind `head`: the run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


class Display:
    """Shows steps, widths, losses, discrepancy, tokens a second and the time that is left.

    Args:
        console: where to; a terminal gets a panel that moves, anything else a line for each record of metrics.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Screen()
        self.moving = self.console.is_terminal and not self.console.is_dumb_terminal
        self.seconds = self.tokens = 0.0
        self.last: Mapping[str, Any] = {}
        self.progress = Progress(TextColumn("distilling"), BarColumn(None), MofNCompleteColumn(), console=self.console)
        self.task = self.progress.add_task("steps", total=None)
        self.live: Live | None = None

    @classmethod
    def silent(cls) -> Display:
        """A display that shows nothing."""
        return cls(Console(file=io.StringIO()))

    @contextlib.contextmanager
    def showing(self, done: int, steps: int) -> Iterator[None]:
        """Show a run of `steps` steps, `done` of which are done, inside the block."""
        self.progress.update(self.task, total=steps, completed=done)
        self.drawn = 0.0
        if done:
            self.say(f"Going on from step {done} of {steps}.")
        if not self.moving:
            yield
            return
        with Live(self._panel(), console=self.console, auto_refresh=False, transient=True) as self.live:
            yield
        self.live = None

    def step(self, step: int, tokens: int, seconds: float, record: Mapping[str, Any]) -> None:
        """Take note of a finished step: its tokens, the seconds it took, and its metrics if it has any."""
        first = self.seconds == 0
        self.seconds = seconds if first else SMOOTH * self.seconds + (1 - SMOOTH) * seconds
        self.tokens = tokens if first else SMOOTH * self.tokens + (1 - SMOOTH) * tokens
        self.progress.update(self.task, completed=step)
        if "terms" in record:
            self.last = {**self.last, **record}
            if not self.moving:
                self.say(f"step {step}/{self.progress.tasks[0].total:.0f}  {self._facts()}")
        if self.live is not None and time.monotonic() - self.drawn > 0.2:
            self.live.update(self._panel(), refresh=True)
            self.drawn = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _facts(self) -> str:
        record = self.last
        left = (self.progress.tasks[0].remaining or 0) * self.seconds
        terms = "  ".join(f"{name} {value:.4f}" for name, value in record.get("terms", {}).items())
        widths = "  ".join(f"{name} {width}" for name, width in record.get("widths", {}).items())
        held = record.get("heldout", {})
        agreement = f"  agreement {held['agreement']:.3f}" if "agreement" in held else ""
        return (
            f"{widths}  |  {terms}  |  discrepancy {record.get('discrepancy', 0):.4f}{agreement}  |  "
            f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s  {timedelta(seconds=round(left))} left"
        )

    def _panel(self) -> Group:
        lines = self._facts().split("  |  ") if self.last else ["waiting for the first metrics"]
        return Group(self.progress, *(Text(f"  {line}") for line in lines))
