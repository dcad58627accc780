"""Exponential moving average of the policy's weights (Ouyang et al. 2022, appendix C.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from megagpt.checkpoint.load import Checkpoint
from megagpt.engine.build import Engine
from megagpt.engine.state import put_masters


class WeightAverage:
    """average <- decay average + (1 - decay) weights, of whatever part of the trained float32 weights this rank's optimizer keeps, and beside it: a
    share of them under ZeRO, in host memory where that is offloaded."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self.averages = [weight.clone() for weight in self._weights()]

    def update(self) -> None:
        """Take in the weights as they are; after every optimizer step."""
        torch._foreach_lerp_(self.averages, self._weights(), 1.0 - self._decay)

    def canonical_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The averages by canonical name, whole, and what is not trained as it is; as Engine.canonical_parameters, all ranks of the stage must iterate,
        to the end, and copy each tensor before the next one."""
        with self._in_place_of_the_weights():
            yield from self._engine.canonical_parameters()

    def load(self, checkpoint: Checkpoint) -> None:
        """Averages as they were saved, under whatever layout this engine has."""
        with self._in_place_of_the_weights(), checkpoint.tensors("model", merged=False) as stored:
            put_masters(self._engine, stored)

    def _weights(self) -> list[Tensor]:
        return [weight.data for weight in self._engine.masters]

    @contextlib.contextmanager
    def _in_place_of_the_weights(self) -> Iterator[None]:
        """Averages and float32 weights have changed places: whoever reads or writes the engine's weights reads or writes these."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for weight, average in zip(self._weights(), self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
