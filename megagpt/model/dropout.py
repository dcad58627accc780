"""Dropout whose mask is a function of (seed, step, layer, place, row of the global batch, position, feature).

Megatron-core draws from one stream on each rank, so that a change of layout changes the run. Here every element of every
row of the global batch has a number of its own (`kernels/bias_dropout_add.py`), so any layout, microbatch order or restart
gives the same masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megagpt.kernels.bias_dropout_add import bias_dropout_add, dropout_key, dropout_mask
from megagpt.model.forward_pass import CurrentPass

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

    def key(self, layer: int, place: int) -> int:
        """What the masks of this place are drawn from in this step."""
        return dropout_key(*self.current.value.dropout_key, layer, place)

    def row_ids(self, device: torch.device) -> Tensor:
        """[b]"""
        return torch.tensor(self.current.value.row_ids, dtype=torch.int64, device=device)

    def masks(self, layer: int, place: int, shape: tuple[int, ...], like: Tensor, part: int = 0) -> Tensor:
        """Scaled masks [b, *shape] in the dtype and on the device of `like`, of the part-th such block of each row's elements."""
        count = torch.Size(shape).numel()
        masks = dropout_mask(self.probability, self.key(layer, place), self.row_ids(like.device), count, part * count, dtype=like.dtype)
        return masks.view(-1, *shape)


class Dropout(torch.nn.Module):
    """Dropout of hidden states [s, b, h]."""

    def __init__(self, state: DropoutState, layer: int, place: int) -> None:
        super().__init__()
        self.state, self.layer, self.place = state, layer, place

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.state.active:
            return hidden
        length, _, width = hidden.shape
        return hidden * self.state.masks(self.layer, self.place, (length, width), hidden, self.state.shard[0]).transpose(0, 1)


class BiasDropoutAdd(torch.nn.Module):
    """residual + dropout(x + bias), in the calling form of Megatron-core's `bda` submodules."""

    def __init__(self, state: DropoutState, layer: int, place: int) -> None:
        super().__init__()
        self.state, self.layer, self.place = state, layer, place

    def forward(self, training: bool, fused: bool) -> Callable[[tuple[Tensor, Tensor | None], Tensor, float], Tensor]:
        def add(output_and_bias: tuple[Tensor, Tensor | None], residual: Tensor, probability: float) -> Tensor:
            output, bias = output_and_bias
            state, length = self.state, residual.size(0)
            if not training or not state.active:
                nobody = torch.zeros(residual.size(1), dtype=torch.int64, device=residual.device)
                return bias_dropout_add(output, bias, residual, 0.0, 0, nobody)
            rows, first = state.row_ids(residual.device), state.shard[0] * length
            return bias_dropout_add(output, bias, residual, state.probability, state.key(self.layer, self.place), rows, first)

        return add
