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


class Counts:
    """Counted while the documents of a task pass; written when the block ends well. Nothing where the step is off."""

    def __init__(self, folder: Path, task: int, config: RepresentationConfig | None) -> None:
        self._path = folder / f"{task:05d}.json"
        self._representation = None if config is None else Representation(config)

    def __enter__(self) -> Counts:
        return self

    def add(self, source: str, text: str, weight: float = 1.0) -> None:
        if self._representation is not None:
            self._representation.add(source, text, weight)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._representation is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, self._representation.counts())


def read_counts(folder: Path) -> dict[str, Any]:
    """The sum over all tasks."""
    return merge(json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
