"""DeepSpeed's launcher of the ranks of one machine, with signals handed on to the ranks.

    python -m megagpt.pipeline.ranks OPTIONS_OF_DEEPSPEED_LAUNCHER_LAUNCH

By itself `deepspeed.launcher.launch` is ended by SIGUSR1 and leaves its ranks running; on SIGTERM, and when a rank fails, it
waits 30 seconds for each rank in turn. Here both signals go to every rank, so that all can save, and the launcher ends with
their exit code (75: stopped on request). Ranks that outlive one that failed wait for it in vain: they get a SIGTERM and, if that
does not end them, are killed together.
"""

from __future__ import annotations

import subprocess
import threading
import time
from signal import Signals, sigwait
from types import SimpleNamespace

import psutil

from megagpt.runtime.stop_request import SIGNALS, hold_back

GRACE_SECONDS = 15.0
"""Between the failure of the first rank and the killing of the others. They stop together, so this is ample."""


class Ranks:
    """The processes of this launcher, and the signals that they were sent."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.received: list[Signals] = []
        self.deadline: float | None = None

    def start(self, *arguments, **settings) -> subprocess.Popen:
        """In place of the launcher's `subprocess.Popen`: a signal that came before the rank began is for it too."""
        process = subprocess.Popen(*arguments, **settings)
        self.processes.append(process)
        for number in self.received:
            process.send_signal(number)
        return process

    def hand_on(self) -> None:
        """Send each signal to every rank; without end."""
        while True:
            self.received.append(Signals(sigwait(SIGNALS)))
            for process in self.processes:
                process.send_signal(self.received[-1])

    def end(self, pid: int) -> None:
        """In place of the launcher's `terminate_process_tree`: all get SIGTERM, and what still runs some seconds later is killed."""
        if self.deadline is None:
            self.deadline = time.monotonic() + GRACE_SECONDS
            for process in self.processes:
                process.terminate()
        rank = psutil.Process(pid)
        family = [rank, *rank.children(recursive=True)]
        _, alive = psutil.wait_procs([rank], timeout=max(0.0, self.deadline - time.monotonic()))
        for process in family if alive else family[1:]:
            if process.is_running():
                process.kill()


def main() -> None:
    """Run the launcher in this process; where a rank failed it ends with that rank's exit code."""
    hold_back()  # before any thread exists: each inherits the mask, and so do the ranks, which let signals through when they are ready
    from deepspeed.launcher import launch

    ranks = Ranks()
    launch.subprocess = SimpleNamespace(Popen=ranks.start)
    launch.terminate_process_tree = ranks.end
    threading.Thread(target=ranks.hand_on, name="signals to ranks", daemon=True).start()
    launch.main()


if __name__ == "__main__":
    main()
