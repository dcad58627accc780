"""Who runs the tasks of a phase: processes of this machine, the ranks of an mpirun, a Ray cluster, or Slurm.

The tasks are datatrove's: one that is done leaves a marker, and only what lacks one is run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.utils.stats import PipelineStats

from megagpt.config.prepare import ExecutorConfig
from megagpt.prepare.errors import PrepareError
from megagpt.prepare.phase import Phase
from megagpt.prepare.progress import SHARES, shown
from megagpt.prepare.ranks import is_main
from megagpt.runtime.errors import Foreseen
from megagpt.runtime.stop_request import SIGNALS, requested

MAX_RETRIES = 3
"""Of a task whose machine or process went away on a cluster."""
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.05


def run_phases(phases: Sequence[Phase], config: ExecutorConfig, work: Path) -> bool:
    """Run each phase to its end, then the next. Markers of a phase go to `work/tasks/<name>/`.

    Returns:
        False where the phases were only handed to a scheduler.

    Raises:
        PrepareError: a task failed; those that were done stay done.
    """
    if config.kind == "slurm":
        _submit_to_slurm(phases, config, work)
        return False
    with {"local": _local, "mpi": _mpi, "ray": _ray}[config.kind](config) as run:
        for phase in phases:
            folder = work / "tasks" / phase.name
            with shown(phase, folder):
                run(_Tasks(phase, folder))
    return True


class _Tasks(PipelineExecutor):
    """datatrove's tasks and markers, without a way of its own to run them."""

    def __init__(self, phase: Phase, folder: Path) -> None:
        super().__init__([phase.step], logging_dir=str(folder))
        self.phase, self.shares = phase, folder / SHARES

    @property
    def world_size(self) -> int:
        return self.phase.num_tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        return DistributedEnvVars(
            datatrove_node_ips="localhost", datatrove_cpus_per_task="1", datatrove_mem_per_cpu="-1", datatrove_gpus_on_node="0", datatrove_executor="LOCAL"
        )

    def run(self) -> None:
        raise NotImplementedError

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        """As datatrove's, without a log of each task: that costs more than a small task, and tells of an error the values of all variables, which are
        documents."""
        step = deepcopy(self.phase.step)  # it counts what it does
        step.told = self.shares / f"{rank:05d}"
        step.run(None, rank, self.world_size)
        if requested():  # and a library has swallowed it: a piece may be missing
            raise KeyboardInterrupt
        stats = PipelineStats([step])
        with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
            stats.save_to_disk(file)
        self.mark_rank_as_completed(rank)
        step.told.unlink(missing_ok=True)
        return stats

    def task(self, number: int) -> str | None:
        """Run one; what went wrong, in one line, and below it the traceback of an error that nobody foresaw."""
        try:
            self._run_for_rank(number)
        except (Foreseen, OSError, duckdb.IOException) as error:  # a full disk, a file that went
            return f"{self.phase.name}, task {number}: {' '.join(str(error).split())}"
        except Exception as error:
            if requested():  # DuckDB makes another error of it
                raise KeyboardInterrupt from None
            line = f"{self.phase.name}, task {number}: {type(error).__name__}: {' '.join(str(error).split())} (traceback above)"
            return f"{line}\n{traceback.format_exc()}"
        return None


Run = Callable[[_Tasks], None]
"""Runs the tasks of a phase that lack a marker, to the end or a PrepareError."""


