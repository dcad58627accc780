"""Who did what and when: spans of work on every rank, on one clock, as a trace that Perfetto and chrome://tracing open."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

KEPT_ROUNDS = 4
"""A trace holds the last of them, so that it stays small however long a run is."""


@dataclass(frozen=True)
class Span:
    """One piece of work of one rank."""

    kind: str
    """generate, score, train, wait, save or evaluation"""
    role: str
    """The model that worked; empty where it was none of them alone."""
    step: int
    """Round; an evaluation belongs to the round before it."""
    part: int | None
    """Of the rollout."""
    start: float
    end: float
    """Seconds since the epoch: the wall clock that all hosts share, to a few milliseconds."""


class Timeline:
    """Spans of this rank.

        with timeline.span("score", "reward", part=0):
            …

    Args:
        device: whose pending work belongs to a span that ends.
        tell: entered with a span, with its name; a watchdog learns so what this rank does.
    """

    def __init__(self, device: torch.device | None = None, tell: Callable[[str], AbstractContextManager] = nullcontext) -> None:
        self._device, self._tell, self._step = device, tell, 0
        self._rounds: deque[list[Span]] = deque([[]], maxlen=KEPT_ROUNDS)
        # Within a process spans follow the steady clock; the wall clock, which may be set, is read once.
        self._epoch = time.time() - time.perf_counter()

    def start_round(self, step: int) -> None:
        """What follows belongs to this round; the oldest of KEPT_ROUNDS goes."""
        self._step = step
        self._rounds.append([])

    @contextlib.contextmanager
    def span(self, kind: str, role: str = "", part: int | None = None) -> Iterator[None]:
        """Around one piece of work. One that an exception ends is not kept."""
        start = time.perf_counter()
        with self._tell(f"{kind} {role}".rstrip()):
            yield
            if self._device is not None and self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        self._rounds[-1].append(Span(kind, role, self._step, part, self._epoch + start, self._epoch + time.perf_counter()))

    @property
    def spans(self) -> list[Span]:
        """Of the rounds that are kept, in the order in which they ended."""
        return [span for spans in self._rounds for span in spans]


def chrome_trace(per_rank: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Spans of all ranks in the Trace Event Format (JSON object form): process = rank, thread = role, complete events in microseconds since
    the first of them."""
    zero = min((span.start for spans in per_rank for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for rank, spans in enumerate(per_rank):
        roles = sorted({span.role for span in spans})
        events.append({"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}})
        events += [{"name": "thread_name", "ph": "M", "pid": rank, "tid": tid, "args": {"name": role or "stage"}} for tid, role in enumerate(roles)]
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            about = {"round": span.step} | ({} if span.part is None else {"part": span.part})
            events.append({
                "name": f"{span.kind} {span.role}".rstrip(), "cat": span.kind, "ph": "X", "pid": rank, "tid": roles.index(span.role),
                "ts": round((span.start - zero) * 1e6, 1), "dur": round((span.end - span.start) * 1e6, 1), "args": about,
            })  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms"}
