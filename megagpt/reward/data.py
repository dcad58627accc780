"""Ranking groups -> microbatches in which every answer is one row and pairs point at rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.data.ranking import EncodedGroup
from megagpt.parallel.groups import Groups
from megagpt.parallel.route import replica_rows


@dataclass(frozen=True)
class RankingBatch:
    """Some groups in one forward pass; every group takes as many rows as the largest of its global batch."""

    tokens: Tensor
    """[rows, T] int64, padded on the right"""
    lengths: Tensor
    """[rows] int64; 1 for rows that only fill up"""
    row_ids: Tensor
    """[rows] number in the global batch"""
    winners: Tensor
    """[pairs] row of the preferred answer"""
    losers: Tensor
    """[pairs]"""
    weights: Tensor
    """[pairs] float32: weight of the group / number of its pairs"""
    distances: Tensor
    """[pairs] float32: ranks between the two answers, 1 for neighbours"""


def replica_batches(groups_of_batch: Sequence[EncodedGroup], groups: Groups, micro_batch_size: int, pad_id: int, device: torch.device) -> list[RankingBatch]:
    """This replica's microbatches of a global batch of groups, the same shape for all.

    Args:
        groups_of_batch: the global batch, the same on every rank; empty ones are added until it divides.
        micro_batch_size: groups in one forward pass.
    """
    padded: list[EncodedGroup | None] = [*groups_of_batch, *[None] * (-len(groups_of_batch) % (micro_batch_size * groups.grid.dp))]
    rows_each = max(len(group.rows) for group in groups_of_batch)
    length = max(len(row) for group in groups_of_batch for row in group.rows)
    mine = replica_rows(len(padded), groups.grid, groups.coordinates.dp)
    return [
        _batch(padded[i : i + micro_batch_size], i * rows_each, rows_each, length, pad_id, device)
        for i in range(mine.start, mine.stop, micro_batch_size)
    ]


def _batch(members: Sequence[EncodedGroup | None], first_row: int, rows_each: int, length: int, pad_id: int, device: torch.device) -> RankingBatch:
    num_rows = len(members) * rows_each
    tokens = torch.full((num_rows, length), pad_id, dtype=torch.int64)
    lengths = torch.ones(num_rows, dtype=torch.int64)
    winners, losers, weights, distances = [], [], [], []
    for index, group in enumerate(members):
        if group is None:
            continue
        start = index * rows_each
        for row, encoded in enumerate(group.rows, start):
            tokens[row, : len(encoded)] = torch.from_numpy(encoded.tokens)
            lengths[row] = len(encoded)
        winners += [start + winner for winner, _ in group.pairs]
        losers += [start + loser for _, loser in group.pairs]
        weights += [group.weight / len(group.pairs) for _ in group.pairs]
        distances += group.distances
    return RankingBatch(
        tokens.to(device), lengths.to(device), torch.arange(first_row, first_row + num_rows),
        *(torch.tensor(rows, dtype=torch.int64, device=device) for rows in (winners, losers)),
        *(torch.tensor(values, dtype=torch.float32, device=device) for values in (weights, distances)),
    )
