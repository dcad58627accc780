"""Grid -> process groups. The only place of the project that makes groups."""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core.hyper_comm_grid import HyperCommGrid
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


@functools.cache  # models that are never used at the same time on the same grid share their sockets
def build_groups(grid: Grid, timeout_seconds: int = 600) -> Groups | None:
    """Make every group of one grid. All ranks of the world must call this, in the same order for several grids.

    Returns:
        This rank's groups, or None on a rank outside the grid.
    """
    timeout = datetime.timedelta(seconds=timeout_seconds)
    hyper = HyperCommGrid(grid.shape, list(AXES), rank_offset=grid.offset)
    made = ProcessGroupCollection()
    for axis in AXES:
        setattr(made, axis, hyper.create_pg(axis, timeout=timeout))
    made.mp = hyper.create_pg(["tp", "pp"], timeout=timeout)
    made.tp_cp = hyper.create_pg(["tp", "cp"], timeout=timeout)
    made.dp_cp = hyper.create_pg(["cp", "dp"], timeout=timeout)
    whole = dist.new_group(list(grid.ranks), timeout=timeout)
    made.embd = made.pos_embd = None
    if grid.pp > 1:
        for stages in grid.peers("pp"):
            # Tied embeddings live on the first and on the last stage; learned positions on the first alone.
            ends = dist.new_group([stages[0], stages[-1]], timeout=timeout)
            first = dist.new_group([stages[0]], timeout=timeout)
            if dist.get_rank() in (stages[0], stages[-1]):
                made.embd = ends
            if dist.get_rank() == stages[0]:
                made.pos_embd = first
    if dist.get_rank() not in grid:
        return None
    return Groups(grid, made, whole, grid.coordinates(dist.get_rank()))
