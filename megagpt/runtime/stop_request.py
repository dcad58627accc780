"""Stopping on request: SIGTERM or SIGUSR1 asks a stage to end between two steps, with a checkpoint.

A job script sends the signal some minutes before the time of its job is over, and starts the job again on exit code 75.
One request may arrive on several paths (from the scheduler itself, from the launcher that passes it on): what comes
within some seconds is the same request. A later signal takes its default action and ends the process.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

import torch
import torch.distributed as dist

EXIT_STOPPED = 75
"""Stopped on request with a checkpoint, start again (EX_TEMPFAIL of sysexits.h)."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_SECONDS = 5.0
"""A signal this soon after the first one is the same request on another path."""


class Stopped(Exception):
    """The stage ended between two steps, as asked; the message says where it goes on."""


_requested_at: float | None = None


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Within the block the signals set a flag instead of ending the process; in the main thread only.

    Signals that a launcher held back since before this process began are delivered now. Handlers and flag are as before
    once the block is left.
    """
    global _requested_at
    before, _requested_at = {number: signal.signal(number, _note) for number in SIGNALS}, None
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested_at = None


def requested() -> bool:
    """Was this process asked to stop? A rank must not act on it alone: the others may not have been asked yet."""
    return _requested_at is not None


def requested_anywhere(group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu") -> bool:
    """Was any rank of the group asked to stop? One all-reduce; all ranks of the group call this and get the same answer.

    Args:
        group: default: all ranks of the job.
        device: where the group communicates from (`cpu` for gloo, this rank's GPU for NCCL).
    """
    asked = torch.tensor(float(requested()), device=device)
    if dist.is_initialized():
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=group)
    return bool(asked)


def hold_back() -> None:
    """Keep the signals pending in this process and in those that it starts, until `listening` or `default_action`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def default_action() -> None:
    """Let the signals through that a launcher held back: they end this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _note(number: int, frame: FrameType | None) -> None:
    global _requested_at
    now = time.monotonic()
    if _requested_at is None:
        _requested_at = now
    elif now - _requested_at > SAME_REQUEST_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
