"""What the tests of every kernel share: the emulated CUDA kernels beside the ones that run here, error budgets, widths, schedules.

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_…(kernels, dtype):                       # `kernels`: "fused", then "emulated" (tests/kernels/conftest.py)
        assert_within_budget(ours, plain, exact)      # three dicts of the same names: fused, reference, reference in float64
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from megagpt.kernels import operators, select
from tests.emulator.build import build

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (1, 31, 33, 1000, 1024, 50257)
"""One column, around one vector load, ragged and not for 16 bytes, many, the GPT-2 vocabulary."""
VERY_WIDE = 151936
"""The vocabulary of Qwen 2; once for each op."""
SCHEDULES = (0, 1, 2, 3)
"""Orders of the emulated threads: ascending, descending, two random ones."""
EMULATED = "megagpt_emulated"

ERROR_FACTOR = 2.0
"""A kernel may be this much worse than plain PyTorch on the same input in the same type, both measured against float64 …"""
ERROR_FLOOR = {torch.float64: 1e-14, torch.float32: 8 * 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""… or wrong by this share of the tensor's largest value, and of 1, the order of the inputs, whose terms may cancel: some roundings of
float32, or the one rounding to a 16-bit type."""


@functools.cache
def emulator() -> ctypes.CDLL:
    """The library of the emulated kernels, built if need be and known to torch."""
    path = str(build())
    torch.ops.load_library(path)
    operators.adopt(EMULATED)
    library = ctypes.CDLL(path)
    library.simt_configure.argtypes = [ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64]
    for name in ("simt_loaded", "simt_stored", "simt_launches"):
        getattr(library, name).restype = ctypes.c_uint64
    library.simt_geometry.restype = ctypes.c_char_p
    return library


@contextlib.contextmanager
def emulated(schedule: int = 0, only_block: int | None = None) -> Iterator[None]:
    """Within the block every fused op runs its CUDA kernels on the emulator.

    Args:
        schedule: one of SCHEDULES.
        only_block: the one block that runs, for tensors too large for all.
    """
    first, last = (0, 2**64 - 1) if only_block is None else (only_block, only_block)
    emulator().simt_configure(schedule, first, last)
    before, select.library = select.library, EMULATED
    try:
        yield
    finally:
        select.library = before
        emulator().simt_configure(0, 0, 2**64 - 1)


def bytes_moved(work: Callable[[], object]) -> int:
    """Bytes that emulated kernels loaded from and stored to global memory; what all rows share is not counted."""
    library = emulator()
    library.simt_reset_counters()
    with emulated():
        work()
    return library.simt_loaded() + library.simt_stored()


def geometry() -> dict[str, tuple[int, int]]:
    """Kernel -> most threads of a block and most bytes of dynamic shared memory, since bytes_moved() began."""
    lines = emulator().simt_geometry().decode().splitlines()
    return {name: (int(threads), int(dynamic)) for name, threads, dynamic in (line.split("\t") for line in lines)}


def largest_error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute difference; NaN and infinity count as equal to themselves only."""
    assert actual.shape == exact.shape, f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    if actual.numel() == 0:
        return 0.0
    actual, exact = actual.double(), exact.double()
    same = (actual == exact) | (actual.isnan() & exact.isnan())
    error = torch.where(same, 0.0, (actual - exact).abs())
    return error.nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()


def assert_within_budget(ours: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """Each tensor of `ours` is at most ERROR_FACTOR times as far from `exact` as that of `plain`, or within ERROR_FLOOR."""
    assert ours.keys() == plain.keys() == exact.keys()
    for name, expected in exact.items():
        actual, eager = ours[name], plain[name]
        assert actual.dtype == eager.dtype, f"{name} is {actual.dtype}, plain {eager.dtype}"
        finite = expected.double()[expected.isfinite()]
        floor = ERROR_FLOOR[actual.dtype] * max(1.0, finite.abs().max().item() if finite.numel() else 0.0)
        error, budget = largest_error(actual, expected), ERROR_FACTOR * largest_error(eager, expected) + floor
        assert error <= budget, f"{name}: wrong by {error:.3g}, the budget is {budget:.3g}"


def assert_same_bits_for_any_number_of_threads(run: Callable[[], Mapping[str, Tensor]]) -> None:
    """What the CPU's kernels make does not depend on how the work was shared."""
    threads = torch.get_num_threads()
    try:
        _assert_same_bits([torch.set_num_threads(number) or run() for number in (1, 2, 2, 3)])
    finally:
        torch.set_num_threads(threads)


def assert_same_bits_under_any_schedule(run: Callable[[], Mapping[str, Tensor]]) -> None:
    """What the emulated kernels make does not depend on the order in which threads run."""
    results = []
    for schedule in SCHEDULES:
        with emulated(schedule):
            results.append(run())
    _assert_same_bits(results)


def _assert_same_bits(results: Sequence[Mapping[str, Tensor]]) -> None:
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for name, tensor in results[0].items():
            assert torch.equal(result[name], tensor), name


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, no two of which lie side by side."""
    return torch.stack((tensor, torch.zeros_like(tensor)), dim=-1)[..., 0]
