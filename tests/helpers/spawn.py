"""Run a function on N ranks: worker processes that are started once for each world size and reused over the cases.

    losses = run_ranks(4, train_two_steps, config, zero_stage=2)     # train_two_steps runs on four ranks; one result a rank

A rank that raises, ends or does not answer in time makes `run_ranks` raise `RankFailure`, whose text shows the rank, its traceback or its
stacks, and what it printed. The pool is then killed, because the other ranks may sit in a collective that nobody else will join; the next
call starts a new one.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any

from tests.helpers.transport import from_bytes, to_bytes

START_SECONDS = 180  # limit for starting a pool and for importing a test module in it: imports are slow while the machine is busy
GRACE_SECONDS = 1.0  # after one rank failed: long enough for ranks that fail by the same mistake to say so
STACK_SECONDS = 0.5  # for faulthandler to write
OUTPUT_CHARACTERS = 3000  # of each failed rank's output in the failure text


class RankFailure(AssertionError):
    """A rank raised, ended or did not answer."""


def run_ranks(world_size: int, function: Callable, *args, timeout: float = 60, **kwargs) -> list[Any]:
    """`function(*args, **kwargs)` on each of `world_size` ranks that have a gloo process group; the results by rank.

    `function` stands at the top level of a test or helper module, arguments and results can be pickled. `timeout` is in seconds and does
    not count the start of the pool and the import of the module.
    """
    address = _address(function)
    if world_size not in _pools:
        _pools[world_size] = Pool(world_size)
    try:
        return _pools[world_size].run(address, args, kwargs, timeout)
    except BaseException:  # KeyboardInterrupt too: answers to this call must not meet the next one
        _pools.pop(world_size).close()
        raise


def run_ranks_fresh(world_size: int, function: Callable, *args, timeout: float = 60, **kwargs) -> list[Any]:
    """Like `run_ranks`, on processes that serve this one call only."""
    address = _address(function)
    pool = Pool(world_size)
    try:
        return pool.run(address, args, kwargs, timeout)
    finally:
        pool.close()


def close_pools() -> None:
    """End and reap all workers."""
    while _pools:
        _pools.popitem()[1].close()


_pools: dict[int, Pool] = {}
atexit.register(close_pools)


class Pool:
    """`world_size` worker processes on this machine with one process group."""

    def __init__(self, world_size: int):
        self.folder = Path(tempfile.mkdtemp(prefix=f"megagpt_ranks_{world_size}_"))
        self.connections, self.processes = [], []
        self.call, self.output_starts = "the start", [0] * world_size
        port = _free_port()
        try:
            for rank in range(world_size):
                self._start_worker(rank, world_size, port)
            self._collect("started", START_SECONDS)
        except BaseException:
            self.close()
            raise

    def _start_worker(self, rank: int, world_size: int, port: int) -> None:
        ours, theirs = Pipe()
        serve = f"serve({theirs.fileno()}, {os.getpid()}, {str(self._file('stacks', rank))!r})"
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
            "CUDA_VISIBLE_DEVICES": "",  # gloo on the CPU on every machine, however many GPUs it has
        }
        with self._file("output", rank).open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", f"import sys; sys.path[:] = {sys.path!r}\nfrom tests.helpers.worker import serve; {serve}"],
                env=os.environ | {name: str(value) for name, value in environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt from the keyboard reaches pytest only; and kill() reaches a worker's children
            )
        theirs.close()
        self.connections.append(ours)
        self.processes.append(process)

    def run(self, address: tuple[str, str, str], args: tuple, kwargs: dict, timeout: float) -> list[Any]:
        self.call = f"{address[1]}.{address[2]}"
        self.output_starts = [self._file("output", rank).stat().st_size for rank in range(len(self.processes))]
        message = to_bytes((*address, to_bytes((args, kwargs))))
        for connection in self.connections:
            try:
                connection.send_bytes(message)
            except BrokenPipeError:
                pass  # that rank has ended since its last answer; _collect will say so
        self._collect("loaded", START_SECONDS)
        return self._collect("returned", timeout)

    def _collect(self, kind: str, seconds: float) -> list[Any]:
        """One answer of this kind from each rank, by rank."""
        results, failures = {}, {}
        pending = {connection: rank for rank, connection in enumerate(self.connections)}
        deadline = time.monotonic() + seconds
        while pending and (ready := wait(list(pending), max(0.0, deadline - time.monotonic()))):
            for connection in ready:
                rank = pending.pop(connection)
                try:
                    answer, value = from_bytes(connection.recv_bytes())
                except (EOFError, ConnectionResetError):
                    answer, value = "ended", f"exit code {self.processes[rank].wait()}"
                if answer == kind:
                    results[rank] = value
                else:
                    failures[rank] = f"{answer}: {value}"
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if failures or pending:
            late = "was still busy when another rank failed" if failures else f"had not answered after {seconds:g} s"
            failures |= {rank: f"{late}; its stacks:\n{stacks}" for rank, stacks in self._stacks(list(pending.values())).items()}
            raise RankFailure(self._describe(failures))
        return [results[rank] for rank in range(len(results))]

    def _stacks(self, ranks: list[int]) -> dict[int, str]:
        """Where each of these ranks is now, thread by thread."""
        for rank in ranks:
            self.processes[rank].send_signal(signal.SIGUSR1)
        time.sleep(STACK_SECONDS if ranks else 0)
        return {rank: self._file("stacks", rank).read_text() for rank in ranks}

    def _describe(self, failures: dict[int, str]) -> str:
        lines = [f"{self.call} failed on rank {', '.join(map(str, sorted(failures)))} of {len(self.processes)}"]
        for rank, failure in sorted(failures.items()):
            output = self._file("output", rank).read_bytes()[self.output_starts[rank] :].decode(errors="replace").strip()
            lines.append(f"---------------- rank {rank} {failure.strip()}")
            if output:
                lines.append(f"---------------- rank {rank} printed\n{output[-OUTPUT_CHARACTERS:]}")
        return "\n".join(lines)

    def _file(self, kind: str, rank: int) -> Path:
        return self.folder / f"{kind}_{rank}.txt"

    def close(self) -> None:
        """Kill: an idle worker has nothing to save, a stuck one would not listen."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for process, connection in zip(self.processes, self.connections, strict=True):
            process.wait()
            connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _address(function: Callable) -> tuple[str, str, str]:
    """File, module name and function name, by which a worker finds the function."""
    if function.__name__ != function.__qualname__ or function.__module__ == "__main__":
        raise ValueError(f"{function.__qualname__} must stand at the top level of a module that workers can import")
    return sys.modules[function.__module__].__file__, function.__module__, function.__name__


def _free_port() -> int:
    """Below the range from which the kernel takes ports for outgoing connections, so that nobody gets it before rank 0 listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
