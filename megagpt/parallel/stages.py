"""Which transformer layers live on which pipeline stage."""

from __future__ import annotations


def stage_layers(num_layers: int, num_stages: int, stage: int) -> range:
    """Global indices of the layers of `stage`; every stage holds the same number.

    Raises:
        ValueError: fewer layers than stages, or a number of layers that the stages do not divide.
    """
    if num_layers < num_stages:
        raise ValueError(f"num_layers {num_layers} is less than pipeline_parallel_size {num_stages}: a stage would be empty")
    if num_layers % num_stages:
        raise ValueError(f"num_layers {num_layers} is not divisible by pipeline_parallel_size {num_stages}")
    each = num_layers // num_stages
    return range(stage * each, (stage + 1) * each)
