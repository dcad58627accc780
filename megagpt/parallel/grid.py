"""Arithmetic of one model's block of ranks: rank <-> (tp, cp, dp, pp). Pure Python, no torch.

The tensor-parallel coordinate changes fastest, so that the ranks that talk most sit on one machine; the pipeline
coordinate changes slowest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

AXES = ("tp", "cp", "dp", "pp")


@dataclass(frozen=True)
class Coordinates:
    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Grid:
    """tp x cp x dp x pp ranks that start at rank `offset` of the world."""

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    offset: int = 0

    @property
    def size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def shape(self) -> list[int]:
        """Sizes in the order of AXES."""
        return [self.tp, self.cp, self.dp, self.pp]

    @property
    def ranks(self) -> range:
        """World ranks of this grid."""
        return range(self.offset, self.offset + self.size)

    def __contains__(self, rank: int) -> bool:
        return rank in self.ranks

    def coordinates(self, rank: int) -> Coordinates:
        """Place of a world rank; raises ValueError for a rank outside."""
        if rank not in self:
            raise ValueError(f"rank {rank} is not in the grid's ranks {self.ranks.start}..{self.ranks.stop - 1}")
        index, place = rank - self.offset, {}
        for axis, size in zip(AXES, self.shape):
            index, place[axis] = divmod(index, size)
        return Coordinates(**place)

    def rank(self, tp: int = 0, cp: int = 0, dp: int = 0, pp: int = 0) -> int:
        """World rank at these coordinates."""
        return self.offset + tp + self.tp * (cp + self.cp * (dp + self.dp * pp))

    def peers(self, *axes: str) -> list[list[int]]:
        """All groups of world ranks that differ only in `axes`, each in ascending order."""
        fixed = [axis for axis in AXES if axis not in axes]
        groups = []
        for place in itertools.product(*(range(getattr(self, axis)) for axis in fixed)):
            at = dict(zip(fixed, place))
            groups.append(sorted(
                self.rank(**at, **dict(zip(axes, where)))
                for where in itertools.product(*(range(getattr(self, axis)) for axis in axes))
            ))
        return sorted(groups)

    def leader(self, dp: int, pp: int | None = None) -> int:
        """The rank that speaks for a replica: tensor rank 0 of its last stage (where logits and values appear)."""
        return self.rank(dp=dp, pp=self.pp - 1 if pp is None else pp)

    def __str__(self) -> str:
        cp = f"cp {self.cp} x " if self.cp > 1 else ""
        return f"tp {self.tp} x {cp}dp {self.dp} x pp {self.pp} on ranks {self.ranks.start}-{self.ranks.stop - 1}"
