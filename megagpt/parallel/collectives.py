"""Small reductions that several stages share; each takes its group explicitly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megagpt.parallel.groups import Groups


def sum_over(group: dist.ProcessGroup, *values: float, device: torch.device | str = "cpu") -> list[float]:
    """Sums of the given numbers over a group, one all-reduce in float64."""
    packed = torch.tensor(values, dtype=torch.float64, device=device)
    if group.size() > 1:
        dist.all_reduce(packed, group=group)
    return packed.tolist()


def sum_in_place(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup, small: int = 65536) -> None:
    """Replace each tensor by its sum over a group; all ranks hold the same shapes in the same order.

    Tensors of `small` numbers and more are summed where they lie, all on their way at once; the others travel as one message.
    (A bucket for all costs two copies of everything: 8 % of a small model's step.)
    """
    if group.size() == 1 or not tensors:
        return
    whole = [tensor for tensor in tensors if tensor.numel() >= small and tensor.is_contiguous()]
    parts = [tensor for tensor in tensors if tensor.numel() < small or not tensor.is_contiguous()]
    packed = [torch.cat([part.flatten() for part in parts])] if parts else []
    for work in [dist.all_reduce(tensor, group=group, async_op=True) for tensor in (*whole, *packed)]:
        work.wait()
    if parts:
        for part, summed in zip(parts, packed[0].split([part.numel() for part in parts]), strict=True):
            part.copy_(summed.view_as(part))


def max_over(group: dist.ProcessGroup, value: float, device: torch.device | str = "cpu") -> float:
    """Largest of one number over a group."""
    packed = torch.tensor([value], dtype=torch.float64, device=device)
    if group.size() > 1:
        dist.all_reduce(packed, op=dist.ReduceOp.MAX, group=group)
    return packed.item()


def gather_last_dim(shard: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """[..., n / group] on each rank -> [..., n] on all (no gradient)."""
    if group.size() == 1:
        return shard
    shards = [torch.empty_like(shard) for _ in range(group.size())]
    dist.all_gather(shards, shard.contiguous(), group=group)
    return torch.cat(shards, dim=-1)


def sum_reports(groups: Groups, reports: list[dict[str, float]], names: tuple[str, ...]) -> dict[str, float]:
    """Sums of the named numbers over all microbatches and replicas, known on every rank of the grid.

    Reports exist on the last pipeline stage and are equal on its tensor-parallel ranks, so tensor rank 0 speaks.
    """
    speaks = groups.is_last_stage and groups.coordinates.tp == 0
    values = [sum(float(report[name]) for report in reports) if speaks else 0.0 for name in names]
    return dict(zip(names, sum_over(groups.whole, *values, device=torch.cuda.current_device())))
