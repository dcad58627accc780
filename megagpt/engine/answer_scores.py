"""A number for each answer of each ranking, computed by whatever the engine's grid is; the reward and the DPO stage differ only in what they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megagpt.data.activations import Activations
from megagpt.data.ranking import EncodedGroup
from megagpt.data.ranking_batch import RankingBatch, pack, replica_batches
from megagpt.engine.build import Engine
from megagpt.engine.schedule_run import infer
from megagpt.parallel.route import share_rows

SCORED_AT_ONCE = 8
"""Microbatches of a replica in one call of the schedule."""


def score_answers(
    engine: Engine, members: Sequence[EncodedGroup], read: Callable[[Tensor, RankingBatch], Tensor], micro_batch_size: int, pad_id: int,
    device: torch.device, activations: Activations | None = None, pooling: str = "last",
) -> list[list[float]]:
    """Numbers of all answers, for each group its K, on every rank of the job.

    Args:
        read: (output of the last stage, batch) -> [rows], or [answers] where a row is a whole group.
        micro_batch_size: groups of mean size in one forward pass.
        activations, pooling: as `replica_batches` takes them.
    """
    found: list[list[float]] = [[] for _ in members]
    # Groups of about the same length together: within one call all rows are padded to the longest.
    order = sorted(range(len(members)), key=lambda index: max(len(row) for row in members[index].rows))
    together = SCORED_AT_ONCE * micro_batch_size * engine.groups.grid.dp
    for first in range(0, len(order), together):
        chosen = order[first : first + together]
        asked = [members[index] for index in chosen]
        for index, scores in zip(chosen, _score(engine, asked, read, micro_batch_size, pad_id, device, activations, pooling), strict=True):
            found[index] = scores
    return found


def _score(
    engine: Engine, members: Sequence[EncodedGroup], read: Callable[[Tensor, RankingBatch], Tensor], micro_batch_size: int, pad_id: int,
    device: torch.device, activations: Activations | None, pooling: str,
) -> list[list[float]]:
    grid, packing = engine.groups.grid, pack(members, micro_batch_size, engine.groups.grid.dp)
    ranks_per_row = engine.model.layout.ranks_per_row(grid)
    batches = replica_batches(members, engine.groups, micro_batch_size, pad_id, device, activations, pooling, ranks_per_row)
    rows, length = batches[0].tokens.shape
    with engine.scope():
        outputs = infer(engine.models, batches, read, rows=rows, length=length * grid.cp)
    shape = (len(packing.members), packing.rows)
    scores = share_rows(torch.stack(outputs) if outputs else None, grid, shape, torch.float32, device).tolist()
    found: list[list[float]] = [[] for _ in members]
    for indices, row in zip(packing.members, scores, strict=True):
        for index in indices:
            count = len(members[index].rows)
            found[index], row = row[:count], row[count:]
    return found
