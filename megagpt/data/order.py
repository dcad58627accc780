"""Which rows an optimizer step reads: a pure function of seed and step. Layout, restarts and length never change it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)  # a step reads from two epochs at most, unless the data set is smaller than a batch
def epoch_order(seed: int, epoch: int, num_items: int) -> np.ndarray:
    """The order of one epoch: a permutation that depends on nothing but the arguments.

    Sorts the raw words of a Philox counter, because numpy promises these (and not its `permutation`) to stay the same
    from version to version.

    Returns:
        [num_items] int64, read-only.
    """
    words = np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64)).random_raw(num_items)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order


def step_rows(seed: int, step: int, global_batch_size: int, num_items: int) -> list[tuple[int, int]]:
    """Rows of a step's global batch, over all replicas.

    Epochs follow each other without a gap: a batch may begin in one and end in the next, and no row is left out.

    Args:
        step: from 0.
        num_items: rows in the data set.

    Returns:
        [global_batch_size] of (epoch, item), both from 0.

    Raises:
        ValueError: an empty data set.
    """
    return rows_at(seed, range(step * global_batch_size, (step + 1) * global_batch_size), num_items)


def rows_at(seed: int, positions: range, num_items: int) -> list[tuple[int, int]]:
    """Rows at these positions of a run, counted from 0 over all epochs; as `step_rows`, for steps of different sizes."""
    if num_items < 1:
        raise ValueError("there are no rows to read")
    rows = []
    for position in positions:
        epoch, place = divmod(position, num_items)
        rows.append((epoch, int(epoch_order(seed, epoch, num_items)[place])))
    return rows
