"""Bytes that tensors take: those that are there, and the peak of what comes and goes within a block."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch._C._profiler import RecordScope, _EventType, _ExperimentalConfig, _ProfilerEvent
from torch.autograd import ProfilerConfig, ProfilerState, _disable_profiler, _enable_profiler, _prepare_profiler
from torch.profiler import ProfilerActivity

QUIET = "6"
"""Kineto's log level above its announcement of each start and stop."""


def storage_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Of the memory behind them, once where several share it."""
    storages = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


@dataclass
class Peak:
    """What a block took at its most, beyond what was there when it began; known behind the block."""

    num_bytes: int = 0


@contextlib.contextmanager
def measured_peak(device: torch.device) -> Iterator[Peak]:
    """Most bytes of tensors that were allocated within the block and lived at the same time.

    On CUDA by the statistics of its allocator, at no cost. On a CPU by PyTorch's profiler, which writes down each allocation and release, some 15
    microseconds each: for one round, not for all. (`torch.profiler.profile` would write down the operations as well.)
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.num_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", QUIET)
    activities, settings = {ProfilerActivity.CPU}, ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig())
    with _counted_in_all_threads():
        _prepare_profiler(settings, activities)
        _enable_profiler(settings, activities, {RecordScope.USER_SCOPE})
        try:
            torch.empty(1)  # the first entry tells the count at the start
            yield found
        finally:
            record = _disable_profiler()
    totals = _totals(record.experimental_event_tree())
    found.num_bytes = max(totals) - totals[0]


@contextlib.contextmanager
def _counted_in_all_threads() -> Iterator[None]:
    """PyTorch counts what every thread allocates and releases. By itself the profiler does so for its own one, and a communication thread may be
    the last to let go of a tensor."""
    switch = ctypes.c_bool.in_dll(ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so")), "FLAGS_caffe2_report_cpu_memory_usage")
    switch.value = True
    try:
        yield
    finally:
        switch.value = False


def _totals(events: list[_ProfilerEvent]) -> list[int]:
    """Bytes that are there after each allocation and release that the profiler wrote down, in order."""
    found, waiting = [], list(events)
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.total_allocated))
    return [total for _, total in sorted(found, key=lambda each: each[0])]
