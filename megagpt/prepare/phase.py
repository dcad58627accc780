"""A part of the preparation that must be whole before the next one begins."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep


class TaskStep(PipelineStep):
    """A datatrove block that is a whole task by itself: it reads what earlier phases wrote, and writes whole files under their own names."""

    type = "prepare"

    @abstractmethod
    def run_task(self, task: int, num_tasks: int) -> None:
        """Do the task. It may have been cut anywhere before, and is then done again from its beginning."""

    def run(self, data: Iterator[Document] | None = None, rank: int = 0, world_size: int = 1) -> None:
        began = time.perf_counter()
        self.run_task(rank, world_size)
        self.stat_update("seconds all", value=time.perf_counter() - began, unit="task")


@dataclass(frozen=True)
class Phase:
    name: str
    num_tasks: int
    """Fixed by the input and the configuration; the number of workers has no part in it."""
    step: TaskStep
    """Picklable: it goes to other processes and machines."""
