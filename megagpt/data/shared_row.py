"""All answers to a prompt as one row, in which what they begin with stands once. n = tokens of the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megagpt.data.ranking import EncodedGroup


@dataclass(frozen=True, eq=False, slots=True)
class SharedRow:
    """A group's rows: their common beginning, then the rest of each. As GPT.forward takes them, each token sees what it saw in a row of its own."""

    tokens: np.ndarray
    """[n] int64."""
    branches: np.ndarray
    """[n] int64; 0 in the common beginning, k in the rest of the k-th answer."""
    num_answers: int
    """K"""

    def __len__(self) -> int:
        return len(self.tokens)

    def places(self, answer: int) -> np.ndarray:
        """Where the tokens of one of the group's rows stand, in their order."""
        return np.flatnonzero((self.branches == 0) | (self.branches == answer + 1))


def shared_row(group: EncodedGroup) -> SharedRow:
    """The longest beginning that all rows have in common is shared, but for the last token of each."""
    rows = [row.tokens for row in group.rows]
    most = min(map(len, rows)) - 1
    same = np.all([row[:most] == rows[0][:most] for row in rows], axis=0)
    begin = most if same.all() else int(same.argmin())
    rests = [row[begin:] for row in rows]
    sizes = [begin, *map(len, rests)]
    return SharedRow(np.concatenate([rows[0][:begin], *rests]), np.repeat(np.arange(len(sizes)), sizes), len(rows))


def pad_rows(rows: Sequence[SharedRow], pad_id: int) -> tuple[Tensor, Tensor]:
    """tokens and branches, [rows, longest]; padding is a branch of its own, which nothing else sees. At least one row of one token."""
    shape = (max(len(rows), 1), max(map(len, rows), default=1))
    tokens, branches = torch.full(shape, pad_id, dtype=torch.int64), torch.full(shape, max((row.num_answers for row in rows), default=0) + 1)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], branches[place, : len(row)] = torch.from_numpy(row.tokens), torch.from_numpy(row.branches)
    return tokens, branches
