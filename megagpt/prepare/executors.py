"""Who runs the tasks of a phase: processes of this machine, the ranks of an mpirun, a Ray cluster, or Slurm.

All of them are datatrove executors: a task that is done leaves a marker, and only what lacks one is run.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path

import duckdb
from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.utils.stats import PipelineStats
from loguru import logger as datatrove_logger
from tqdm import tqdm

from megagpt.config.prepare import ExecutorConfig
from megagpt.prepare.errors import PrepareError
from megagpt.prepare.phase import Phase
from megagpt.runtime.errors import Foreseen


def run_phases(phases: Sequence[Phase], config: ExecutorConfig, work: Path) -> bool:
    """Run each phase to its end, then the next. Markers and logs of a phase go to `work/tasks/<name>/`.

    Returns:
        False where the phases were only handed to a scheduler.

    Raises:
        PrepareError: a task failed; those that were done stay done.
    """
    if config.kind == "slurm":
        _submit_to_slurm(phases, config, work)
        return False
    with _pool(config) if config.kind == "local" else nullcontext() as pool:
        for phase in phases:
            folder = work / "tasks" / phase.name
            if config.kind == "local":
                _run_local(phase, pool, folder)
            else:
                {"mpi": _run_mpi, "ray": _run_ray}[config.kind](phase, config, folder)
    return True


@contextmanager
def _pool(config: ExecutorConfig) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for all phases, since each takes seconds to import what tasks need; None for a single worker, which is this process.

    Not forked: threads of the parent would leave locks held. A pool of concurrent.futures ends when a worker is killed; multiprocessing's waits.
    """
    workers = config.workers or len(os.sched_getaffinity(0))
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


class _Tasks(PipelineExecutor):
    """datatrove's tasks and markers, without a way of its own to run them."""

    def __init__(self, phase: Phase, folder: Path) -> None:
        super().__init__([phase.step], logging_dir=str(folder))
        self.phase = phase

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
        step.run(None, rank, self.world_size)
        stats = PipelineStats([step])
        with self.logging_dir.open(f"stats/{rank:05d}.json", "w") as file:
            stats.save_to_disk(file)
        self.mark_rank_as_completed(rank)
        return stats

    def task(self, number: int) -> str | None:
        """Run one; what went wrong, in one line."""
        try:
            self._run_for_rank(number)
        except (Foreseen, OSError, duckdb.IOException) as error:  # a full disk, a file that went
            return f"{self.phase.name}, task {number}: {' '.join(str(error).split())}"
        except Exception as error:
            traceback.print_exc()
            return f"{self.phase.name}, task {number}: {type(error).__name__}: {error} (traceback above)"
        return None


def _run_local(phase: Phase, pool: ProcessPoolExecutor | None, folder: Path) -> None:
    tasks = _Tasks(phase, folder)
    waiting = tasks.get_incomplete_ranks()
    with _bar(phase, phase.num_tasks - len(waiting)) as bar:
        if pool is None or len(waiting) == 1:
            for number in waiting:
                _raise(tasks.task(number))
                bar.update()
            return
        running = {pool.submit(tasks.task, number) for number in waiting}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    _raise(future.result())
                    bar.update()
        except BrokenProcessPool as error:
            raise PrepareError(f"{phase.name}: the process of a task was killed (out of memory?); fewer executor.workers need less") from error
        finally:
            for future in running:
                future.cancel()


def _run_mpi(phase: Phase, config: ExecutorConfig, folder: Path) -> None:
    from mpi4py import MPI

    world, tasks = MPI.COMM_WORLD, _Tasks(phase, folder)
    waiting: list[int] = world.bcast(tasks.get_incomplete_ranks() if world.rank == 0 else None)
    failed = None
    with _bar(phase, phase.num_tasks - len(waiting)) as bar:
        for number in waiting[world.rank :: world.size]:
            failed = tasks.task(number)
            if failed is not None:
                break
            bar.update(world.size)
    failures = [each for each in world.allgather(failed) if each is not None]
    _raise(failures[0] if failures else None)


def _run_ray(phase: Phase, config: ExecutorConfig, folder: Path) -> None:
    try:
        import ray
        from datatrove.executor.ray import RayPipelineExecutor
    except ImportError as error:
        raise PrepareError(f"executor.kind ray: {error}; pip install 'megagpt[ray]'") from error
    if not ray.is_initialized():
        # Tasks are told by their markers, so nothing has to be shown on the way.
        ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    datatrove_logger.disable("datatrove")
    workers = config.workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
    executor = RayPipelineExecutor(
        [phase.step], tasks=phase.num_tasks, workers=workers, logging_dir=str(folder), mem_per_cpu_gb=min(config.memory_gib, _ray_gib(ray) / workers)
    )
    executor.run()
    if missing := executor.get_incomplete_ranks():
        raise PrepareError(f"{phase.name}, task {missing[0]}: failed under Ray, as {len(missing) - 1} others; logs in {folder}/logs")


def _ray_gib(ray) -> float:
    """Of all machines of the cluster."""
    return ray.cluster_resources().get("memory", 2**30) / 2**30 * 0.9


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
    if failed is not None:
        raise PrepareError(f"{failed}; the same command goes on from here")


def _bar(phase: Phase, done: int) -> tqdm:
    return tqdm(total=phase.num_tasks, initial=done, desc=phase.name, unit="task", disable=None)
