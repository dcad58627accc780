"""Counts of identity terms of one task, as a file."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from datatrove.data import Document

from megagpt.config.prepare import RepresentationConfig
from megagpt.prepare.representation import Representation
from megagpt.runtime import atomic


class Counts:
    """Counted while documents pass; written when the block ends well. Nothing where the step is off."""

    def __init__(self, folder: Path, task: int, config: RepresentationConfig | None) -> None:
        self._path = folder / f"{task:05d}.json"
        self._representation = None if config is None else Representation(config)

    def __enter__(self) -> Counts:
        return self

    def add(self, document: Document) -> None:
        if self._representation is not None:
            self._representation.add(document.metadata["source"], document.text)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._representation is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, self._representation.counts())
