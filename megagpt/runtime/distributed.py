"""Start and stop the world of processes: who am I, which device is mine, where is rank 0.

Ranks come from the environment that the `deepspeed` launcher, `torchrun` or Slurm set, from MPI through mpi4py under
`mpirun`, or else this process is a world of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megagpt.runtime import cpu_backend
from megagpt.runtime.errors import Foreseen


class RuntimeSetupError(Foreseen, RuntimeError):
    """The world of processes cannot be started; the message says what to change."""


@dataclass(frozen=True)
class World:
    """This process's place in the job."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def world_size_from_environment() -> int:
    """Number of ranks of this job, known before any process group exists."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if name in os.environ:
            return int(os.environ[name])
    return 1


def _ranks_from_mpi() -> None:
    """Fill the torch variables from MPI: rank, size, local rank, and rank 0's address and port."""
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RuntimeSetupError(f"started by mpirun, but mpi4py does not load ({error}); install megagpt[mpi]") from error
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    here = "127.0.0.1" if node.Get_size() == world.Get_size() else socket.gethostbyname(socket.gethostname())
    address, port = world.bcast((here, free_port()) if world.Get_rank() == 0 else None)
    os.environ.update(
        RANK=str(world.Get_rank()), WORLD_SIZE=str(world.Get_size()), LOCAL_RANK=str(node.Get_rank()),
        LOCAL_WORLD_SIZE=str(node.Get_size()), MASTER_ADDR=address, MASTER_PORT=str(port),
    )


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RuntimeSetupError(
                f"MASTER_PORT {port}: cannot listen there ({error.strerror}); choose another, e.g. --master_port {free_port()}"
            ) from error


def start(device: str = "auto", timeout_seconds: int = 600) -> World:
    """Join the job: default process group (gloo on CPU, NCCL on CUDA), this rank's device, thread count.

    Args:
        device: "auto", "cpu" or "cuda".
        timeout_seconds: longest wait of a collective before it is an error.

    Raises:
        RuntimeSetupError: CUDA asked for and absent, the port in use, or MPI without mpi4py.
    """
    cpu_backend.install()
    if "RANK" not in os.environ and ("OMPI_COMM_WORLD_SIZE" in os.environ or "PMI_SIZE" in os.environ):
        _ranks_from_mpi()
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    local_size = int(os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", str(size))))

    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if use_cuda and not torch.cuda.is_available():
        raise RuntimeSetupError("run.device cuda: torch finds no CUDA device here; use auto or cpu")
    if use_cuda:
        torch.cuda.set_device(local_rank)
        this_device = torch.device("cuda", local_rank)
    else:
        this_device = torch.device("cpu")
        _keep_freed_memory()
        # One share of the cores for each local rank: oversubscribed OpenMP pools are many times slower.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_size))

    if not dist.is_initialized():
        # torchrun's own agent already listens on the port that it hands out; everywhere else rank 0 opens it.
        if rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ:
            _check_port_is_free(int(os.environ["MASTER_PORT"]))
        dist.init_process_group(
            "nccl" if use_cuda else "gloo", timeout=datetime.timedelta(seconds=timeout_seconds), rank=rank, world_size=size
        )
    return World(rank, size, local_rank, local_size, this_device)


def _keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one (at most 256 MB more than is in use): large tensors otherwise go back to
    the kernel each time and return page by page, some 9 % of a step on a CPU (configs/LOG.md)."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt, trim_threshold, mmap_max = ctypes.CDLL(None).mallopt, -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 256 << 20)


def barrier() -> None:
    """Wait for all ranks of the job. NCCL would else guess this rank's device where it has not sent anything yet."""
    dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def stop() -> None:
    """Leave the job; waits for the others so that nobody's last message is cut off."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()
