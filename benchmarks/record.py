"""What every benchmark writes down: the commit, the machine, and one JSON line a figure."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from rillm.bench import cpu_name

FOLDER = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"


def git_commit() -> str:
    """Short hash of the checkout, with + where it has changes."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    return run.stdout.strip() or "unknown"


def record(name: str, **fields: Any) -> None:
    """Appends one figure to results/NAME.jsonl."""
    row = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git_commit(),
        "cpu": cpu_name(),
        **fields,
    }
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def fill_table(document: str, marker: str, rows: str) -> None:
    """Puts rows under the head of the table after <!-- MARKER -->, in both languages."""
    for path in (DOCS / f"{document}.md", DOCS / f"{document}.zh.md"):
        text = path.read_text(encoding="utf-8")
        head = rf"(<!-- {marker} -->\n\|.*\n\|[-|]+\|\n)(?:\|.*\n)*"
        text, count = re.subn(head, lambda match: match[1] + rows, text)
        if count != 1:
            raise SystemExit(f"{path}: has no table after <!-- {marker} -->")
        path.write_text(text, encoding="utf-8")


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]
