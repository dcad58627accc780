"""Frozen weights that wait in host memory: on the device only while a forward pass needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class OffloadedWeights:
    """A model's parameters in host memory (pinned beside CUDA); the storages of its own tensors are released between its uses.

    The tensors stay the same objects, so whatever points at them goes on working. On a CPU the host's copy is a second buffer.

    Args:
        model: frozen; its weights are moved out at once.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._tensors = _distinct(model)
        self._kept = [tensor.cpu().pin_memory() if tensor.is_cuda else tensor.clone() for tensor in self._tensors]
        self._users = 0
        self._release()

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """The weights are on the device within the block; blocks may lie within each other, and the outermost one fetches."""
        if self._users == 0:
            self._fetch()
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._release()

    @property
    def host_bytes(self) -> int:
        """Of the copies in host memory."""
        return sum(tensor.nbytes for tensor in self._kept)

    def _fetch(self) -> None:
        for tensor, kept in zip(self._tensors, self._kept, strict=True):
            tensor.untyped_storage().resize_(kept.nbytes)
            tensor.copy_(kept, non_blocking=True)

    def _release(self) -> None:
        for tensor in self._tensors:
            tensor.untyped_storage().resize_(0)


def _distinct(model: torch.nn.Module) -> list[Tensor]:
    """Every parameter, once, by the memory that it has."""
    return list({parameter.data_ptr(): parameter.detach() for parameter in model.parameters()}.values())
