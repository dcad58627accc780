"""Move rows of a batch, and weights, between the grids of different models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def hand_out(shard_for: Callable[[int], Tensor] | None, givers: Sequence[int], takers: Sequence[int], into: Tensor | None) -> None:
    """One tensor from ranks that hold all of it to ranks that each want a shard. All givers and takers call this, for several tensors in one order.

    The givers share the work; a taker that is one of them serves itself.

    Args:
        shard_for: (world rank of a taker) -> what it shall have; on givers.
        givers, takers: world ranks.
        into: where it goes, contiguous; on takers.
    """
    rank, operations = dist.get_rank(), []
    for number, taker in enumerate(takers):
        giver = taker if taker in givers else givers[number % len(givers)]
        if rank == giver == taker:
            into.copy_(shard_for(taker))
        elif rank == giver:
            operations.append(dist.P2POp(dist.isend, shard_for(taker).contiguous(), taker))
        elif rank == taker:
            operations.append(dist.P2POp(dist.irecv, into, giver))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


def share_numbers(numbers: list[float] | None, count: int, grid: Grid, device: torch.device) -> list[float]:
    """Numbers that all ranks of a grid know -> known on every rank of the world."""
    packed = torch.zeros(count, dtype=torch.float64, device=device)
    if dist.get_rank() == grid.ranks[0]:
        packed.copy_(torch.tensor(numbers, dtype=torch.float64))
    dist.broadcast(packed, grid.ranks[0])
    return packed.tolist()
