"""Sizes of DeepSpeed's buffers; no torch import, since the planner counts them too."""

REDUCE_BUCKET = 50_000_000
"""Numbers in a reduction's buffer: 200 MB in float32, enough to fill any network; DeepSpeed's default takes 2 GB of every GPU."""
