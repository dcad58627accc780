"""Which transformer layers live on which pipeline stage."""

from __future__ import annotations

from collections.abc import Sequence


def stage_layers(
    num_layers: int, num_stages: int, stage: int, *, num_chunks: int = 1, chunk: int = 0, layers_of_stages: Sequence[int] | None = None
) -> range:
    """Global indices of the layers of one block of one pipeline rank.

    With several blocks (chunks) on each rank a token passes block 0 of all ranks, then block 1 of all ranks, and so on
    (Narayanan et al. 2021, section 2.2.2).

    Args:
        num_stages: pipeline ranks.
        stage: this rank's place among them.
        num_chunks, chunk: blocks on each rank, and which of them.
        layers_of_stages: layers of each block in the order that a token passes them; default: equal numbers. 0 in the first
            leaves it the embedding alone, 0 in the last the head alone, which costs as much as a layer or more where the
            vocabulary is large.

    Raises:
        ValueError: a block without a layer, equal numbers that do not exist, or numbers that do not add up.
    """
    num_blocks, block = num_stages * num_chunks, chunk * num_stages + stage
    if layers_of_stages is None:
        what = f"pipeline_parallel_size {num_stages}" + (f" x virtual_pipeline_size {num_chunks}" if num_chunks > 1 else "")
        if num_layers < num_blocks:
            raise ValueError(f"num_layers {num_layers} is less than {what}: a stage would be empty")
        if num_layers % num_blocks:
            raise ValueError(f"num_layers {num_layers} is not divisible by {what}")
        layers_of_stages = [num_layers // num_blocks] * num_blocks
    inner, ends = layers_of_stages[1:-1], (layers_of_stages[0], layers_of_stages[-1])
    if len(layers_of_stages) != num_blocks or sum(layers_of_stages) != num_layers or min(inner, default=1) < 1 or min(ends) < 0:
        raise ValueError(
            f"stage_layers {list(layers_of_stages)}: must be {num_blocks} numbers that add up to num_layers {num_layers}, "
            f"0 in the first or the last at most (embedding or head alone)"
        )
    start = sum(layers_of_stages[:block])
    return range(start, start + layers_of_stages[block])
