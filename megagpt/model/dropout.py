"""Dropout whose mask is a function of (seed, step, layer, place, row of the global batch, position, feature).

Megatron-core draws from one stream on each rank, so that a change of layout changes the run. Here every row of the
global batch has a generator of its own, so any layout, microbatch order or restart gives the same masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megagpt.model.forward_pass import CurrentPass
from megagpt.runtime.random import generator

EMBEDDING, ATTENTION, ATTENTION_RESIDUAL, MLP_RESIDUAL = range(4)


class DropoutState:
    """Probability, the current pass, and which part of a row's tokens this rank holds; shared by all dropout places of a model.

    Args:
        shard: (place, number): this rank holds the hidden states of the place-th of `number` equal parts of every row
            (context and sequence parallelism).
    """

    def __init__(self, probability: float, current: CurrentPass, shard: tuple[int, int] = (0, 1)) -> None:
        self.probability, self.current, self.shard = probability, current, shard

    @property
    def active(self) -> bool:
        return self.probability > 0.0 and self.current.value.dropout_key is not None

    def masks(self, layer: int, place: int, shape: tuple[int, ...], like: Tensor, part: int = 0) -> Tensor:
        """Scaled keep-masks [b, *shape] in the dtype of `like`; `part` tells tensor-parallel ranks apart where they hold different heads."""
        now, keep = self.current.value, 1.0 - self.probability
        rows = [
            torch.rand(shape, generator=generator(*now.dropout_key, layer, place, row, part, device=like.device), device=like.device)
            for row in now.row_ids
        ]
        return (torch.stack(rows) < keep).to(like.dtype) / keep


class Dropout(torch.nn.Module):
    """Dropout of hidden states [s, b, h]."""

    def __init__(self, state: DropoutState, layer: int, place: int) -> None:
        super().__init__()
        self.state, self.layer, self.place = state, layer, place

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.state.active:
            return hidden
        place, number = self.state.shard
        length, _, width = hidden.shape
        # The masks of whole rows, so that they do not depend on how ranks share the rows.
        masks = self.state.masks(self.layer, self.place, (length * number, width), hidden)[:, place * length : (place + 1) * length]
        return hidden * masks.transpose(0, 1)


class BiasDropoutAdd(torch.nn.Module):
    """residual + dropout(x + bias), in the calling form of Megatron-core's `bda` submodules."""

    def __init__(self, state: DropoutState, layer: int, place: int) -> None:
        super().__init__()
        self.dropout = Dropout(state, layer, place)

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        def add(output_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, probability: float) -> Tensor:
            output, bias = output_and_bias
            return residual + self.dropout(output if bias is None else output + bias)

        return add
