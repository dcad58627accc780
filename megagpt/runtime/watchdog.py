"""Names the rank that holds up all others, before their collective times out without saying why.

A thread of each rank says every few seconds what its main thread does: step, phase, and whether it sits in a collective. Ranks 0
and 1 listen; rank 0 reports, rank 1 does while rank 0 is silent. The words go by UDP, which waits for nobody: torch's store would
block whoever asks it while its server, a rank like the others, is stopped. On CUDA a collective returns before it is done, so
there a rank seems to be at work until its host next waits for it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import ipaddress
import json
import linecache
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist
from tqdm import tqdm

from megagpt.runtime.diagnosis import Beat, diagnose, slow_ranks

COLLECTIVES = ("distributed_c10d.py", "p2p_communication.py", "deepspeed/comm/torch.py")
"""Files in which Python code stands while a collective is waited for."""
FIRST_WORD, LAST_WORD = 0.1, 0.5
"""Fractions of the collectives' time-out after which a rank is named, and named again with its stack."""
SLOW_BEATS = 100
"""Beats over which the ranks' shares of work are compared."""
STACK_DEPTH = 6
LISTENERS = 2


class Heartbeat:
    """`with Heartbeat(timeout_seconds) as beat:` around the training loop of every rank; in it

        beat.step = n
        with beat.phase("data"):
            …

    Args:
        timeout_seconds: when the process groups' collectives give up.
        stack_file: where this rank writes the stacks of all its threads once it has not moved for half of that.
    """

    def __init__(self, timeout_seconds: float, stack_file: Path | None = None) -> None:
        self.timeout, self.stack_file = timeout_seconds, stack_file
        self.interval = min(max(timeout_seconds / 100, 0.1), 5.0)
        self.step = 0
        self._phase, self._entered = "start", time.monotonic()
        self._watched, self._ending = threading.get_ident(), False
        self._place: object = None
        self._since, self._dumped, self._number, self._at_work = time.monotonic(), False, 0, 0
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._meet()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            self._enter(f"{self._phase} (ended by {kind.__name__})")
        self._ending = True
        if self._thread.is_alive():
            self._socket.sendto(b"", self._addresses[self._rank])  # wakes it
            self._thread.join()
            self._socket.close()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What this rank does within the block."""
        before = self._phase
        self._enter(name)
        yield
        self._enter(before)  # after an error the phase stays, to be reported

    def _enter(self, phase: str) -> None:
        self._phase, self._entered = phase, time.monotonic()

    # ------------------------------------------------------------ the thread

    def _meet(self) -> None:
        """Exchange addresses and a word that tells this job's datagrams from others'. All ranks call this."""
        self._rank, self._socket = dist.get_rank(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((os.environ["MASTER_ADDR"], 9))  # sends nothing: it finds the interface that the others can reach
            mine, master = (probe.getsockname()[0], self._socket.getsockname()[1]), probe.getpeername()[0]
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (mine, secrets.token_bytes(8), self._listen_to_myself()))
        self._addresses = [_as_seen_here(address, master) for address, _, _ in everyone]
        self._word = everyone[0][1]
        self._ears = _Ears([beat for _, _, beat in everyone], self.timeout) if self._rank < LISTENERS else None

    def _run(self) -> None:
        while True:
            ending = self._ending
            beat = self._listen_to_myself()
            text = self._word + json.dumps([self._rank, asdict(beat)]).encode()
            for address in self._addresses[:LISTENERS]:
                with contextlib.suppress(OSError):  # an unreachable listener: the other one is there
                    self._socket.sendto(text, address)
            if ending:
                return
            self._receive(time.monotonic() + self.interval)
            if self._ears is not None and not self._ending:
                self._ears.judge(speaks=self._rank == 0 or self._ears.silence(0) > FIRST_WORD / 2 * self.timeout)

    def _receive(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0 and not self._ending:
            self._socket.settimeout(left)
            with contextlib.suppress(OSError):
                text = self._socket.recv(65536)
                if self._ears is not None and text.startswith(self._word):
                    self._ears.hear(*json.loads(text.removeprefix(self._word)))

    def _listen_to_myself(self) -> Beat:
        """What the watched thread does now."""
        now, frame = time.monotonic(), sys._current_frames()[self._watched]
        place = (self._entered, self.step, id(frame), frame.f_lasti)
        if place != self._place:
            self._place, self._since, self._dumped = place, now, False
        still, waits = now - self._since, _in_collective(frame)
        self._number += 1
        self._at_work += not waits
        if still > LAST_WORD * self.timeout and not self._dumped and self.stack_file is not None:
            self._dumped = True
            with open(self.stack_file, "a", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        return Beat(
            host=socket.gethostname(), pid=os.getpid(), step=self.step, phase=self._phase, seconds=now - self._entered,
            waits=max(still, 1e-3) if waits else 0.0, stack=_stack(frame), number=self._number, at_work=self._at_work,
        )


class _Ears:
    """What a listener has heard of every rank, and what it has said about it."""

    def __init__(self, beats: list[Beat], timeout: float) -> None:
        self.beats, self.timeout = beats, timeout
        self.heard_at = [time.monotonic()] * len(beats)
        self.compared = beats[:]
        self.said: set[object] = set()

    def hear(self, rank: int, beat: dict) -> None:
        self.beats[rank], self.heard_at[rank] = Beat(**beat), time.monotonic()

    def silence(self, rank: int) -> float:
        return time.monotonic() - self.heard_at[rank]

    def judge(self, speaks: bool) -> None:
        """Say what is to be said, once."""
        beats = [replace(beat, silent=self.silence(rank)) for rank, beat in enumerate(self.beats)]
        for fraction in (FIRST_WORD, LAST_WORD):
            self._say(fraction, diagnose(beats, fraction * self.timeout, with_stack=fraction == LAST_WORD), speaks)
        past = [beat.number - before.number for beat, before in zip(beats, self.compared)]
        if min(past) >= SLOW_BEATS:
            shares = [(beat.at_work - before.at_work) / number for beat, before, number in zip(beats, self.compared, past)]
            self.compared = beats
            self._say("slow", slow_ranks(shares), speaks)

    def _say(self, topic: object, text: str | None, speaks: bool) -> None:
        """Print it unless it was said before; a topic that was clear in between is new."""
        if text is None:
            self.said.discard(topic)
        elif speaks and topic not in self.said:
            self.said.add(topic)
            tqdm.write(f"[watchdog] {text}", file=sys.stderr)


def _as_seen_here(address: tuple[str, int], master: str) -> tuple[str, int]:
    """Where a rank's datagrams go from this host. Ranks on the host of MASTER_ADDR may find that it means a loopback interface there
    (Debian maps a host's own name to 127.0.1.1); from elsewhere they are reached at what MASTER_ADDR means here."""
    host, port = address
    loopback_there, loopback_here = (ipaddress.ip_address(each).is_loopback for each in (host, master))
    return (master, port) if loopback_there and not loopback_here else address


def _in_collective(frame: FrameType) -> bool:
    if ".wait(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
        return True  # for the handle of an asynchronous one: a call into C++, so the frame is the caller's
    for _ in range(STACK_DEPTH):
        if frame.f_code.co_filename.endswith(COLLECTIVES):
            return True
        if (frame := frame.f_back) is None:
            break
    return False


def _stack(frame: FrameType | None) -> str:
    calls: list[str] = []
    while frame is not None and len(calls) < STACK_DEPTH:
        calls.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(calls)
