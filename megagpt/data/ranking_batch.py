"""Ranking groups -> microbatches in which every answer is one row and pairs point at rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.data.ranking import EncodedGroup
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import Groups
from megagpt.parallel.route import replica_rows


@dataclass(frozen=True)
class RankingBatch:
    """Some groups in one forward pass."""

    tokens: Tensor
    """[rows, T] int64, padded on the right"""
    lengths: Tensor
    """[rows] int64; 1 for rows that only fill up"""
    answer_mask: Tensor
    """[rows, T] float32; 1 on the tokens of the answer and on the one that closes it"""
    row_ids: Tensor
    """[rows] number in the global batch; one more than the last for rows that only fill up"""
    winners: Tensor
    """[pairs] row of the preferred answer"""
    losers: Tensor
    """[pairs]"""
    weights: Tensor
    """[pairs] float32: weight of the group / number of its pairs"""
    distances: Tensor
    """[pairs] float32: ranks between the two answers, 1 for neighbours"""


@dataclass(frozen=True)
class Packing:
    """Which groups of a global batch go through the model together: the same on every rank."""

    members: list[list[int]]
    """Groups of each microbatch, as many microbatches for every replica; some may be empty."""
    rows: int
    """Answers that a microbatch has room for."""

    def of_replica(self, grid: Grid, dp: int) -> list[list[int]]:
        mine = replica_rows(len(self.members), grid, dp)
        return self.members[mine.start : mine.stop]


def pack(groups: Sequence[EncodedGroup], micro_batch_size: int, num_replicas: int) -> Packing:
    """First-fit decreasing (Johnson 1973) by number of answers: a ranking of nine among pairs must not make nine rows of every pair.

    A microbatch has room for `micro_batch_size` groups of the mean size, and for the largest group in any case. Groups of one size
    come by length, so that a microbatch holds little padding; every replica gets short and long ones.
    """
    sizes = [len(group.rows) for group in groups]
    rows = max(*sizes, -(-micro_batch_size * sum(sizes) // len(sizes)), 1)
    members: list[list[int]] = []
    room: list[int] = []
    lengths = [max(len(row) for row in group.rows) for group in groups]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], lengths[index], index)):
        place = next((place for place, free in enumerate(room) if free >= sizes[index]), len(members))
        if place == len(members):
            members.append([])
            room.append(rows)
        members[place].append(index)
        room[place] -= sizes[index]
    members += [[] for _ in range(-len(members) % num_replicas)]
    return Packing([part for dp in range(num_replicas) for part in members[dp::num_replicas]], rows)


def replica_batches(groups_of_batch: Sequence[EncodedGroup], groups: Groups, micro_batch_size: int, pad_id: int, device: torch.device) -> list[RankingBatch]:
    """This replica's microbatches of a global batch of groups, each as wide as its longest row; with a pipeline all have the same shape.

    Args:
        groups_of_batch: the global batch, the same on every rank.
        micro_batch_size: groups of mean size in one forward pass.
    """
    packing = pack(groups_of_batch, micro_batch_size, groups.grid.dp)
    mine = packing.of_replica(groups.grid, groups.coordinates.dp)
    lengths = [max((len(row) for index in members for row in groups_of_batch[index].rows), default=1) for members in mine]
    if groups.grid.pp > 1:
        lengths = [max(len(row) for group in groups_of_batch for row in group.rows)] * len(mine)
    return [_batch(groups_of_batch, members, packing.rows, length, pad_id, device) for members, length in zip(mine, lengths)]


def _batch(groups: Sequence[EncodedGroup], members: Sequence[int], num_rows: int, length: int, pad_id: int, device: torch.device) -> RankingBatch:
    numbers = [0, *itertools.accumulate(len(group.rows) for group in groups)]
    tokens = torch.full((num_rows, length), pad_id, dtype=torch.int64)
    answer_mask, lengths = torch.zeros(tokens.shape), torch.ones(num_rows, dtype=torch.int64)
    row_ids = torch.full((num_rows,), numbers[-1], dtype=torch.int64)
    winners, losers, weights, distances, start = [], [], [], [], 0
    for index in members:
        group = groups[index]
        for place, encoded in enumerate(group.rows):
            tokens[start + place, : len(encoded)] = torch.from_numpy(encoded.tokens)
            answer_mask[start + place, : len(encoded)] = torch.from_numpy(encoded.loss_mask)
            lengths[start + place], row_ids[start + place] = len(encoded), numbers[index] + place
        winners += [start + winner for winner, _ in group.pairs]
        losers += [start + loser for _, loser in group.pairs]
        weights += [group.weight / len(group.pairs) for _ in group.pairs]
        distances += group.distances
        start += len(group.rows)
    return RankingBatch(
        tokens.to(device), lengths.to(device), answer_mask.to(device), row_ids,
        *(torch.tensor(rows, dtype=torch.int64, device=device) for rows in (winners, losers)),
        *(torch.tensor(values, dtype=torch.float32, device=device) for values in (weights, distances)),
    )
