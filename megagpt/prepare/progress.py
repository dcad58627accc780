"""The bar of a phase, made from what its tasks leave in its folder: whatever runs them, and on whichever machines."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from megagpt.prepare.phase import Phase
from megagpt.prepare.ranks import is_main

COMPLETIONS, SHARES = "completions", "shares"
"""In a phase's folder: datatrove's markers of tasks that are done; how much of themselves the running ones have done."""
LOOK_SECONDS = 0.5
MAX_LOOKING = 0.05
"""Share of the time that may go into looking: where there are very many tasks, it is done less often."""


@contextmanager
def shown(phase: Phase, folder: Path) -> Iterator[None]:
    """While the block runs, on rank 0: what is done, in bytes of input where the phase knows them, else in tasks; the mean rate, the time left."""
    if not is_main():
        yield
        return
    with suppress(OSError):  # a full disk is the tasks' own matter
        shutil.rmtree(folder / SHARES, ignore_errors=True)  # of a run that was cut
        (folder / SHARES).mkdir(parents=True)
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(phase, folder, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def bytes_read() -> int:
    """By this process so far, from any file, those that libraries load among them; Linux counts them, elsewhere it stays 0. So readers need not say
    where they are, be their files packed or not."""
    with suppress(OSError), open("/proc/self/io", encoding="ascii") as file:
        return int(file.readline().removeprefix("rchar:"))
    return 0


def _show(phase: Phase, folder: Path, ended: threading.Event) -> None:
    terminal, looking = sys.stderr.isatty(), 0.0
    unit = {"unit": "task"} if phase.sizes is None else {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    sizes = phase.sizes or [1] * phase.num_tasks
    done, whole = _look(folder, sizes)
    with tqdm(
        total=sum(sizes), initial=done, desc=phase.name, **unit, file=sys.stderr, dynamic_ncols=True, smoothing=0, miniters=0,
        mininterval=0.0 if terminal else 15.0, delay=0.0 if terminal else 2.0,
    ) as bar:  # fmt: skip
        while True:
            last = ended.wait(max(LOOK_SECONDS, looking / MAX_LOOKING))
            began = time.perf_counter()
            done, whole = _look(folder, sizes)
            if phase.sizes is not None:
                bar.set_postfix_str(f"{whole} of {len(sizes)} tasks", refresh=False)
            bar.update(done - bar.n)
            looking = time.perf_counter() - began
            if last:
                return


def _look(folder: Path, sizes: Sequence[int]) -> tuple[int, int]:
    """(what is done of all sizes, number of whole tasks)"""
    done = {int(name) for name in _files(folder / COMPLETIONS)}
    amount = float(sum(sizes[task] for task in done))
    for name in _files(folder / SHARES):
        if int(name) not in done:
            with suppress(OSError, ValueError):  # it goes when the task is done; it may be about to be written
                amount += sizes[int(name)] * float((folder / SHARES / name).read_text())
    return int(amount), len(done)


def _files(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
