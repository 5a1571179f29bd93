"""The tables of docs/performance.md, out of what the benchmarks have written.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from typing import Any

from harness import RESULTS, said
from homodistil.reports.tables import markdown


def main() -> None:
    """Print a table for each file of results."""
    for file in sorted(RESULTS.glob("*.json")):
        found: dict[str, Any] = json.loads(file.read_text())
        rows = found["rows"]
        print(f"\n### {found['title']} (`{file.name}`)\n")
        print(markdown(list(rows[0]), [[said(value) for value in row.values()] for row in rows]))
        for name, value in found.items():
            if name not in ("title", "machine", "threads", "rows"):
                print(f"\n{name.replace('_', ' ')}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
