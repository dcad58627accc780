"""Several short rows in one long one (`packing`): nothing of one row sees another, and little of the long row is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from megagpt.data.batch import EncodedRow


def pack_rows(rows: Sequence[EncodedRow], max_length: int) -> list[EncodedRow]:
    """All rows, joined to rows of at most max_length tokens, each a segment of its own.

    Attention stays within a segment and positions start anew in it, so that the loss and its gradient are those of the
    rows alone. Depends on the rows and max_length only: on every number of replicas and in every epoch the same.

    Raises:
        ValueError: a row longer than max_length.
    """
    return [_join([rows[item] for item in members]) for members in fill([len(row) for row in rows], max_length)]


def fill(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row of this capacity: best fit, longest item first.

    Needs at most 11/9 of the fewest rows possible, plus 4 (Johnson et al. 1974), in time that grows as
    items x log capacity.

    Returns:
        Items of each row in rising order; rows in the order of their first items.

    Raises:
        ValueError: an item longer than the capacity.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"an item of length {max(lengths)} does not fit into a row of {capacity}")
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}
    """Space left -> rows with so much of it."""
    spaces: list[int] = []
    """Keys of by_space, rising."""
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = bisect_left(spaces, lengths[item])
        if place < len(spaces):
            space = spaces[place]
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[place]
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(item)
        space -= lengths[item]
        if space not in by_space:
            by_space[space] = []
            insort(spaces, space)
        by_space[space].append(row)
    return sorted(map(sorted, rows))


def describe(rows: Sequence[EncodedRow], packed: Sequence[EncodedRow], max_length: int) -> str:
    """What packing brought, in one line: how full rows of max_length tokens are, with it and without."""
    filled, before = (sum(map(len, rows)) / (len(held) * max_length) for held in (packed, rows))
    return f"{len(packed)} rows of {max_length} tokens, {filled:.1%} filled (by one conversation each: {before:.1%}), {len(rows) / len(packed):.1f} conversations a row"


def _join(rows: Sequence[EncodedRow]) -> EncodedRow:
    """One row; the first token of each part follows nothing of its own, so it is no target."""
    loss_mask = np.concatenate([row.loss_mask for row in rows])
    lengths = [len(row) for row in rows]
    loss_mask[np.cumsum([0, *lengths[:-1]])] = 0
    return EncodedRow(np.concatenate([row.tokens for row in rows]), loss_mask, np.repeat(np.arange(len(rows)), lengths))
