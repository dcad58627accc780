"""Stopping on request: SIGTERM or SIGUSR1 asks a stage to end between two steps, with a checkpoint.

A job script sends the signal some minutes before the time of its job is over, and starts the job again on exit code 75.
One request may arrive on several paths (from the scheduler itself, from the launcher that hands it on): what comes
within some seconds is the same request. A later signal takes its default action and ends the process.

Work whose parts are written whole or not at all has nothing to save: it ends where it is, on Ctrl-C too.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
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


class Interrupted(Stopped):
    """By Ctrl-C: whoever pressed it does not want a job script to start it again."""

    exit_code = 128 + signal.SIGINT


_requested_at: float | None = None
_requested_by: int | None = None


@contextlib.contextmanager
def ending(message: str) -> Iterator[None]:
    """Within the block the first signal, or Ctrl-C, raises KeyboardInterrupt wherever the main thread is.

    A library may swallow that or make another error of it (DuckDB does); `requested` tells.

    Raises:
        Stopped, Interrupted: with the message, in place of it.
    """
    try:
        with listening((*SIGNALS, signal.SIGINT), _interrupt):
            yield
    except KeyboardInterrupt:
        raise (Interrupted if _requested_by == signal.SIGINT else Stopped)(message) from None


@contextlib.contextmanager
def listening(signals: Sequence[signal.Signals] = SIGNALS, handler: Callable[[int, FrameType | None], None] | None = None) -> Iterator[None]:
    """Within the block the signals set a flag instead of ending the process; in the main thread only.

    Signals that a launcher held back since before this process began are delivered now. Handlers and flag are as before
    once the block is left.
    """
    global _requested_at
    before = {number: signal.signal(number, handler or _note) for number in signals}
    try:
        let_through()
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    first = not requested()
    _note(number, frame)
    if first:
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    global _requested_at, _requested_by
    now = time.monotonic()
    if _requested_at is None:
        _requested_at, _requested_by = now, number
    elif now - _requested_at > SAME_REQUEST_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
