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


def begin_sharing(rows: Tensor, grid: Grid, group: dist.ProcessGroup | None = None) -> list[dist.Work]:
    """Each replica's leader has written its own rows of a batch; send them to every rank of the world, in place.

    Args:
        rows: [rows, ...] all of them, contiguous.
        group: all ranks of the world; default: the default group.

    Returns:
        What to wait for; the rows are everywhere then, and must be left alone until then.
    """
    works = []
    for dp in range(grid.dp):
        mine = replica_rows(rows.size(0), grid, dp)
        works.append(dist.broadcast(rows[mine.start : mine.stop], grid.leader(dp), group=group, async_op=True))
    return works


def share_rows(
    local: Tensor | None, grid: Grid, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, num_parts: int = 1
) -> Tensor:
    """What the replicas of one grid computed for their rows -> all rows, on every rank of the world.

    Rollouts are small beside the models (numbers per token, not per parameter), so everyone gets all of them and any grid
    can cut them as its own layout wants.

    Args:
        local: [rows of this replica, ...] on each replica's leader; ignored elsewhere.
        size: shape of the result, all rows.
        num_parts: equal parts of the batch, each of which the replicas share; a replica's rows then lie part after part.

    Returns:
        [rows, ...]
    """
    result, works = torch.empty(size, dtype=dtype, device=device), []
    for number, part in enumerate(result.chunk(num_parts)):
        for dp in range(grid.dp):
            if dist.get_rank() == grid.leader(dp):
                rows = replica_rows(part.size(0), grid, dp)
                part[rows.start : rows.stop] = local.chunk(num_parts)[number]
        works += begin_sharing(part, grid)
    for work in works:
        work.wait()
    return result


def share_numbers(numbers: list[float] | None, count: int, grid: Grid, device: torch.device) -> list[float]:
    """Numbers that all ranks of a grid know -> known on every rank of the world."""
    packed = torch.zeros(count, dtype=torch.float64, device=device)
    if dist.get_rank() == grid.ranks[0]:
        packed.copy_(torch.tensor(numbers, dtype=torch.float64))
    dist.broadcast(packed, grid.ranks[0])
    return packed.tolist()
