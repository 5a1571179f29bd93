"""The command line: its verbs, each of which imports what it needs when it is called."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from homodistil.cli.distil import distil
from homodistil.cli.evaluate import evaluate
from homodistil.cli.plan import families, plan
from homodistil.cli.report import demo, report
from homodistil.cli.trim import trim
from homodistil.errors import RunStopped, UserError, nearest

USAGE = """usage: homodistil VERB ...

Make pre-trained transformers small. The student starts as a copy of the teacher and is distilled on plain text while
its least important units are cut away.

  plan      what would come out: shape, parameters, operations, memory; no training
  distil    make smaller students of a teacher, or go on with a run that was stopped
  trim      drop the tokens that a text never uses; no training
  evaluate  what a model can do, how large and how fast it is, beside its teacher
  families  which models can be cut, along which axes
  report    one page of pictures and tables out of runs
  demo      halve all-MiniLM-L6-v2 on real text and show what came out

`homodistil VERB --help` says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for input to correct, 128 + signal for a stop."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_environment()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a name or a sign that the terminal cannot show must end nothing
            stream.reconfigure(errors="backslashreplace")
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(USAGE, end="")
            return 0 if words else 2
        if words[0] == "--version":
            from homodistil import __version__

            print(f"homodistil {__version__}")
            return 0
        if words[0] not in VERBS:
            raise UserError(
                f"There is no verb {words[0]!r}.",
                f"The verbs are {', '.join(VERBS)}.",
                "Use `homodistil distil --resume FOLDER`." if words[0] == "resume" else nearest(words[0], VERBS),
            )
        VERBS[words[0]](words[1:] if words[0] == "distil" else _dashed(words[1:]))
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        _explain(error)
        return 2
    except RunStopped as stop:
        _leave_in_peace()
        _explain(stop)
        return 128 + stop.signal_number
    except BrokenPipeError:
        # whoever read what is printed has gone, as `head` does; Python would say so once more when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _leave_in_peace()
        print("Stopped before the next save; what was saved before is whole.", file=sys.stderr)
        return 130
    return 0


def _dashed(words: list[str]) -> list[str]:
    """Options as these verbs spell them, where they are written as in a recipe: --text.column, --trust_remote_code."""
    made = []
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace(".", "-").replace("_", "-")
        made.append(f"{name}{equals}{value}")
    return made


def _explain(reason: Exception) -> None:
    """Say it whole, or in a line if another process of the same run says it too."""
    process = os.environ.get("RANK", "0")
    print(reason if process == "0" else f"process {process}: {str(reason).splitlines()[0]}", file=sys.stderr)


def _leave_in_peace() -> None:
    """A stop has been asked for: more of Ctrl-C would only end what ends already with a traceback."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _prepare_environment() -> None:
    """What other libraries read once, when they are first imported or used."""
    # one display at a time: others' progress bars and notes would tear ours
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # what an Apple GPU has no kernel for, such as solving systems at a cut, its CPU does
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # torch asks for huge pages where it allocates megabytes: a step on a CPU was measured to be 7 % shorter
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


VERBS: dict[str, Callable[[list[str]], Any]] = {
    "plan": plan,
    "distil": distil,
    "trim": trim,
    "evaluate": evaluate,
    "families": families,
    "report": report,
    "demo": demo,
}
