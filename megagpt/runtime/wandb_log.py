"""Metrics to Weights & Biases, where somebody wants them there. Whatever is missing costs one line, never the run."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megagpt.runtime import atomic


class WandbLog:
    """One run of a project, named `<run>/<stage>`; inactive where the package is absent or nobody is logged in.

    Args:
        folder: the stage's; wandb.txt in it holds the run's id, by which a resumed stage finds its run again.
        resumes: go on with that run.
        say: prints a line.

    With WANDB_MODE=offline the package keeps the data in the folder, for `wandb sync`.
    """

    def __init__(self, project: str, folder: Path, resumes: bool, say: Callable[[str], None]) -> None:
        self._run, self._say = None, say
        try:
            wandb = importlib.import_module("wandb")
            if wandb.setup().settings.mode not in ("offline", "disabled") and not wandb.login(prompt=False, verify=False):
                return self._off("nobody is logged in (wandb login, or WANDB_MODE=offline)")
            note = folder / "wandb.txt"
            name = note.read_text() if resumes and note.exists() else uuid.uuid4().hex
            atomic.write_text(note, name)
            self._run = wandb.init(
                project=project, name=f"{folder.parent.name}/{folder.name}", id=name, resume="allow", dir=str(folder),
                settings=wandb.Settings(silent=True),
            )
            self._run.define_metric("*", step_metric="step")  # steps may come twice, after a return to a checkpoint
        except ImportError:
            self._off("the package is not installed (pip install megagpt[wandb])")
        except Exception as error:
            self._off(type(error).__name__)  # not its text, in which there may be a key

    def write(self, row: Mapping[str, Any]) -> None:
        """One row of metrics, `step` among them."""
        self._attempt(lambda run: run.log(dict(row)))

    def close(self) -> None:
        """Wait until everything is sent."""
        self._attempt(lambda run: run.finish())

    def _attempt(self, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            try:
                action(self._run)
            except Exception as error:
                self._off(type(error).__name__)

    def _off(self, reason: str) -> None:
        self._run = None
        self._say(f"Weights & Biases gets no metrics: {reason}")
