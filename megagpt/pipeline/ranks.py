"""DeepSpeed's launcher of the ranks of one machine, with signals passed on to the ranks.

    python -m megagpt.pipeline.ranks OPTIONS_OF_DEEPSPEED_LAUNCHER_LAUNCH

`deepspeed.launcher.launch` is ended by SIGUSR1 and leaves its ranks running; on SIGTERM it kills them one after the other,
30 seconds each, and answers 1. Here both signals are held back in the launcher and handed to every rank instead, so that
ranks can save; the launcher ends with their exit code (75: stopped on request). When one rank has ended, those that still
run some seconds later are killed: they wait for it in vain.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import threading
import time

import psutil

SIGNALS = {signal.SIGTERM, signal.SIGUSR1}
POLL_SECONDS = 0.2
GRACE_SECONDS = 15.0
"""Between the end of the first rank and the killing of those that still run. Ranks leave together, so this is ample."""


def main() -> None:
    """Run the launcher in this process; does not return where a rank failed."""
    # Before any thread exists, since each thread inherits the mask; ranks inherit it too and let the signals through when they are ready.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_watch, name="signals to ranks", daemon=True).start()
    runpy.run_module("deepspeed.launcher.launch", run_name="__main__", alter_sys=True)


def _watch() -> None:
    """Hand each signal to every rank, those that start later included; kill the ranks that outlive another one."""
    ranks: dict[int, psutil.Process] = {}
    received: list[signal.Signals] = []
    first_end = None
    while True:
        info = signal.sigtimedwait(SIGNALS, POLL_SECONDS)
        if info is not None:
            received.append(signal.Signals(info.si_signo))
            _send(ranks.values(), received[-1])
        for process in _ranks():
            if process.pid not in ranks:
                ranks[process.pid] = process
                for number in received:
                    _send([process], number)
        running = [process for process in ranks.values() if _runs(process)]
        if len(running) == len(ranks):
            continue
        first_end = first_end or time.monotonic()
        if time.monotonic() - first_end > GRACE_SECONDS:
            _send(running, signal.SIGKILL)


def _ranks() -> list[psutil.Process]:
    """Children of this process that were given a rank; a compiler that an import of the launcher asks for its version is none."""
    found = []
    for process in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.Error):
            if "RANK" in process.environ():
                found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _send(processes, number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


if __name__ == "__main__":
    main()