@contextmanager
def _local(config: ExecutorConfig) -> Iterator[Run]:
    """Processes for all phases, since each takes seconds to import what tasks need; a single worker, and a single task, is this process.

    Not forked: threads of the parent would leave locks held. A pool of concurrent.futures ends when a worker is killed; multiprocessing's waits.
    """
    workers = config.workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:

        def run(tasks: _Tasks) -> None:
            def start(number: int) -> Future:
                held = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGINT))  # a worker that begins here never gets them
                try:
                    return pool.submit(tasks.task, number)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, held)

            waiting = tasks.get_incomplete_ranks()
            if workers == 1 or len(waiting) == 1:
                for number in waiting:
                    _raise(tasks.task(number))
            else:
                _run_beside(tasks, start, waiting, workers, BrokenProcessPool)

        try:
            yield run
        except KeyboardInterrupt:
            for worker in active_children():
                worker.kill()  # a task may end anywhere; it is done again
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _ray(config: ExecutorConfig) -> Iterator[Run]:
    """Ray keeps the processes of its tasks, so that a task costs milliseconds; datatrove's executor makes an actor and a pool for each."""
    try:
        import ray
    except ImportError as error:
        raise PrepareError(f"executor.kind ray: {error}; pip install 'megagpt[ray]'") from error
    address, handler = os.environ.get("RAY_ADDRESS", "local"), signal.getsignal(signal.SIGTERM)
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:  # Ray would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        # Tasks are told by their markers, so nothing has to be shown on the way.
        ray.init(
            address, num_cpus=config.workers if address == "local" else None, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            configure_logging=False,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise PrepareError(f"executor.kind ray: RAY_ADDRESS = {address}: {' '.join(str(error).split())}") from error
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own
    try:
        workers = config.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        largest = max(node["Resources"].get("memory", 0) for node in ray.nodes())
        remote = ray.remote(_task).options(num_cpus=1, memory=int(min(config.memory_gib * 2**30, largest)), max_retries=MAX_RETRIES)

        gone = ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError

        def run(tasks: _Tasks) -> None:
            shared = ray.put(tasks)
            try:
                _run_beside(tasks, lambda number: remote.remote(shared, number).future(), tasks.get_incomplete_ranks(), workers, gone)
            except ray.exceptions.RayTaskError as error:  # no task raises; its function could not be had there
                reason = str(error).strip().splitlines()[-1]
                raise PrepareError(f"executor.kind ray: {reason} (all machines of the cluster need the same Python with megagpt)") from error

        yield run
    finally:
        ray.shutdown()


def _task(tasks: _Tasks, number: int) -> str | None:
    return tasks.task(number)


@contextmanager
def _mpi(config: ExecutorConfig) -> Iterator[Run]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def run(tasks: _Tasks) -> None:
        waiting: list[int] = world.bcast(tasks.get_incomplete_ranks() if world.rank == 0 else None)
        failed = next((failed for number in waiting[world.rank :: world.size] if (failed := tasks.task(number)) is not None), None)
        meeting = world.Ibarrier()
        while not meeting.Test():  # a blocking call would keep a core busy, and signals from this process
            time.sleep(POLL_SECONDS)
        _raise(next((failed for failed in world.allgather(failed) if failed is not None), None))

    yield run


def _run_beside(tasks: _Tasks, start: Callable[[int], Future], waiting: Sequence[int], workers: int, gone: Any) -> None:
    """Run tasks that others do, so many at a time. After a failure none is begun any more, and those that run end.

    Args:
        start: begins a task.
        gone: exceptions of its future where the process of the task is gone.
    """
    left, running, failures = iter(waiting), set(), []
    while True:
        try:
            if not failures:
                running |= {start(number) for number in islice(left, workers - len(running))}
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            failures += [failed for future in done if (failed := future.result()) is not None]
        except gone as error:
            reason = str(error).partition("\n")[0]
            failures.append(f"{tasks.phase.name}: the process of a task was killed (out of memory? fewer executor.workers need less): {reason}")
    _raise(failures[0] if failures else None)


def _submit_to_slurm(phases: Sequence[Phase], config: ExecutorConfig, work: Path) -> None:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    slurm, before = config.slurm, None
    for phase in phases:
        folder = work / "tasks" / phase.name
        before = SlurmPipelineExecutor(
            [phase.step], tasks=phase.num_tasks, time=slurm.time, partition=slurm.partition, qos=slurm.qos, workers=config.workers or -1,
            mem_per_cpu_gb=max(1, round(config.memory_gib + 1)), job_name=f"megagpt-{phase.name}", max_array_size=slurm.max_array_size, depends=before,
            env_command=slurm.environment or f"source {Path(sys.prefix) / 'bin' / 'activate'}", sbatch_args=dict(slurm.sbatch),
            logging_dir=str(folder), slurm_logs_folder=str(folder / "slurm"),
        )  # fmt: skip
    before.run()


def _raise(failed: str | None) -> None:
    if failed is None:
        return
    line, _, trace = failed.partition("\n")
    if trace and is_main():
        print(trace, file=sys.stderr)
    raise PrepareError(f"{line}; the same command goes on from here")
