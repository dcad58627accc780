"""Stand-ins that let Megatron-core and DeepSpeed run on a machine without CUDA. Nothing else imports these tricks.

Megatron-core asks for `torch.cuda.current_device()`, moves tensors with `.cuda()` and writes `device="cuda"` literals
inside its pipeline schedules. Each of these gets the CPU's answer here; on a machine with CUDA nothing is touched.
"""

from __future__ import annotations

import contextlib
import functools

import torch
from torch.overrides import TorchFunctionMode


@functools.cache
def install() -> None:
    """Put the stand-ins in place, once for each process; without effect where CUDA is available."""
    if torch.cuda.is_available():
        return
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.Tensor.cuda = lambda self, *args, **kwargs: self


class _CudaLiteralsOnCpu(TorchFunctionMode):
    """Rewrites `device="cuda"` keywords of torch calls to the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs = {**kwargs, "device": "cpu"}
        return function(*args, **kwargs)


def schedule_scope() -> contextlib.AbstractContextManager:
    """The scope for a call of a Megatron-core schedule; kept that narrow since the mode slows every torch call in it."""
    return contextlib.nullcontext() if torch.cuda.is_available() else _CudaLiteralsOnCpu()


def model_scope() -> contextlib.AbstractContextManager:
    """The scope, within such a call, for the model's own forward pass, which has no such literals."""
    return contextlib.nullcontext() if torch.cuda.is_available() else torch._C.DisableTorchFunction()
