"""Counts of identity terms of the tasks, as files."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from megagpt.config.prepare import RepresentationConfig
from megagpt.prepare.representation import Representation, merge
from megagpt.runtime import atomic

BEFORE, AFTER, WEIGHED = "before", "after", "weighed"
"""Folders in `work`: of all documents that were seen, of those that were kept, and of these with the weights that re-weighting gave them."""
DROPPED = ("dropped_by_cleaning", "dropped_by_finishing")
"""Folders in `work`: of documents that were dropped, by step."""


class Counts:
    """Counted while the documents of a task pass, each under a heading; written when the block ends well. Nothing where the step is off."""

    def __init__(self, folder: Path, task: int, config: RepresentationConfig | None) -> None:
        self._path, self._config = folder / f"{task:05d}.json", config
        self._found: dict[str, Representation] = {}

    def __enter__(self) -> Counts:
        return self

    def add(self, source: str, text: str, weight: float = 1.0, heading: str = "all") -> None:
        if self._config is None:
            return
        if heading not in self._found:
            self._found[heading] = Representation(self._config)
        self._found[heading].add(source, text, weight)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._config is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, {heading: counted.counts() for heading, counted in sorted(self._found.items())})


def read_counts(folder: Path) -> dict[str, Any]:
    """The sum over all tasks of what has no heading of its own."""
    return read_headings(folder).get("all", {})


def read_headings(folder: Path) -> dict[str, dict[str, Any]]:
    """Heading -> the sum over all tasks."""
    return merge(json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
