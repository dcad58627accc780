"""What a stage tells the outside: one line a step, metrics.jsonl, TensorBoard, a progress bar with ETA."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from megagpt.runtime import atomic
from megagpt.runtime.metrics_file import cut_metrics
from megagpt.runtime.own_rank import rank_from_environment
from megagpt.runtime.wandb_log import WandbLog


def is_main_rank() -> bool:
    """True on the one rank that prints; before the process group exists, by what the launcher set."""
    return dist.get_rank() == 0 if dist.is_initialized() else rank_from_environment() == 0


def say(message: str) -> None:
    """Print one line, once for the whole job, without tearing a progress bar."""
    if is_main_rank():
        say_here(message)


def say_here(message: str) -> None:
    """Print one line from this rank, whichever it is. Where nobody can read it (a log file on a full disk) it is lost, not the run."""
    with contextlib.suppress(OSError):
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def left_out(dropped: Mapping[str, int]) -> str:
    """End of a line about data: how many records were dropped, by reason; empty where none was."""
    return f" (left out: {', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""


FIRST = (
    "loss", "eval_loss", "lr", "grad_norm", "loss_scale", "batch_size", "tokens", "tokens_per_s", "tflops_per_device", "mfu", "memory_gib",
)  # fmt: skip
"""Order of a printed line; all other metrics follow as they come."""


class StageLog:
    """Metrics of one stage; only rank 0 writes, the others hold an inactive object. What a full disk does not take is lost, with one line.

    Args:
        folder: the stage's folder, for metrics.jsonl and tensorboard/.
        total_steps: length of the progress bar.
        log_every: steps between printed lines.
        resume_step: what was recorded up to this step stays, later rows go; 0: all is started anew.
        wandb_project: send the metrics to this Weights & Biases project too.
    """

    def __init__(
        self, folder: Path, stage: str, total_steps: int, log_every: int, resume_step: int = 0, wandb_project: str | None = None
    ) -> None:
        self.folder, self.stage, self.total_steps, self.log_every = folder, stage, total_steps, log_every
        self._active, self._wandb = is_main_rank(), None
        self._failed: set[str] = set()
        if self._active:
            if resume_step == 0:
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
                (folder / "metrics.jsonl").unlink(missing_ok=True)
            self._open(resume_step)
            if wandb_project is not None:
                self._wandb = WandbLog(wandb_project, folder, resume_step > 0, lambda text: say(f"[{stage}] {text}"))
            self._bar = tqdm(
                total=total_steps, initial=resume_step, desc=stage, unit="step", file=sys.stderr, mininterval=1.0 if sys.stderr.isatty() else 15.0,
                dynamic_ncols=True,
            )

    def __enter__(self) -> StageLog:
        return self

    def __exit__(self, *_) -> None:
        if self._active:
            self._attempt("the progress bar", self._bar.close)
            self._close()
            if self._wandb is not None:
                self._wandb.close()

    def go_back(self, step: int) -> None:
        """Forget what came after a step: the run has returned to its checkpoint."""
        if self._active:
            self._close()
            self._open(step)
            self._bar.n = step
            self._bar.refresh()

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of one optimizer step (or one PPO round)."""
        if not self._active:
            return
        self._write({"step": step, **metrics})
        self._attempt("the progress bar", lambda: self._bar.update(step - self._bar.n))
        if step % self.log_every == 0 or step == self.total_steps:
            self._line(f"step {step}/{self.total_steps}", metrics)

    def evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        """Record a measurement on held-out data, unless an earlier run has already recorded it at the step where this one goes on."""
        if self._active:
            row = {"step": step, **metrics}
            if (step, row.keys()) not in self._recorded:
                self._write(row)
            self._line(f"evaluation at step {step}", metrics)

    def remark(self, step: int, who: str, text: str) -> None:
        """Say something about a step, and keep it beside its metrics."""
        if self._active:
            self._write({"step": step, who: text})
            say(f"[{self.stage}] {who}: step {step}: {text}")

    def replace_file(self, name: str, value: Any) -> None:
        """A JSON file beside the metrics becomes this value."""
        if self._active:
            self._attempt(name, lambda: atomic.write_json(self.folder / name, value))

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = cut_metrics(self.folder / "metrics.jsonl", step)
        self._recorded = [(step, row.keys() - {"seconds"}) for row in kept if row["step"] == step]
        self._started = time.perf_counter() - (kept[-1]["seconds"] if kept else 0.0)
        self._metrics = open(self.folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def _close(self) -> None:
        self._attempt("metrics.jsonl", self._metrics.close)
        self._attempt("tensorboard/", self._board.close)

    def _write(self, row: dict[str, Any]) -> None:
        clean = atomic.without_nan(row)
        line = json.dumps({**clean, "seconds": round(time.perf_counter() - self._started, 3)}) + "\n"
        self._attempt("metrics.jsonl", lambda: self._metrics.write(line))
        self._attempt("tensorboard/", lambda: self._plot(clean))
        if self._wandb is not None:
            self._wandb.write(clean)

    def _plot(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self._board.add_scalar(name, value, row["step"])

    def _attempt(self, what: str, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            if what not in self._failed:
                self._failed.add(what)
                say(f"[{self.stage}] {what} could not be written ({error.strerror}); training goes on without")

    def _line(self, head: str, metrics: dict[str, Any]) -> None:
        names = [name for name in FIRST if name in metrics] + [name for name in metrics if name not in FIRST]
        say(f"[{self.stage}] {head} | " + " | ".join(f"{name} {_show(metrics[name])}" for name in names))


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
