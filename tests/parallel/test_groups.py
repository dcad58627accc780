"""Process groups hold the ranks that the grid's arithmetic says, and the small reductions and routes over them."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from megagpt.parallel.collectives import gather_last_dim, max_over, sum_over, sum_reports
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.parallel.mpu import DeepSpeedMpu
from megagpt.parallel.route import replica_rows, share_numbers, share_rows
from tests.helpers.spawn import run_ranks

GRIDS = [Grid(), Grid(tp=4), Grid(dp=4), Grid(pp=4), Grid(tp=2, pp=2), Grid(tp=2, dp=2), Grid(pp=2, dp=2), Grid(tp=2, offset=1), Grid(pp=3, offset=1)]


def members(group) -> list[int] | None:
    return None if group is None else dist.get_process_group_ranks(group)


def ranks_of_groups(grid: Grid) -> dict | None:
    groups = build_groups(grid)
    if groups is None:
        return None
    names = ("tp", "cp", "dp", "pp", "mp", "tp_cp", "dp_cp", "embd", "pos_embd")
    mpu = DeepSpeedMpu(groups)
    return {name: members(getattr(groups.collection, name)) for name in names} | {
        "whole": members(groups.whole),
        "coordinates": dataclasses.asdict(groups.coordinates),
        "ends": (groups.is_first_stage, groups.is_last_stage),
        "mpu": [members(group()) for group in (mpu.get_data_parallel_group, mpu.get_model_parallel_group, mpu.get_tensor_model_parallel_group)],
        "mpu_source": mpu.get_tensor_model_parallel_src_rank(),
    }


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_groups_are_the_peers_of_the_grid(grid):
    axes = {"tp": ["tp"], "cp": ["cp"], "dp": ["dp"], "pp": ["pp"], "mp": ["tp", "pp"], "tp_cp": ["tp", "cp"], "dp_cp": ["cp", "dp"]}
    for rank, seen in enumerate(run_ranks(4, ranks_of_groups, grid)):
        if rank not in grid:
            assert seen is None
            continue
        mine = {name: next(peers for peers in grid.peers(*over) if rank in peers) for name, over in axes.items()}
        assert {name: seen[name] for name in axes} == mine
        assert seen["whole"] == list(grid.ranks)
        assert seen["coordinates"] == dataclasses.asdict(grid.coordinates(rank))
        first, last = mine["pp"][0], mine["pp"][-1]
        assert seen["ends"] == (rank == first, rank == last)
        assert seen["embd"] == ([first, last] if grid.pp > 1 and rank in (first, last) else None), "tied embeddings"
        assert seen["pos_embd"] == ([first] if grid.pp > 1 and rank == first else None), "learned positions"
        assert seen["mpu"] == [mine["dp"], mine["mp"], mine["tp"]] and seen["mpu_source"] == mine["tp"][0]


def reductions(grid: Grid) -> tuple:
    groups, rank = build_groups(grid), dist.get_rank()
    shard = torch.full((2, 3), float(rank))
    report = [{"nll": 10.0 * groups.coordinates.dp + 1, "other": 0.0}, {"nll": 0.5, "other": 0.0}] if groups.is_last_stage else []
    return (
        sum_over(groups.whole, rank, 0.1),
        max_over(groups.whole, -rank),
        gather_last_dim(shard, groups.collection.tp)[0].tolist(),
        sum_reports(groups, report, ("nll",)),
    )


@pytest.mark.parametrize("grid", [Grid(tp=2, pp=2), Grid(tp=2, dp=2), Grid(pp=2, dp=2)], ids=str)
def test_groups_reduce_and_gather(grid):
    for rank, (total, largest, row, reports) in enumerate(run_ranks(4, reductions, grid)):
        assert total == [6.0, pytest.approx(0.4)]
        assert largest == 0
        peers = next(peers for peers in grid.peers("tp") if rank in peers)
        assert row == [float(peer) for peer in peers for _ in range(3)]
        assert reports == {"nll": sum(10.0 * dp + 1.5 for dp in range(grid.dp))}, "each replica once, whatever its tensor ranks"


def routed(grid: Grid) -> tuple:
    groups = build_groups(grid)
    local = None
    if groups is not None and dist.get_rank() == grid.leader(groups.coordinates.dp):
        local = torch.tensor([[10 * row, 10 * row + 1] for row in replica_rows(6, grid, groups.coordinates.dp)])
    everywhere = share_rows(local, grid, (6, 2), torch.int64, torch.device("cpu"))
    numbers = share_numbers([1.5, -2.0] if dist.get_rank() in grid else None, 2, grid, torch.device("cpu"))
    return everywhere, numbers


ROUTED = [Grid(), Grid(tp=2, dp=2), Grid(pp=2, dp=2), Grid(dp=2, offset=1), Grid(dp=3, offset=1), Grid(tp=2, offset=2)]


@pytest.mark.parametrize("grid", ROUTED, ids=str)
def test_groups_route_rows_to_every_rank_of_the_world(grid):
    expected = torch.tensor([[10 * row, 10 * row + 1] for row in range(6)])
    for everywhere, numbers in run_ranks(4, routed, grid):
        assert torch.equal(everywhere, expected)
        assert numbers == [1.5, -2.0]
