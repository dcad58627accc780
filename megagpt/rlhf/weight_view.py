"""The policy's weights in the layout of another grid: what writes responses is never the training engine."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.engine.build import Engine
from megagpt.model import param_map
from megagpt.model.gpt import GPT
from megagpt.parallel.grid import Grid
from megagpt.parallel.route import hand_out


@dataclass(frozen=True)
class _Transfer:
    """One parameter on its way."""

    entry: param_map.Entry
    givers: list[int]
    """World ranks of the policy's stage that has it."""
    takers: list[int]
    """World ranks of the view that want a shard of it."""


class WeightView:
    """Keeps a frozen model on one grid equal to an engine's on another; both start from the same checkpoint. All ranks of the job make it.

    What is trained travels one parameter at a time, gathered over the policy's tensor-parallel ranks and cut for the taker, so that no rank ever
    holds more than one whole parameter beside its shards.

    Args:
        policy, writer: their grids.
        engine, view: the part of each that this rank holds, if any.
    """

    def __init__(self, policy: Grid, writer: Grid, engine: Engine | None, view: GPT | None) -> None:
        self._writer, self._engine, self._view = writer, engine, view
        gives = [] if engine is None else [entry for parameter, entry in engine.trained if not getattr(parameter, "ds_pipe_replicated", False)]
        takes = [] if view is None else [entry for _, entry in view.entries()]
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (gives, takes))
        self._transfers = []
        for stage in range(policy.pp):
            givers = [policy.rank(tp=tp, dp=dp, pp=stage) for dp in range(policy.dp) for tp in range(policy.tp)]
            for entry in everyone[givers[0]][0]:
                self._transfers.append(_Transfer(entry, givers, [rank for rank in writer.ranks if entry in everyone[rank][1]]))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the policy's weights as they are now. Ranks that hold neither pass by.

        Every rank goes through the same list of transfers, so that of those that are not over the first one always has all its ranks.
        """
        rank, engine = dist.get_rank(), self._engine
        into = {} if self._view is None else {entry: parameter.data for parameter, entry in self._view.entries()}
        with contextlib.ExitStack() as stack:
            if engine is not None:
                weights = stack.enter_context(contextlib.closing(engine.canonical_weights()))
            for transfer in self._transfers:
                shard_for = None
                if rank in transfer.givers:
                    pieces = [next(weights)[1].to(engine.model.layout.dtype) for _ in transfer.entry.pieces]
                    shard_for = functools.partial(self._shard, transfer.entry, pieces)
                if rank in transfer.givers or rank in transfer.takers:
                    hand_out(shard_for, transfer.givers, transfer.takers, into.get(transfer.entry))

    def _shard(self, entry: param_map.Entry, pieces: list[Tensor], taker: int) -> Tensor:
        """Of a parameter, for a world rank of the view."""
        return param_map.split(entry, pieces, self._engine.model.shape, self._writer.tp, self._writer.coordinates(taker).tp)
