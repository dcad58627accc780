"""A part of the preparation that must be whole before the next one begins."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

TELL_SECONDS = 1.0
"""Between two words of a task about how far it is."""


class TaskStep(PipelineStep):
    """A datatrove block that is a whole task by itself: it reads what earlier phases wrote, and writes whole files under their own names."""

    type = "prepare"
    told: Path | None = None
    """File for the share of the task that is done; None: nobody looks."""
    _told_at = 0.0

    @abstractmethod
    def run_task(self, task: int, num_tasks: int) -> None:
        """Do the task. It may have been cut anywhere before, and is then done again from its beginning."""

    def run(self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        began = time.perf_counter()
        self.run_task(rank, world_size)
        self.stat_update("seconds all", value=time.perf_counter() - began, unit="task")

    def tell(self, share: Callable[[], float]) -> None:
        """Say how much of the task is done, 0 to 1; call it as often as you like."""
        now = time.monotonic()
        if self.told is None or now - self._told_at < TELL_SECONDS:
            return
        self._told_at = now
        with suppress(OSError):  # a full disk is the task's own matter
            self.told.write_text(f"{share():.4f}")


@dataclass(frozen=True)
class Phase:
    name: str
    num_tasks: int
    """Fixed by the input and the configuration; the number of workers has no part in it."""
    step: TaskStep
    """Picklable: it goes to other processes and machines."""
    sizes: Sequence[int] | None = None
    """Bytes of input behind each task; None: not known, tasks count alike."""
