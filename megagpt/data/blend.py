"""Which source each row of a weighted blend comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BLOCK = 65_536
"""Rows after which the pattern of sources starts again; shares are whole multiples of 1 / BLOCK."""


class Blend:
    """A pattern of BLOCK rows, repeated without end: a row's source depends on neither the length of the run nor the step.

    Megatron-core's `build_blending_indices` fills the pattern: every row goes to the source that is furthest behind its
    share, so that all of them advance together and any stretch of rows has nearly the right mixture.

    Args:
        weights: of each source; only their ratios count.

    Raises:
        ValueError: a share of less than one row in the pattern.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        from megatron.core.datasets.helpers_cpp import build_blending_indices

        self.shares = np.array(weights) / max(weights)  # first by the largest: the sum of large weights may overflow
        self.shares /= self.shares.sum()
        smallest = int(self.shares.argmin())
        if self.shares[smallest] * BLOCK < 1:
            raise ValueError(f"weight {weights[smallest]:g} is {self.shares[smallest]:.1e} of all weights; the smallest share is 1 / {BLOCK:,}")
        self._sources, self._numbers = np.empty(BLOCK, np.int16), np.empty(BLOCK, np.int64)
        build_blending_indices(self._sources, self._numbers, self.shares, len(weights), BLOCK, False)
        self._counts = np.bincount(self._sources, minlength=len(weights))

    def place(self, row: int) -> tuple[int, int]:
        """(source, number of the row among that source's rows), both from 0."""
        block, place = divmod(row, BLOCK)
        source = int(self._sources[place])
        return source, block * int(self._counts[source]) + int(self._numbers[place])

    def counts(self, num_rows: int) -> list[int]:
        """How many of the first rows come from each source."""
        blocks, rest = divmod(num_rows, BLOCK)
        return (blocks * self._counts + np.bincount(self._sources[:rest], minlength=len(self._counts))).tolist()
