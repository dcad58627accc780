"""Ranking groups -> microbatches in which every answer is one row and pairs point at rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megagpt.data.ranking import EncodedGroup
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import Groups
from megagpt.parallel.route import replica_rows
from megagpt.reward.activations import Activations
from megagpt.reward.shared_row import pad_rows, shared_row


@dataclass(frozen=True)
class RankingBatch:
    """Some groups in one forward pass."""

    tokens: Tensor
    """[rows, T] int64, padded on the right"""
    ends: Tensor
    """[answers] int64: where each answer ends in the flattened [rows * T]; 0 for those that only fill up"""
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
    branches: Tensor | None = None
    """[rows, T] int64; where a row is a whole group (`shared_row.py`), the answer that each token belongs to; None: a row is an answer"""
    hidden: Tensor | None = None
    """[T, rows, hidden]: what the frozen layers made of the tokens; None: all layers are to be computed"""


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

    A microbatch has room for `micro_batch_size` groups of the mean size, and for the largest group in any case.
    """
    sizes = [len(group.rows) for group in groups]
    rows = max(*sizes, -(-micro_batch_size * sum(sizes) // len(sizes)), 1)
    members: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        place = next((place for place, free in enumerate(room) if free >= sizes[index]), len(members))
        if place == len(members):
            members.append([])
            room.append(rows)
        members[place].append(index)
        room[place] -= sizes[index]
    members += [[] for _ in range(-len(members) % num_replicas)]
    return Packing(members, rows)


def replica_batches(
    groups_of_batch: Sequence[EncodedGroup], groups: Groups, micro_batch_size: int, pad_id: int, device: torch.device,
    activations: Activations | None = None,
) -> list[RankingBatch]:
    """This replica's microbatches of a global batch of groups.

    Args:
        groups_of_batch: the global batch, the same on every rank.
        micro_batch_size: groups of mean size in one forward pass.
        activations: what the frozen layers made of the groups. Then a row is a whole group, and each microbatch as long as its
            longest row; else a row is an answer, and all microbatches have the same shape.
    """
    packing = pack(groups_of_batch, micro_batch_size, groups.grid.dp)
    mine = packing.of_replica(groups.grid, groups.coordinates.dp)
    if activations is not None:
        return [_shared_batch([groups_of_batch[index] for index in members], packing.rows, pad_id, device, activations) for members in mine]
    return [_batch(groups_of_batch, members, packing.rows, pad_id, device) for members in mine]


def _batch(groups: Sequence[EncodedGroup], members: Sequence[int], num_rows: int, pad_id: int, device: torch.device) -> RankingBatch:
    numbers = [0, *itertools.accumulate(len(group.rows) for group in groups)]
    tokens = torch.full((num_rows, max(len(row) for group in groups for row in group.rows)), pad_id, dtype=torch.int64)
    ends = torch.zeros(num_rows, dtype=torch.int64)
    row_ids = torch.full((num_rows,), numbers[-1], dtype=torch.int64)
    start = 0
    for index in members:
        for place, encoded in enumerate(groups[index].rows):
            tokens[start + place, : len(encoded)] = torch.from_numpy(encoded.tokens)
            ends[start + place], row_ids[start + place] = (start + place) * tokens.size(1) + len(encoded) - 1, numbers[index] + place
        start += len(groups[index].rows)
    return RankingBatch(tokens.to(device), ends.to(device), row_ids, *_pairs([groups[index] for index in members], device))


def _shared_batch(members: Sequence[EncodedGroup], num_answers: int, pad_id: int, device: torch.device, activations: Activations) -> RankingBatch:
    rows = [shared_row(group) for group in members]
    tokens, branches = pad_rows(rows, pad_id)
    ends = torch.zeros(num_answers, dtype=torch.int64)
    found = np.concatenate([place * tokens.size(1) + row.ends for place, row in enumerate(rows)]) if rows else np.zeros(0, np.int64)
    ends[: len(found)] = torch.from_numpy(found)
    hidden = torch.nn.utils.rnn.pad_sequence([activations[row] for row in rows]) if rows else activations.zeros(1, 1)
    row_ids = torch.zeros(len(tokens), dtype=torch.int64)  # for dropout, which frozen layers exclude
    return RankingBatch(tokens.to(device), ends.to(device), row_ids, *_pairs(members, device), branches.to(device), hidden.to(device))


def _pairs(members: Sequence[EncodedGroup], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """winners, losers, weights and distances of groups whose answers are numbered through."""
    winners, losers, weights, distances, start = [], [], [], [], 0
    for group in members:
        winners += [start + winner for winner, _ in group.pairs]
        losers += [start + loser for _, loser in group.pairs]
        weights += [group.weight / len(group.pairs) for _ in group.pairs]
        distances += group.distances
        start += len(group.rows)
    return (
        *(torch.tensor(rows, dtype=torch.int64, device=device) for rows in (winners, losers)),
        *(torch.tensor(values, dtype=torch.float32, device=device) for values in (weights, distances)),
    )
