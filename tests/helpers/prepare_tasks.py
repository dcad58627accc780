"""A phase for tests of executors: each task writes a file, and what the test wants goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

from megagpt.config.prepare import ExecutorConfig
from megagpt.prepare.executors import run_phases
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.ranks import joined
from megagpt.runtime import atomic
from megagpt.runtime.errors import Foreseen
from megagpt.runtime.stop_request import ending


class Write(TaskStep):
    """Task n writes `<folder>/<n>` and adds a line to `<folder>/log`.

    Args:
        fault: of task 1, as long as the file `<folder>/fault` lies there. `full`, `error`, `kill`; `wait` leaves its process id in `<folder>/waits`;
            `changed` and `swallowed` are asked to stop, and a library makes another error of that, or none.
    """

    name = "write"

    def __init__(self, folder: Path, fault: str = "") -> None:
        super().__init__()
        self.folder, self.fault = folder, fault

    def run_task(self, task: int, num_tasks: int) -> None:
        if task == 1 and (self.folder / "fault").exists():
            if self.fault == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "1"))
            if self.fault == "error":
                raise ValueError("a defect")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "wait":
                atomic.write_text(self.folder / "waits", str(os.getpid()))
                time.sleep(600)
            if self.fault in ("changed", "swallowed"):
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(600)
                except KeyboardInterrupt:
                    if self.fault == "changed":
                        raise RuntimeError("Query interrupted") from None
        with open(self.folder / "log", "a") as file:
            file.write(f"{task}\n")
        atomic.write_text(self.folder / str(task), f"{task} of {num_tasks}")


def run(folder: Path, kind: str, workers: int | None = None, fault: str = "", num_tasks: int = 5) -> None:
    """The phase, under an executor."""
    with joined(kind):
        run_phases([Phase("write", num_tasks, Write(folder, fault))], ExecutorConfig(kind=kind, workers=workers), folder / "work")


if __name__ == "__main__":
    fault, workers = [*sys.argv[3:], ""][0], [*map(int, sys.argv[4:]), None][0]
    try:
        with ending("stopped"):
            run(Path(sys.argv[1]), sys.argv[2], workers, fault)
    except Foreseen as error:
        print(f"megagpt: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
