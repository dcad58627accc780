"""Process-wide state of Megatron-core that its modules ask for, in a form that any number of models can share."""

from __future__ import annotations

import contextlib
import functools

from megatron.core import parallel_state
from megatron.core.tensor_parallel import random as megatron_random


class _NoGenerators:
    """Stands in for the tracker of CUDA generators: nothing here draws from a generator's stream (`dropout.py`, `init.py`)."""

    def fork(self, name: str = "") -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


@functools.cache
def install() -> None:
    """Once for each process: the tracker's stand-in, and scratch memory in which sequence-parallel activations are gathered
    (one buffer does for all models, since it is used for a moment at a time)."""
    megatron_random._CUDA_RNG_STATE_TRACKER = _NoGenerators()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    parallel_state._set_global_memory_buffer()
