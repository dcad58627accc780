"""Ranking groups -> microbatches in which every answer is one row and pairs point at rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megagpt.data.activations import Activations
from megagpt.data.batch import EncodedRow
from megagpt.data.ranking import EncodedGroup
from megagpt.data.shared_row import pad_rows, shared_row
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import Groups
from megagpt.parallel.route import replica_rows


@dataclass(frozen=True)
class RankingBatch:
    """Some groups in one forward pass."""

    tokens: Tensor
    """[rows, T] int64, padded on the right; with context parallelism this rank's part of each row"""
    read_at: Tensor
    """[n] int64: where scores are read, in the flattened [rows * T] …"""
    reader: Tensor
    """[n] int64: … and the answer that each of them belongs to"""
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
    labels: Tensor | None
    """[rows, T] int64; labels[:, t] is the token after tokens[:, t]; None where a row is a whole group"""
    answer_mask: Tensor | None
    """[rows, T] float32; 1 where the label is a token of the answer or the one that closes it; None where a row is a whole group"""
    num_answers: int
    """The same in all microbatches; those that only fill up are read nowhere."""
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


def replica_batches(
    groups_of_batch: Sequence[EncodedGroup], groups: Groups, micro_batch_size: int, pad_id: int, device: torch.device,
    activations: Activations | None = None, pooling: str = "last", ranks_per_row: int = 1,
) -> list[RankingBatch]:
    """This replica's microbatches of a global batch of groups, each as wide as its longest row; with a pipeline all have the same shape.

    With context parallelism each rank gets its part of every row. Scores, which are read at places of whole rows, are not for that.

    Args:
        groups_of_batch: the global batch, the same on every rank.
        micro_batch_size: groups of mean size in one forward pass.
        activations: what the frozen layers made of the groups. Then a row is a whole group, else an answer.
        pooling: where scores are read: `last`, at an answer's last token, or `mean`, over the answer's tokens.
        ranks_per_row: widths are multiples of it.
    """
    grid, place = groups.grid, groups.coordinates
    packing = pack(groups_of_batch, micro_batch_size, grid.dp)
    mine = packing.of_replica(grid, place.dp)
    if activations is not None:
        return [
            _shared_batch([groups_of_batch[index] for index in members], packing.rows, pad_id, device, activations, pooling) for members in mine
        ]
    lengths = [max((len(row) for index in members for row in groups_of_batch[index].rows), default=1) for members in mine]
    if grid.pp > 1:
        lengths = [max(len(row) for group in groups_of_batch for row in group.rows)] * len(mine)
    lengths = [length + -length % ranks_per_row for length in lengths]
    batches = [_batch(groups_of_batch, members, packing.rows, length, pad_id, device, pooling) for members, length in zip(mine, lengths)]
    return batches if grid.cp == 1 else [_part_of_rows(batch, place.cp, grid.cp) for batch in batches]


def _part_of_rows(batch: RankingBatch, place: int, number: int) -> RankingBatch:
    """The place-th of `number` equal parts of each row."""
    return replace(batch, **{name: getattr(batch, name).chunk(number, dim=1)[place] for name in ("tokens", "labels", "answer_mask")})


def _batch(
    groups: Sequence[EncodedGroup], members: Sequence[int], num_rows: int, length: int, pad_id: int, device: torch.device, pooling: str
) -> RankingBatch:
    numbers = [0, *itertools.accumulate(len(group.rows) for group in groups)]
    tokens = torch.full((num_rows, length), pad_id, dtype=torch.int64)
    labels, answer_mask = tokens.clone(), torch.zeros(tokens.shape)
    row_ids = torch.full((num_rows,), numbers[-1], dtype=torch.int64)
    answers = [(numbers[index] + place, encoded) for index in members for place, encoded in enumerate(groups[index].rows)]
    for row, (number, encoded) in enumerate(answers):
        tokens[row, : len(encoded)], row_ids[row] = torch.from_numpy(encoded.tokens), number
        labels[row, : len(encoded) - 1] = torch.from_numpy(encoded.tokens[1:])
        answer_mask[row, : len(encoded) - 1] = torch.from_numpy(encoded.loss_mask[1:])
    places = [row * length + _read_at(encoded, pooling) for row, (_, encoded) in enumerate(answers)]
    return RankingBatch(
        tokens.to(device), *_readers(places, device), row_ids, *_pairs([groups[index] for index in members], device), labels.to(device),
        answer_mask.to(device), num_rows,
    )


def _shared_batch(
    members: Sequence[EncodedGroup], num_answers: int, pad_id: int, device: torch.device, activations: Activations, pooling: str
) -> RankingBatch:
    rows = [shared_row(group) for group in members]
    tokens, branches = pad_rows(rows, pad_id)
    places = [
        number * tokens.size(1) + row.places(answer)[_read_at(encoded, pooling)]
        for number, (row, group) in enumerate(zip(rows, members, strict=True)) for answer, encoded in enumerate(group.rows)
    ]  # fmt: skip
    hidden = torch.nn.utils.rnn.pad_sequence([activations[row] for row in rows]) if rows else activations.zeros(1, 1)
    row_ids = torch.zeros(len(tokens), dtype=torch.int64)  # for dropout, which frozen layers exclude
    return RankingBatch(
        tokens.to(device), *_readers(places, device), row_ids, *_pairs(members, device), None, None, num_answers, branches.to(device), hidden.to(device)
    )


def _read_at(row: EncodedRow, pooling: str) -> np.ndarray:
    """Places of a row at which its score is read: the last one, or all behind the prompt."""
    begin = len(row) - 1 if pooling == "last" else int(np.flatnonzero(row.loss_mask == 0).max(initial=-1)) + 1
    return np.arange(begin, len(row))


def _readers(places: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """read_at and reader, from the places of each answer."""
    empty = np.zeros(0, np.int64)
    read_at, reader = np.concatenate([empty, *places]), np.repeat(np.arange(len(places)), [len(read) for read in places])
    return torch.from_numpy(read_at).to(device), torch.from_numpy(reader).to(device)


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
