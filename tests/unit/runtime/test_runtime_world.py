"""Who am I in the job, before and without a process group."""

import os
import socket
import sys

import pytest
import torch

from megagpt.runtime.distributed import RuntimeSetupError, free_port, start, world_size_from_environment
from megagpt.runtime.log import is_main_rank
from megagpt.runtime.own_rank import rank_from_environment

VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
    "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID",
    "TORCHELASTIC_RUN_ID",
)


@pytest.fixture
def environment(monkeypatch, no_process_group):
    """Sets variables of a launcher; all others of that kind are unset."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield lambda **values: [monkeypatch.setenv(name, str(value)) for name, value in values.items()]
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({}, 1),
        ({"WORLD_SIZE": 4}, 4),  # deepspeed, torchrun
        ({"OMPI_COMM_WORLD_SIZE": 2}, 2),  # Open MPI
        ({"PMI_SIZE": 3}, 3),  # MPICH, Slurm
        ({"WORLD_SIZE": 4, "OMPI_COMM_WORLD_SIZE": 2}, 4),
    ],
)
def test_world_size_from_the_launchers_environment(environment, values, size):
    environment(**values)
    assert world_size_from_environment() == size


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ({}, 0),
        ({"RANK": 3, "SLURM_PROCID": 0}, 3),  # deepspeed, torchrun, ours within a Slurm job
        ({"OMPI_COMM_WORLD_RANK": 2}, 2),
        ({"PMI_RANK": 1}, 1),
        ({"SLURM_PROCID": 5}, 5),
    ],
)
def test_world_own_rank_from_the_launchers_environment(environment, values, rank):
    environment(**values)
    assert rank_from_environment() == rank and is_main_rank() == (rank == 0)


def test_world_free_port_is_free():
    port = free_port()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def world_of(size: int, rank: int = 0, port: int | None = None) -> dict[str, object]:
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port or free_port()}


def test_world_port_in_use_is_said_by_rank_0(environment):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        environment(**world_of(2, port=taken.getsockname()[1]))
        with pytest.raises(RuntimeSetupError, match=rf"MASTER_PORT {taken.getsockname()[1]}: cannot listen there \(Address already in use\)"):
            start("cpu")
        # torchrun's agent holds the port itself; another rank would not listen.
        for elsewhere in ({"TORCHELASTIC_RUN_ID": "none"}, {"RANK": 1}):
            environment(**elsewhere)
            with pytest.raises(AssertionError, match="a process group was about to start"):
                start("cpu")


def test_world_refuses_cuda_where_there_is_none(environment, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    environment(**world_of(1))
    with pytest.raises(RuntimeSetupError, match="run.device cuda: torch finds no CUDA device here; use auto or cpu"):
        start("cuda")


def test_world_started_by_mpirun_without_mpi4py(environment, monkeypatch):
    environment(OMPI_COMM_WORLD_SIZE=2)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RuntimeSetupError, match=r"started by mpirun, but mpi4py does not load .*; install megagpt\[mpi\]"):
        start("cpu")


def test_world_of_one_needs_no_launcher_and_shares_the_cores(environment):
    with pytest.raises(AssertionError, match="a process group was about to start"):
        start("cpu")
    assert os.environ["RANK"] == "0" and os.environ["WORLD_SIZE"] == "1" and int(os.environ["MASTER_PORT"]) > 0
    assert torch.get_num_threads() == os.cpu_count()
    environment(**world_of(2 * os.cpu_count()))
    with pytest.raises(AssertionError, match="a process group was about to start"):
        start("cpu")
    assert torch.get_num_threads() == 1
