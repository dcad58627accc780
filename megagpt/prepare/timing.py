"""Seconds that a task spent in its reader and in each step: what a planner extrapolates from."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from datatrove.pipeline.base import PipelineStep

from megagpt.runtime import atomic

Item = TypeVar("Item")
FILE = "timing.json"


class Times:
    """Of one task."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def reading(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; what their source takes is noted as `reader`."""
        iterator = iter(items)
        while True:
            began = time.perf_counter()
            item = next(iterator, None)
            self.seconds["reader"] += time.perf_counter() - began
            if item is None:
                return
            yield item

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """What the block takes is noted under this name."""
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def tell(self, step: PipelineStep, num_documents: int, num_bytes: int) -> None:
        """Into the statistics that datatrove writes beside the task's marker."""
        for name, seconds in self.seconds.items():
            step.stat_update(f"seconds {name}", value=seconds, unit="task")
        step.stat_update("documents", value=num_documents, unit="task")
        step.stat_update("bytes", value=num_bytes, unit="task")


def gather(folder: Path, work: Path) -> None:
    """Sums over all tasks of each phase, from what lies beside their markers, and the bytes on disk of each folder, into `timing.json`:
    `{"phases": {phase: {"tasks", "documents", "bytes", "seconds": {"all", "reader", step: …}}}, "disk": {folder: bytes}}`."""
    phases: dict[str, dict[str, Any]] = {}
    for tasks in sorted((work / "tasks").iterdir()):
        phase: dict[str, Any] = {"tasks": 0, "documents": 0, "bytes": 0, "seconds": Counter()}
        for file in sorted((tasks / "stats").glob("*.json")):
            phase["tasks"] += 1
            for name, value in json.loads(file.read_text(encoding="utf-8"))[0]["stats"].items():
                total = value["total"] if isinstance(value, dict) else value
                if name.startswith("seconds "):
                    phase["seconds"][name.removeprefix("seconds ")] += total
                else:
                    phase[name] = phase.get(name, 0) + total
        phases[tasks.name] = phase
    places = {f"work/{entry.name}": entry for entry in sorted(work.iterdir()) if entry.name != "tasks"}
    places |= {name: folder / name for name in ("documents", "ledger")}
    atomic.write_json(folder / FILE, {"phases": phases, "disk": {name: _num_bytes(path) for name, path in places.items()}})


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
