"""The emulator of tests/emulator finds what it says it finds, names it, and is silent otherwise. Its subjects are small kernels of its own."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest

from tests.emulator.build import HERE, SANITIZERS, planted

planted = functools.cache(planted)
SECONDS = 60
"""For one call, on a machine that is busy."""

# Which build must find which mistake (under "any", all three), and what its message says.
RACE, OUT_OF_BOUNDS = "ThreadSanitizer: data race", "AddressSanitizer: heap-buffer-overflow"
BUGS = {
    "missing_barrier": {"thread": RACE},
    "missing_second_barrier": {"thread": RACE},
    "missing_warp_barrier": {"thread": RACE},
    "scratch_reused": {"thread": RACE},
    "race_between_blocks": {"thread": RACE},
    "race_between_blocks_with_barriers": {"thread": RACE},
    "divergent_barrier": {"any": "divergent __syncthreads"},
    "early_return": {"any": "a thread ended while|__syncthreads after"},
    "divergent_shuffle": {"any": "a lane ended while others of its warp wait for it|names a lane that has ended"},
    "deadlock": {"any": "deadlock: 32 threads at a barrier, 32 in a warp operation"},
    "lane_outside_mask": {"any": "shuffle reads lane 16, which is not in the mask"},
    "lane_not_in_mask": {"any": "the lane is not in its own mask"},
    "shared_out_of_bounds": {"address": OUT_OF_BOUNDS},
    "dynamic_shared_out_of_bounds": {"address": OUT_OF_BOUNDS},
    "one_past_the_end": {"address": OUT_OF_BOUNDS},
    "one_before_the_start": {"address": OUT_OF_BOUNDS},
    "misaligned": {"address": "store to misaligned address"},
    "row_times_width_32_bits": {"plain": "Segmentation fault", "address": "signed integer overflow: 69999 . 40000", "thread": "SEGV"},
}
# Launches that no device takes; there is no block or thread to name yet.
LIMITS = {
    "block_of_0": "nothing: a block of 0 threads; it must be 1 to 1024",
    "block_of_1025": "nothing: a block of 1025 threads; it must be 1 to 1024",
    "block_of_65_along_z": "nothing: a block of 65 threads; .* at most 64 of them along z",
    "grid_of_0": "nothing: a grid of 0 blocks is outside the limits",
    "grid_too_high": "nothing: a grid of 65536 blocks is outside the limits",
    "too_much_shared": "nothing: 166913 bytes of shared memory; at most 166912",
    "too_much_shared_in_all": "too_many_shared_arrays: 226304 bytes of shared memory; at most 166912",
    "shared_not_asked_for": "shared_beside_dynamic: 49156 bytes of shared memory, and the launch did not ask for more than 49152",
}
CASES = [(bug, build, message) for bug, found in BUGS.items() for key, message in found.items() for build in (SANITIZERS if key == "any" else [key])]


@functools.cache
def names() -> list[str]:
    return subprocess.run([planted("plain")], capture_output=True, text=True, check=True).stdout.split()


def run(build: str, name: str, *schedules: int) -> subprocess.CompletedProcess:
    return subprocess.run([planted(build), name, *map(str, schedules)], capture_output=True, text=True, timeout=SECONDS)


def lines_of(bug: str) -> set[int]:
    """Where bugs.cu has it."""
    text = (HERE / "planted/bugs.cu").read_text().splitlines()
    return {number for number, line in enumerate(text, 1) if re.search(rf"BUG {bug}\b", line)}


def names_line(bug: str, said: str) -> bool:
    return not lines_of(bug).isdisjoint(int(number) for number in re.findall(r"bugs\.cu:(\d+)", said))


@pytest.mark.parametrize("bug, build, message", CASES)
def test_planted_bug_is_found(bug, build, message):
    result = run(build, bug)
    said = result.stdout + result.stderr
    assert result.returncode != 0 and re.search(message, said), said
    assert re.search(rf"\b{bug}\b.*block \(\d+,\d+,\d+\) thread \d+", said), said
    if build != "plain" or message != "Segmentation fault":  # a crash without a sanitizer has no line to name
        assert names_line(bug, said), said


@pytest.mark.parametrize("schedule", [1, 2])
@pytest.mark.parametrize("bug", [bug for bug, found in BUGS.items() if found.get("thread") == RACE])
def test_race_is_found_whatever_the_schedule(bug, schedule):
    said = run("thread", bug, schedule).stderr
    assert RACE in said and names_line(bug, said), said


@pytest.mark.parametrize("limit", LIMITS)
def test_launch_beyond_the_limits(limit):
    result = run("plain", limit)
    assert result.returncode == 1 and re.search(LIMITS[limit], result.stderr) and names_line(limit, result.stderr), result.stderr


@pytest.mark.parametrize("build", SANITIZERS)
def test_unset_shared_memory_is_nan(build):
    assert run(build, "unset_shared", 0).stderr == "unset_shared: NaN\n"


@pytest.mark.parametrize("build", SANITIZERS)
def test_correct_programs_are_right_and_silent(build):
    correct = [name for name in names() if name.startswith("correct_")]
    assert len(correct) >= 7
    for name in correct:
        result = run(build, name)  # under all four schedules
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}: silent\n", ""), result.stdout + result.stderr


def test_every_planted_case_is_tested():
    planned = {*BUGS, *LIMITS, "unset_shared"}
    assert planned == {name for name in names() if not name.startswith("correct_")}


def test_kernels_use_nothing_that_the_emulator_lacks():
    """PTX, asynchronous copies, code for one architecture and cooperative groups would never run here."""
    for path in sorted(Path(HERE.parents[1] / "csrc/cuda").glob("*.cu*")):
        text = re.sub(r"//.*", "", path.read_text())
        assert not re.search(r"\basm\b|cp_async|__CUDA_ARCH__|cooperative_groups|__pipeline|\bwmma\b", text), path
