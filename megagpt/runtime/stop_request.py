"""Stopping on request: SIGTERM or SIGUSR1 asks a stage to end between two steps, with a checkpoint.

A job script sends the signal some minutes before the time of its job is over, and starts the job again on exit code 75.
One request may arrive on several paths (from the scheduler itself, from the launcher that hands it on): what comes
within some seconds is the same request. A later signal takes its default action and ends the process.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

from megagpt.runtime.errors import Foreseen

EXIT_STOPPED = 75
"""Stopped on request with a checkpoint, start again (EX_TEMPFAIL of sysexits.h)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 5.0
"""A signal this soon after the first one is the same request on another path."""


class Stopped(Foreseen):
    """The stage ended between two steps, as asked; the message says where it goes on."""

    exit_code = EXIT_STOPPED


_requested_at: float | None = None


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within the block the signals set a flag instead of ending the process; in the main thread only.

    Signals that a launcher held back since before this process began are delivered now. Handlers and flag are as before
    once the block is left.
    """
    global _requested_at
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    let_through()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested_at = None


def requested() -> bool:
    """Was this process asked to stop? A rank must not act on it alone: the others may not have been asked yet."""
    return _requested_at is not None


def hold_back() -> None:
    """Keep the signals pending in this thread and in the threads and processes that it starts, until they let them through."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def let_through() -> None:
    """Deliver what was held back: to the handlers of `listening`, or else the signals end this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _note(number: int, frame: FrameType | None) -> None:
    global _requested_at
    now = time.monotonic()
    if _requested_at is None:
        _requested_at = now
    elif now - _requested_at > SAME_REQUEST_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
