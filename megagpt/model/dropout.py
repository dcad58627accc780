"""Dropout whose mask is a function of (seed, step, layer, place, row of the global batch, position, feature).

Megatron-core draws from one stream on each rank, so that a change of layout changes the run. Here every row of the
global batch has a generator of its own, so any layout, microbatch order or restart gives the same masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megagpt.runtime.random import generator

EMBEDDING, ATTENTION, ATTENTION_RESIDUAL, MLP_RESIDUAL = range(4)


class DropoutState:
    """Probability and the current key; one object for each model, shared by all its dropout places."""

    def __init__(self, probability: float) -> None:
        self.probability = probability
        self._key: tuple[int, int] | None = None
        self._row_ids: list[int] = []

    def set_key(self, seed: int, step: int, row_ids: Tensor) -> None:
        """Before each microbatch: the step, and which rows of the global batch the microbatch holds ([b])."""
        self._key, self._row_ids = (seed, step), row_ids.tolist()

    def masks(self, layer: int, place: int, shape: tuple[int, ...], like: Tensor, part: int = 0) -> Tensor:
        """Scaled keep-masks [b, *shape] in the dtype of `like`; `part` tells tensor-parallel ranks apart where they hold different heads."""
        if self._key is None:
            raise RuntimeError("dropout is active but no key was set for this microbatch")
        keep = 1.0 - self.probability
        rows = [
            torch.rand(shape, generator=generator(*self._key, layer, place, row, part, device=like.device), device=like.device)
            for row in self._row_ids
        ]
        return (torch.stack(rows) < keep).to(like.dtype) / keep


class Dropout(torch.nn.Module):
    """Dropout of hidden states [s, b, h]."""

    def __init__(self, state: DropoutState, layer: int, place: int) -> None:
        super().__init__()
        self.state, self.layer, self.place = state, layer, place

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.state.probability == 0.0:
            return hidden
        length, _, width = hidden.shape
        return hidden * self.state.masks(self.layer, self.place, (length, width), hidden).transpose(0, 1)


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
