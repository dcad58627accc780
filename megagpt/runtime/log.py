"""What a stage tells the outside: one line a step, metrics.jsonl, TensorBoard, a progress bar with ETA."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from megagpt.runtime import atomic


def is_main_rank() -> bool:
    """True on the one rank that prints; before the process group exists, by what the launcher set."""
    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print one line, once for the whole job, without tearing a progress bar."""
    if is_main_rank():
        say_here(message)


def say_here(message: str) -> None:
    """Print one line from this rank, whichever it is."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()


def left_out(dropped: Mapping[str, int]) -> str:
    """End of a line about data: how many records were dropped, by reason; empty where none was."""
    return f" (left out: {', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""


class StageLog:
    """Metrics of one stage; only rank 0 writes, the others hold an inactive object.

    Args:
        folder: the stage's folder.
        total_steps: length of the progress bar.
        log_every: steps between printed lines.
        resume_step: the step after which the stage goes on; what was recorded of later ones is dropped.
    """

    def __init__(self, folder: Path, stage: str, total_steps: int, log_every: int, resume_step: int = 0) -> None:
        self.stage, self.total_steps, self.log_every = stage, total_steps, log_every
        self._active, self._started = is_main_rank(), time.perf_counter()
        if self._active:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            _keep_until(folder / "metrics.jsonl", resume_step)
            self._metrics = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"))
            self._bar = tqdm(total=total_steps, desc=stage, unit="step", file=sys.stderr, mininterval=1.0 if sys.stderr.isatty() else 15.0, dynamic_ncols=True, initial=resume_step)

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, *_) -> None:
        if self._active:
            self._bar.close()
            self._metrics.close()
            self._board.close()

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of one optimizer step (or one PPO round)."""
        if not self._active:
            return
        self._write({"step": step, **metrics})
        self._bar.update(step - self._bar.n)
        if step % self.log_every == 0 or step == self.total_steps:
            self._line(f"step {step}/{self.total_steps}", metrics)

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Record a measurement on held-out data."""
        if self._active:
            self._write({"step": step, **metrics})
            self._line(f"evaluation at step {step}", metrics)

    def _write(self, row: dict[str, Any]) -> None:
        clean = atomic.without_nan(row)
        self._metrics.write(json.dumps({**clean, "seconds": round(time.perf_counter() - self._started, 3)}) + "\n")
        for name, value in clean.items():
            if isinstance(value, (int, float)) and name != "step":
                self._board.add_scalar(name, value, row["step"])

    def _line(self, head: str, metrics: dict[str, Any]) -> None:
        parts = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in metrics.items()]
        say(f"[{self.stage}] {head} | " + " | ".join(parts))


def _keep_until(metrics: Path, step: int) -> None:
    """Drop the rows of later steps, and all of them for step 0."""
    rows = metrics.read_text(encoding="utf-8").splitlines() if step and metrics.exists() else []
    kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= step]  # a killed run may leave half a row
    atomic.write_text(metrics, "".join(row + "\n" for row in kept))
