"""What is looked at: `homodistil report` and `homodistil demo`."""

from __future__ import annotations

import argparse


def report(words: list[str]) -> None:
    """Make one page out of runs."""
    parser = argparse.ArgumentParser(
        "homodistil report", description="One self-contained page, and its pictures, out of runs.", allow_abbrev=False
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs")
    parser.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="FILE",
        help="what `homodistil evaluate --json` wrote; several times for several; RUN/evaluation.json is found",
    )
    parser.add_argument("--out", default="report", help="the folder of index.html and its pictures (default: report)")
    options = parser.parse_args(words)

    from homodistil.reports.page import report

    print(report(options.runs, options.evaluation, options.out))


def demo(words: list[str]) -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(
        "homodistil demo", description="Halve all-MiniLM-L6-v2 on real text.", allow_abbrev=False
    )
    parser.add_argument("--out", default="runs/demo", help="the run's folder; a number is added if it is taken")
    parser.add_argument("--tokens", default="600k", help="how long to train (default: 600k, some minutes on 2 cores)")
    options = parser.parse_args(words)

    from homodistil.demo import demo

    demo(options.out, options.tokens)
