"""metrics.jsonl: one object for each step and each evaluation, in the order in which they happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megagpt.runtime import atomic


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of a metrics.jsonl, and how many lines were not readable: a job killed while writing leaves half a line."""
    rows, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            torn += 1
    return rows, torn


def cut_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """Take out what came after a step; a crash meanwhile leaves the old file. Returns the rows that stay."""
    rows = [row for row in read_metrics(path)[0] if row["step"] <= step]
    atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows
