"""Move rows of a batch between the grids of different models."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.parallel.grid import Grid


def replica_rows(num_rows: int, grid: Grid, dp: int) -> range:
    """Rows of a batch that replica `dp` of a grid works on; the batch divides evenly."""
    each = num_rows // grid.dp
    return range(dp * each, (dp + 1) * each)


def share_rows(local: Tensor | None, grid: Grid, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What the replicas of one grid computed for their rows -> all rows, on every rank of the world.

    Rollouts are small beside the models (numbers per token, not per parameter), so everyone gets all of them and any grid
    can cut them as its own layout wants.

    Args:
        local: [rows of this replica, ...] on each replica's leader; ignored elsewhere.
        size: shape of the result, all rows.

    Returns:
        [rows, ...]
    """
    result = torch.empty(size, dtype=dtype, device=device)
    for dp in range(grid.dp):
        rows, leader = replica_rows(size[0], grid, dp), grid.leader(dp)
        part = result[rows.start : rows.stop]
        if dist.get_rank() == leader:
            part.copy_(local)
        dist.broadcast(part, leader)
    return result


def share_numbers(numbers: list[float] | None, count: int, grid: Grid, device: torch.device) -> list[float]:
    """Numbers that all ranks of a grid know -> known on every rank of the world."""
    packed = torch.zeros(count, dtype=torch.float64, device=device)
    if dist.get_rank() == grid.ranks[0]:
        packed.copy_(torch.tensor(numbers, dtype=torch.float64))
    dist.broadcast(packed, grid.ranks[0])
    return packed.tolist()
