"""Canonical tensors of a sharded model, put together again for a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from megagpt.engine.build import Engine


def held_here(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """On each rank: copies of `Engine.canonical_gradients()` or `canonical_parameters()`, which an optimizer step would change."""
    return {name: tensor.detach().clone() for name, tensor in pairs}


def with_gradients(engine: Engine) -> dict[str, Tensor]:
    """What the engine's next step finds, before it clips: filled in when `step` is called."""
    found, step = {}, engine.step

    def look_then_step(lr: float) -> float:
        found.update(held_here(engine.canonical_gradients()))
        return step(lr)

    engine.step = look_then_step
    return found


def merge_ranks(per_rank: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """In pytest: what `held_here` returned on the ranks of one grid -> the tensors of all stages.

    Every rank of a stage has gathered the whole stage; ranks that hold the same tensor must hold the same bits.
    """
    merged: dict[str, Tensor] = {}
    for rank, held in enumerate(per_rank):
        for name, tensor in held.items():
            assert torch.equal(merged.setdefault(name, tensor), tensor), f"{name}: rank {rank} holds other numbers than a rank before it"
    return merged
