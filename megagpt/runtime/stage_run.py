"""All that surrounds the steps of a stage: metrics, heartbeat, profiler, speed, this rank's log, and requests to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt.config.schema import RlhfConfig, StageConfig
from megagpt.runtime.log import StageLog
from megagpt.runtime.profile import StepProfiler
from megagpt.runtime.rank_log import rank_log
from megagpt.runtime.stop_request import Stopped, requested
from megagpt.runtime.throughput import Meter
from megagpt.runtime.watchdog import Heartbeat


class StageRun(contextlib.ExitStack):
    """`with StageRun(…) as around:` on every rank, and in it for each step

        with around.step(step), around.phase("data"):
            …
        around.record(step, metrics, num_tokens)
        around.end_step(step, save, wait)

    Args:
        folder: of the stage.
        total_steps: of the whole run; the first `resume_step` of them were done before.
        flops_per_token: of the model, forward and backward; None records no speed.
    """

    def __init__(
        self, config: StageConfig | RlhfConfig, folder: Path, total_steps: int, resume_step: int, device: torch.device, flops_per_token: float | None = None
    ) -> None:
        super().__init__()
        self._config, self._folder, self._total_steps, self._resume_step, self._device = config, folder, total_steps, resume_step, device
        self._meter = None
        if flops_per_token is not None:
            self._meter = Meter(flops_per_token, dist.get_world_size(), device, config.precision.dtype)
        profile = getattr(config, "profile", None)
        self._profiler = StepProfiler(folder, *((profile.first_step, profile.num_steps) if profile else (0, 1)))

    def __enter__(self) -> StageRun:
        super().__enter__()
        run = self._config.run
        own_log = self.enter_context(rank_log(self._folder))
        self.log = self.enter_context(
            StageLog(self._folder, self._config.stage, self._total_steps, self._config.every.log, self._resume_step, run.wandb_project)
        )
        self._beat = self.enter_context(Heartbeat(run.timeout_seconds, own_log))
        return self

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around one optimizer step or PPO round."""
        self._beat.step = step
        if self._meter is not None:
            self._meter.start()
        with self._profiler.step(step):
            yield

    def phase(self, name: str) -> contextlib.AbstractContextManager:
        """What this rank does within the block, should somebody have to wait for it."""
        return self._beat.phase(name)

    def record(self, step: int, metrics: dict[str, Any], num_tokens: int = 0) -> None:
        """Metrics of a step of so many tokens over all replicas."""
        self.log.step(step, metrics if self._meter is None else metrics | self._meter.stop(num_tokens))

    def due(self, interval: int, step: int) -> bool:
        """Does something that happens every `interval` steps (0: never) happen now? The last step has its own call."""
        return interval > 0 and step % interval == 0 and step < self._total_steps

    def end_step(self, step: int, save: Callable[[int], object], wait: Callable[[], None], *, milestone: bool = False) -> None:
        """Save where it is due, or where any rank was asked to stop. All ranks call this.

        Args:
            save: begins to write the checkpoint of a step.
            wait: until it is on disk.
            milestone: a step to save whatever `every.save` says, such as an epoch's last one.

        Raises:
            Stopped: on request, with a checkpoint on disk.
        """
        asked = torch.tensor(float(requested()), device=self._device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        must_stop = bool(asked) and step < self._total_steps
        if must_stop or milestone or self.due(self._config.every.save, step):
            save(step)
        if must_stop:
            wait()
            how = "go on with run.resume=auto" if self._config.run.resume == "never" else "the same command goes on from there"
            raise Stopped(f"{self._config.stage}: stopped on request after step {step}; {how}")
