"""The display: a panel on a terminal, plain lines elsewhere, the same facts on both."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from homodistil.reports.live import Display

RECORD = {
    "step": 10,
    "terms": {"hidden": 0.25, "lm": 1.5},
    "discrepancy": 0.25,
    "widths": {"hidden": 40, "heads": 4},
    "heldout": {"agreement": 0.875},
}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_widths_losses_discrepancy_speed_and_time_left_are_shown(terminal: bool) -> None:
    """On a terminal and in a file."""
    file = io.StringIO()
    display = Display(Console(file=file, force_terminal=terminal, width=200, color_system=None))
    with display.showing(0, 20):
        display.step(10, 1000, 0.5, RECORD)
        display.say("0.5: saved")
    shown = file.getvalue()
    for fact in ("10/20", "hidden 40", "hidden 0.2500", "lm 1.5000", "discrepancy 0.2500", "agreement 0.875",
                 "2,000 tokens/s", "0:00:05 left", "0.5: saved"):  # fmt: skip
        assert fact in shown


def test_a_file_gets_a_line_a_record_and_no_control_codes() -> None:
    """Steps without metrics print nothing, so that logs stay short."""
    file = io.StringIO()
    display = Display(Console(file=file))
    with display.showing(0, 20):
        for step in range(1, 11):
            display.step(step, 100, 0.1, RECORD if step == 10 else {})
    assert file.getvalue().count("step ") == 1
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_resumed_run_says_where_it_goes_on(terminal: bool) -> None:
    """The first line of a resumed run names the step, at which the bar of a terminal begins."""
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=terminal, width=200, color_system=None)).showing(7, 20):
        pass
    assert "from step 7 of 20" in file.getvalue()
    assert ("7/20" in file.getvalue()) == terminal
