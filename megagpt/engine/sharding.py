"""What ZeRO does for us, as numbers; no torch import, since the planner counts with them too."""

from __future__ import annotations

from megagpt.parallel.grid import Grid

REDUCE_BUCKET = 50_000_000
"""Numbers in a reduction's buffer at most: 200 MB in float32, enough to fill any network; DeepSpeed's default takes 2 GB of every GPU."""


def reduce_bucket(num_parameters: int) -> int:
    """Numbers in the reduction's buffer of a rank that holds so many."""
    return min(REDUCE_BUCKET, num_parameters)


def useful_zero_stage(zero_stage: int, grid: Grid, dtype: str = "fp32", offload: str = "none") -> int:
    """0 where ZeRO has nothing to do: one replica, float32 weights that are their own masters, nothing to offload.

    It would keep a second copy of the weights and copy every gradient into it: 4 % of a small model's step.
    """
    return 0 if grid.dp * grid.cp == 1 and dtype == "fp32" and offload == "none" else zero_stage
