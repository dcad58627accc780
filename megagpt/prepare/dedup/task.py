"""What all tasks between the clean and the finish phase have in common."""

from __future__ import annotations

from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.dedup.layout import Layout
from megagpt.prepare.phase import TaskStep


class DedupTask(TaskStep):
    """A task over the fingerprints of the whole corpus."""

    def __init__(self, config: PrepareConfig, work: Path):
        super().__init__()
        self.exact, self.near = config.steps.exact_duplicates, config.steps.near_duplicates
        self.memory_gib = config.executor.memory_gib
        self.layout = Layout(work)
