"""The tests of the kernels can fail: they, or the sanitizers, notice when a kernel is broken (tests/kernels/mutation.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.emulator.build import ROOT
from tests.kernels.mutation import EACH, all_mutants, device_lines


def run(*arguments: str, seconds: int) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tests.kernels.mutation", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def test_ten_mutants_are_caught():
    result = run("--quick", seconds=900)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_mutants_are_caught():
    result = run(seconds=7200)
    assert result.returncode == 0, result.stdout + result.stderr


def test_mutants_are_the_same_each_time_and_many():
    mutants = all_mutants()
    assert mutants == all_mutants()
    for op in {op for mutant in mutants for op in mutant.ops}:
        assert sum(mutant.file == f"{op}.cu" for mutant in mutants) == EACH, op
    assert len({mutant.rule for mutant in mutants}) > 10
    assert all(mutant.before != mutant.after for mutant in mutants)


def test_only_device_code_is_broken():
    source = "int host() { return 1 + 1; }\n__device__ int one() { return 2; }\n__global__ void f(int* a) {\n  a[0] = 1;  // + 1\n}\nint host;\n"
    assert list(device_lines(source)) == [(2, "__device__ int one() { return 2; }"), (4, "  a[0] = 1;")]
