"""The pool of ranks: reused while all is well; after a failure it explains itself, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from tests.helpers import spawn
from tests.helpers.spawn import RankFailure, run_ranks, run_ranks_fresh
from tests.helpers.transport import from_bytes, to_bytes

ROOT = Path(__file__).resolve().parents[3]


class Answer(NamedTuple):
    total: torch.Tensor
    pid: int


def add_ranks(offset: torch.Tensor) -> Answer:
    """On each rank: the sum over ranks of rank + offset."""
    total = offset + dist.get_rank()
    dist.all_reduce(total)
    return Answer(total, os.getpid())


def pid(**_) -> int:
    return os.getpid()


def rank_1_raises() -> None:
    print("rank", dist.get_rank(), "begins")
    if dist.get_rank() == 1:
        raise ValueError("seventeen")
    dist.barrier()


def rank_0_sleeps() -> None:
    if dist.get_rank() == 0:
        time.sleep(60)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_reaped(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def is_dead(pid: int) -> bool:
    """Reaped or a zombie."""
    return is_reaped(pid) or Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1].startswith("Z")


def test_spawn_reuses_its_workers_and_returns_results_by_rank():
    first = run_ranks(2, add_ranks, torch.tensor([10.0]))
    second = run_ranks(2, add_ranks, offset=torch.tensor([20.0]))
    assert [answer.total.tolist() for answer in first + second] == [[21.0], [21.0], [41.0], [41.0]]
    assert isinstance(first[0], Answer)
    assert [answer.pid for answer in first] == [answer.pid for answer in second]
    assert len({answer.pid for answer in first}) == 2


def test_spawn_idle_workers_use_no_cpu():
    spawn.close_pools()  # every gloo group that an earlier case left wakes a hundred times a second
    pids = run_ranks(2, pid)
    time.sleep(0.3)  # garbage collection after the case

    def ticks() -> int:
        return sum(int(field) for pid in pids for field in Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1].split()[11:13])

    before = ticks()
    time.sleep(0.5)
    assert ticks() - before <= 2  # of 50 ticks a second and core


def test_spawn_shows_the_remote_traceback_and_starts_anew():
    pids = run_ranks(2, pid)
    with pytest.raises(RankFailure) as failure:
        run_ranks(2, rank_1_raises)
    text = str(failure.value)
    assert "test_spawn.rank_1_raises failed on rank 0, 1 of 2" in text
    assert "rank 1 raised: Traceback" in text and "ValueError: seventeen" in text and 'raise ValueError("seventeen")' in text
    assert "rank 0 was still busy" in text and "in barrier" in text, "the stacks of the rank that waits"
    assert "rank 1 printed\nrank 1 begins" in text
    assert all(map(is_reaped, pids))
    assert not set(pids) & set(run_ranks(2, pid))


def test_spawn_timeout_kills_the_pool_and_names_the_ranks():
    pids = run_ranks(2, pid)
    with pytest.raises(RankFailure, match="failed on rank 0 of 2") as failure:
        run_ranks(2, rank_0_sleeps, timeout=0.5)
    text = str(failure.value)
    assert "rank 0 had not answered after 0.5 s" in text and "in rank_0_sleeps" in text
    assert "rank 1" not in text
    assert all(map(is_reaped, pids))


def test_spawn_reports_a_dead_rank():
    with pytest.raises(RankFailure, match="rank 0 ended: exit code -9"):
        run_ranks(1, dies)


def test_spawn_fresh_leaves_no_process():
    pools = dict(spawn._pools)
    assert all(map(is_reaped, run_ranks_fresh(1, pid)))
    assert spawn._pools == pools, "the shared pools are not involved"


def test_spawn_workers_die_with_a_killed_pytest(tmp_path):
    program = "from tests.unit.helpers.test_spawn import *\nprint(*run_ranks(1, pid), flush=True)\ntime.sleep(60)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # nobody is left to remove the folder of that pool
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while not is_dead(worker):  # not yet reaped, perhaps: that is up to process 1
        assert time.monotonic() < deadline, f"worker {worker} outlived its parent"
        time.sleep(0.02)


def test_spawn_refuses_functions_that_workers_cannot_import():
    with pytest.raises(ValueError, match="top level"):
        run_ranks(1, lambda: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_spawn_transport_keeps_values_dtype_and_shape(dtype):
    for tensor in (torch.arange(6).reshape(2, 3).T.to(dtype), torch.tensor(1).to(dtype), torch.empty(0, 3, dtype=dtype)):
        back = from_bytes(to_bytes({"x": [tensor]}))["x"][0]
        assert back.dtype == dtype and torch.equal(back, tensor)


def test_spawn_transport_strips_parameters():
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = lambda: None  # as engines attach to parameters; it could not be pickled
    back = from_bytes(to_bytes(parameter))
    assert type(back) is torch.Tensor and not back.requires_grad
