"""Grid -> process groups. The only place of the project that makes groups."""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from megagpt.parallel.grid import AXES, Coordinates, Grid


@dataclass(frozen=True)
class Groups:
    """The process groups of one model, as this rank sees them."""

    grid: Grid
    collection: ProcessGroupCollection
    """What Megatron-core takes: tp, cp, dp, pp, mp, tp_cp, dp_cp, embd, pos_embd."""
    whole: dist.ProcessGroup
    """All ranks of the grid."""
    coordinates: Coordinates

    @property
    def is_first_stage(self) -> bool:
        return self.coordinates.pp == 0

    @property
    def is_last_stage(self) -> bool:
        return self.coordinates.pp == self.grid.pp - 1


@functools.cache
def build_groups(grid: Grid, timeout_seconds: int = 600) -> Groups | None:
    """Make every group of one grid. All ranks of the world must call this, in the same order for several grids.

    Returns:
        This rank's groups, or None on a rank outside the grid.
    """

    def mine(*axes: str) -> dist.ProcessGroup | None:
        """All ranks make all groups along these axes; the one that holds this rank."""
        return _join(grid.peers(*axes), timeout_seconds)

    made = ProcessGroupCollection()
    for axis in AXES:
        setattr(made, axis, mine(axis))
    made.mp, made.tp_cp, made.dp_cp = mine("tp", "pp"), mine("tp", "cp"), mine("cp", "dp")
    whole = mine(*AXES)
    made.embd = made.pos_embd = None
    if grid.pp > 1:
        # Tied embeddings live on the first and on the last stage; learned positions on the first alone.
        made.embd = _join([[stages[0], stages[-1]] for stages in grid.peers("pp")], timeout_seconds)
        made.pos_embd = _join([[stages[0]] for stages in grid.peers("pp")], timeout_seconds)
    if dist.get_rank() not in grid:
        return None
    return Groups(grid, made, whole, grid.coordinates(dist.get_rank()))


@functools.cache
def host_group(timeout_seconds: int = 600) -> dist.ProcessGroup:
    """All ranks of the world once more, for messages in host memory that travel while the other groups work. All ranks must call this.

    By gloo on every machine: a NCCL broadcast that waits for its sender would hold a part of the receiver's GPU all the time.
    """
    return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))


def _join(rank_lists: list[list[int]], timeout_seconds: int) -> dist.ProcessGroup | None:
    groups = [(ranks, _group(tuple(ranks), timeout_seconds)) for ranks in rank_lists]
    return next((group for ranks, group in groups if dist.get_rank() in ranks), None)


@functools.cache
def _group(ranks: tuple[int, ...], timeout_seconds: int) -> dist.ProcessGroup:
    """One group for each set of ranks, whatever axes and models it serves: each costs sockets and threads (a communicator on
    a GPU), and most axes of most grids have size 1 or coincide. Megatron-core's HyperCommGrid makes one for each name."""
    return dist.new_group(list(ranks), timeout=datetime.timedelta(seconds=timeout_seconds))
