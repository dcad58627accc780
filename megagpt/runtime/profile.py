"""A window of steps under torch's profiler: where the time goes, and on CUDA the memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from megagpt.runtime.log import say

MAX_MEMORY_EVENTS = 100_000


class StepProfiler:
    """`with profiler.step(step): …` around every optimizer step; the chosen ones are traced on every rank.

    Args:
        folder: of the stage; `profile/` in it gets `steps_<a>-<b>_rank_<r>.json`, and on CUDA a `.pickle` of every allocation.
        first_step, num_steps: the window, as in ProfileConfig; first_step 0: never.
    """

    def __init__(self, folder: Path, first_step: int, num_steps: int) -> None:
        self.folder, self.first, self.last = folder / "profile", first_step, first_step + num_steps - 1
        self._profile: profile | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Starts before the first step of the window, writes after the last; without effect elsewhere."""
        if self.first and step == self.first:
            self._start()
        yield
        if self._profile is not None and step == self.last:
            self._write()

    def _start(self) -> None:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()

    def _write(self) -> None:
        self._profile.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = dist.get_rank() if dist.is_initialized() else 0
        file = self.folder / f"steps_{self.first}-{self.last}_rank_{rank}.json"
        self._profile.export_chrome_trace(str(file))
        self._profile, memory = None, ""
        if torch.cuda.is_available():
            torch.cuda.memory._dump_snapshot(str(file.with_suffix(".pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
            memory = "; the .pickle beside it in https://docs.pytorch.org/memory_viz"
        say(f"profile of steps {self.first}-{self.last}: open {file} in https://ui.perfetto.dev{memory}")
