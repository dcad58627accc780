"""Which rank holds the others up, worked out from what all ranks last said of themselves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SLOW_FACTOR, SLOW_EXCESS = 1.5, 0.1
"""A rank is slow if its share of time at work is this multiple of the median rank's, and above it by this much."""
MAX_NAMED = 4


@dataclass(frozen=True)
class Beat:
    """One rank's word on itself. Times are seconds."""

    host: str
    pid: int
    step: int
    phase: str
    seconds: float
    """In this phase so far."""
    waits: float
    """In the collective that it is in; 0: it is in none."""
    stack: str
    """Its innermost calls, the last one first."""
    number: int
    """Beats so far."""
    at_work: int
    """Those of them that found it in no collective."""
    silent: float = 0.0
    """Since it was heard of last, as the listener's clock says."""


def diagnose(beats: Sequence[Beat], patience: float, *, with_stack: bool = False) -> str | None:
    """One line on who holds up the ranks that have waited in a collective for longer than `patience`; None if none has.

    Held responsible are the ranks that are silent, or else those that are in no collective, or else the ones furthest behind.

    Args:
        beats: by rank.
    """
    if max(beat.waits for beat in beats) < patience:
        return None
    silent = [rank for rank, beat in enumerate(beats) if beat.silent >= patience / 2]
    at_work = [rank for rank, beat in enumerate(beats) if beat.waits == 0]
    suspects = silent or at_work or list(range(len(beats)))
    first = min(beats[rank].step for rank in suspects)
    suspects = [rank for rank in suspects if beats[rank].step == first]
    said = "; ".join(_describe(rank, beats[rank], rank in silent, with_stack) for rank in suspects[:MAX_NAMED])
    more = f"; {len(suspects) - MAX_NAMED} more like these" if len(suspects) > MAX_NAMED else ""
    others = [rank for rank, beat in enumerate(beats) if beat.waits and rank not in suspects]
    return said + more + (f"; {_ranks(others)} for it" if others else "; every rank waits in a collective")


def _describe(rank: int, beat: Beat, silent: bool, with_stack: bool) -> str:
    where = f"{beat.phase} of step {beat.step}"
    text = f"rank {rank} ({beat.host}, pid {beat.pid}) "
    text += f"has not been heard of for {beat.silent:.0f} s, last in {where}" if silent else f"has been in {where} for {beat.seconds:.0f} s"
    return text + (f", at {beat.stack}" if with_stack else "")


def _ranks(ranks: Sequence[int]) -> str:
    """`rank 3 waits`, `ranks 0-2, 5 wait`."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and parts[-1][1] == rank - 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    names = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
    return f"rank {names} waits" if len(ranks) == 1 else f"ranks {names} wait"


def slow_ranks(at_work: Sequence[float]) -> str | None:
    """One line on the ranks that the others regularly wait for; None where the work is even.

    Args:
        at_work: share of its time that each rank spent outside collectives, by rank.
    """
    usual = statistics.median(at_work)
    slow = [rank for rank, share in enumerate(at_work) if share > SLOW_FACTOR * usual and share > usual + SLOW_EXCESS]
    if not slow:
        return None
    named = ", ".join(f"rank {rank} {at_work[rank]:.0%}" for rank in slow[:MAX_NAMED])
    return f"slow: {named} of the time at work, the median rank {usual:.0%}: the others wait for {'it' if len(slow) == 1 else 'them'}"
