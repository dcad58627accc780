"""Grid arithmetic: rank <-> coordinates, groups of peers, leaders."""

import itertools

import pytest

from megagpt.parallel.grid import AXES, Coordinates, Grid

GRIDS = [Grid(), Grid(tp=4), Grid(tp=2, pp=2, offset=3), Grid(tp=2, dp=3, pp=2), Grid(tp=2, cp=3, dp=2, pp=4, offset=5)]
SUBSETS_OF_AXES = [axes for count in range(5) for axes in itertools.combinations(AXES, count)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grid_rank_and_coordinates_invert_each_other(grid):
    places = [grid.coordinates(rank) for rank in grid.ranks]
    assert [grid.rank(**vars(place)) for place in places] == list(grid.ranks)
    assert len(set(places)) == grid.size == len(grid.ranks)
    assert all(0 <= getattr(place, axis) < getattr(grid, axis) for place in places for axis in AXES)


def test_grid_tensor_ranks_are_neighbours_and_pipeline_stages_are_blocks():
    grid = Grid(tp=2, dp=2, pp=2, offset=4)
    assert grid.coordinates(4) == Coordinates(tp=0, cp=0, dp=0, pp=0)
    assert grid.coordinates(5) == Coordinates(tp=1, cp=0, dp=0, pp=0)
    assert grid.coordinates(6) == Coordinates(tp=0, cp=0, dp=1, pp=0)
    assert grid.coordinates(8) == Coordinates(tp=0, cp=0, dp=0, pp=1)
    assert grid.peers("tp") == [[4, 5], [6, 7], [8, 9], [10, 11]]
    assert grid.peers("dp") == [[4, 6], [5, 7], [8, 10], [9, 11]]
    assert grid.peers("pp") == [[4, 8], [5, 9], [6, 10], [7, 11]]
    assert grid.peers("tp", "pp") == [[4, 5, 8, 9], [6, 7, 10, 11]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grid_peers_partition_the_ranks(grid):
    for axes in SUBSETS_OF_AXES:
        groups = grid.peers(*axes)
        assert sorted(rank for group in groups for rank in group) == list(grid.ranks)
        for group in groups:
            assert group == sorted(group)
            fixed = {tuple(getattr(grid.coordinates(rank), axis) for axis in AXES if axis not in axes) for rank in group}
            assert len(fixed) == 1, f"peers differ in {axes} only"


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grid_leader_is_tensor_rank_0_of_the_last_stage(grid):
    for dp in range(grid.dp):
        assert grid.coordinates(grid.leader(dp)) == Coordinates(tp=0, cp=0, dp=dp, pp=grid.pp - 1)
        assert grid.coordinates(grid.leader(dp, pp=0)) == Coordinates(tp=0, cp=0, dp=dp, pp=0)


@pytest.mark.parametrize("rank", [-1, 2, 6, 7])
def test_grid_refuses_a_rank_outside(rank):
    grid = Grid(tp=3, offset=3)
    assert rank not in grid
    with pytest.raises(ValueError, match=f"rank {rank} is not in the grid's ranks 3..5"):
        grid.coordinates(rank)
