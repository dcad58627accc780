"""Real gloo ranks, one of which sleeps, is stopped, is slow or fails: the watchdog names it while the others wait."""

import contextlib
import io
import os
import signal
import threading
import time
import unittest.mock

import pytest
import torch
import torch.distributed as dist

from megagpt.runtime import watchdog
from megagpt.runtime.watchdog import Heartbeat
from tests.helpers.spawn import run_ranks

TIMEOUT = 10.0  # of collectives, as the watchdog believes: it speaks after 1 and 5 seconds


def hang(culprit: int, seconds: float, stack_folder) -> str:
    """Step 3: the culprit sleeps in `data`, the others wait for it in an all-reduce. What this rank printed."""
    out = io.StringIO()
    file = stack_folder / f"rank_{dist.get_rank()}.txt"
    with contextlib.redirect_stderr(out), Heartbeat(TIMEOUT, file) as beat:
        for beat.step in (1, 2, 3):
            with beat.phase("data"):
                if beat.step == 3 and dist.get_rank() == culprit:
                    time.sleep(seconds)
            with beat.phase("forward-backward"):
                if dist.get_rank() % 2:
                    dist.all_reduce(torch.ones(4))
                else:
                    handle = dist.all_reduce(torch.ones(4), async_op=True)
                    handle.wait()
    return out.getvalue()


@pytest.mark.parametrize("culprit", [0, 1])
def test_watchdog_names_a_sleeping_rank_once(tmp_path, culprit):
    printed = run_ranks(2, hang, culprit, 2.5, tmp_path, timeout=40)
    (line,) = printed[0].splitlines()
    assert line.startswith(f"[watchdog] rank {culprit} (") and "has been in data of step 3 for " in line
    assert line.endswith(f"; rank {1 - culprit} waits for it") and printed[1] == ""


def test_watchdog_names_it_again_with_its_stack(tmp_path):
    first, second = run_ranks(4, hang, 3, 6.5, tmp_path, timeout=60)[0].splitlines()
    assert first.endswith("; ranks 0-2 wait for it")
    assert second.startswith("[watchdog] rank 3 (") and "test_watchdog.py" in second and " hang" in second
    assert "in hang" in (tmp_path / "rank_3.txt").read_text()


@pytest.mark.parametrize(
    ("announced", "master", "used"),
    [
        ("127.0.0.1", "10.1.2.3", "10.1.2.3"),
        ("127.0.1.1", "10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.1.1", "127.0.0.1"),
        ("10.1.2.4", "10.1.2.3", "10.1.2.4"),
        ("10.1.2.4", "127.0.1.1", "10.1.2.4"),
    ],
)
def test_watchdog_reaches_a_listener_that_announces_a_loopback_address(announced, master, used):
    assert watchdog._as_seen_here((announced, 4711), master) == (used, 4711)


def stopped(culprit: int, seconds: float) -> str:
    """The culprit's whole process is stopped from outside for a while, its heart included."""
    out = io.StringIO()
    with contextlib.redirect_stderr(out), Heartbeat(TIMEOUT) as beat:
        beat.step = 7
        time.sleep(0.3)  # time for a word
        if dist.get_rank() == culprit:
            if os.fork() == 0:
                time.sleep(seconds)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.wait()
        dist.all_reduce(torch.ones(4))
        time.sleep(0.5)
    return out.getvalue()


@pytest.mark.parametrize("culprit", [0, 1])
def test_watchdog_names_a_stopped_rank(culprit):
    """Rank 1 speaks up for rank 0."""
    printed = run_ranks(2, stopped, culprit, 3.0, timeout=40)
    lines = printed[1 - culprit].splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"[watchdog] rank {culprit} (") and "has not been heard of for " in lines[0]
    assert "of step 7; rank" in lines[0]


def uneven(seconds: float) -> str:
    """Rank 1 works twice as long as the others in every step."""
    out = io.StringIO()
    with unittest.mock.patch.object(watchdog, "SLOW_BEATS", 20), contextlib.redirect_stderr(out), Heartbeat(TIMEOUT) as beat:
        end = time.monotonic() + seconds
        more = torch.ones(1)
        while more:
            beat.step += 1
            time.sleep(0.08 if dist.get_rank() == 1 else 0.02)
            more = torch.tensor(float(time.monotonic() < end))
            dist.all_reduce(more, op=dist.ReduceOp.MIN)
    return out.getvalue()


def test_watchdog_names_a_slow_rank():
    assert "[watchdog] slow: rank 1 " in run_ranks(4, uneven, 3.5, timeout=40)[0]


def fail() -> str:
    out = io.StringIO()
    try:
        with contextlib.redirect_stderr(out), Heartbeat(TIMEOUT) as beat:
            beat.step = 5
            with beat.phase("optimizer"):
                if dist.get_rank() == 1:
                    raise MemoryError
                dist.all_reduce(torch.ones(1))
    except MemoryError:
        time.sleep(2.5)
        dist.all_reduce(torch.ones(1))
    return out.getvalue()


def test_watchdog_names_a_rank_that_failed():
    assert "rank 1 (" in (line := run_ranks(2, fail, timeout=40)[0]) and "last in optimizer (ended by MemoryError) of step 5" in line


def quiet() -> str:
    out = io.StringIO()
    with contextlib.redirect_stderr(out), Heartbeat(TIMEOUT) as beat:
        for beat.step in range(30):
            dist.all_reduce(torch.ones(4))
            time.sleep(0.05)
    return out.getvalue()


def test_watchdog_is_silent_where_nothing_is_wrong_and_leaves_no_thread():
    assert run_ranks(2, quiet, timeout=40) == ["", ""]
    with Heartbeat(TIMEOUT) as beat, beat.phase("data"):
        beat.step = 1
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
