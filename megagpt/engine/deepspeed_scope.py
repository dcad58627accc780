"""Keeps DeepSpeed's globals and world-wide calls within one model's grid.

Four models with different grids live in one job. DeepSpeed keeps the last model's `mpu` in a global, and ZeRO 3 calls a
barrier of the whole world when it is built and compares parameter order over the world at its first forward: ranks of
other grids never arrive there. Every call into DeepSpeed therefore happens inside `deepspeed_scope`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Iterator

import deepspeed
import torch.distributed as dist
from deepspeed.runtime.zero import partitioned_param_coordinator
from deepspeed.utils import groups as deepspeed_groups
from deepspeed.utils import logger as deepspeed_logger

from megagpt.parallel.groups import Groups
from megagpt.parallel.mpu import DeepSpeedMpu

SUPPORTED_VERSION = "0.19.8"


@functools.cache
def join_world() -> None:
    """Hand torch's default process group to DeepSpeed, once."""
    if deepspeed.__version__ != SUPPORTED_VERSION:
        raise RuntimeError(f"deepspeed {deepspeed.__version__}: megagpt relies on internals of {SUPPORTED_VERSION}; install that one")
    deepspeed_logger.setLevel(logging.WARNING)
    # On a CPU DeepSpeed would compile and load a shared-memory op (about 40 s, under a lock that a killed process leaves
    # behind, with a rendezvous of all ranks). Only its inference all-reduce uses it, and that is never called here.
    # (By name: the attribute `deepspeed.comm.torch` is torch itself.)
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.device_name() == "cpu":
        accelerator.is_fp16_supported = lambda: True  # torch computes in float16 on a CPU, though DeepSpeed denies it
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


@contextlib.contextmanager
def deepspeed_scope(groups: Groups, mpu: DeepSpeedMpu) -> Iterator[None]:
    """While inside, DeepSpeed sees this grid as its world."""
    join_world()
    saved_mpu, saved_barrier = deepspeed_groups.mpu, deepspeed.comm.barrier
    saved_check = partitioned_param_coordinator.assert_ints_same_as_other_ranks

    def barrier(group=None, *args, **kwargs):
        return saved_barrier(groups.whole if group is None else group, *args, **kwargs)

    deepspeed_groups.mpu = mpu
    deepspeed.comm.barrier = barrier
    # A sanity check by broadcast from world rank 0, who may not be in this grid.
    partitioned_param_coordinator.assert_ints_same_as_other_ranks = lambda ints: None
    try:
        yield
    finally:
        deepspeed_groups.mpu, deepspeed.comm.barrier = saved_mpu, saved_barrier
        partitioned_param_coordinator.assert_ints_same_as_other_ranks = saved_check
