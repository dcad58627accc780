"""The operators that csrc/ builds: the library they are taken from, what they return for tensors without data, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from megagpt.kernels import select


@dataclass(frozen=True)
class Operator:
    """What Python adds to an operator.

    name            as in csrc/bindings.cpp
    fake            same arguments -> empty tensors of the right shape, dtype, strides and device
    setup_context   (ctx, inputs, output): keeps what `backward` needs; None for an operator without a gradient
    backward        (ctx, *gradients of the outputs) -> gradients of the inputs
    """

    name: str
    fake: Callable
    setup_context: Callable | None = None
    backward: Callable | None = None

    def add_to(self, library: str) -> None:
        name = f"{library}::{self.name}"
        torch.library.register_fake(name, self.fake)
        if torch._C._get_schema(name, "").is_mutable:
            return  # torch takes no gradient for what works in place; it is called under no_grad
        # Without a gradient of its own an operator would let gradients vanish: one of a backward operator is asked for by second derivatives.
        torch.library.register_autograd(name, self.backward or self._refuse, setup_context=self.setup_context)

    def _refuse(self, *_):
        raise NotImplementedError(f"{self.name} has no gradient; implementation='reference' can be differentiated any number of times")


_operators: list[Operator] = []


def register(name: str, fake: Callable, setup_context: Callable | None = None, backward: Callable | None = None) -> None:
    """Declare an operator; each kernels/<op>.py does so for its own, once."""
    _operators.append(Operator(name, fake, setup_context, backward))
    if select.extension_missing() is None:
        _operators[-1].add_to(select.library)


def adopt(library: str) -> None:
    """Give another library with the same operators all that was declared; the tests' emulated kernels are one."""
    for operator in _operators:
        operator.add_to(library)


def call(name: str, *arguments):
    """Call an operator of the library in use."""
    return getattr(getattr(torch.ops, select.library), name)(*arguments)
