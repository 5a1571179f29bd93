"""What is said to a user whose input cannot be taken. No torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that the user can correct: what was refused, what must hold, what to do.

    Args:
        refused: what cannot be done, with the value that arrived.
        rule: what must hold.
        remedy: what to do instead.

    The command line prints the three sentences and exits with status 2.
    """

    def __init__(self, refused: str, rule: str, remedy: str) -> None:
        super().__init__("\n".join((refused, rule, remedy)))
        self.refused, self.rule, self.remedy = refused, rule, remedy

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        # otherwise it is made anew from its message alone, and what a process for text refuses ends in a TypeError
        return type(self), (self.refused, self.rule, self.remedy)


class RunStopped(Exception):  # noqa: N818 - a stop that was asked for is no error
    """A run that was asked to stop, has saved itself, and can be resumed.

    Args:
        signal_number: the signal that asked (2 for Ctrl-C, 15 for SIGTERM).
        message: the last line for the user.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def first_line(error: Exception) -> str:
    """What an error of a library says first, as far as a line may go."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def reason(error: Exception) -> str:
    """What was said first, where a library hides it behind an error of its own."""
    cause = error.__cause__
    return first_line(cause if isinstance(cause, Exception) else error)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, as `Did you mean 'x'?`, or the list of all known words."""
    choices = list(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else "Known are: " + ", ".join(choices) + "."
