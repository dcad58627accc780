"""Address, undefined-behaviour and race sanitizers have nothing to say about any kernel, under any schedule (tests/emulator/cases/)."""

from __future__ import annotations

import functools
import subprocess

import pytest

from tests.emulator.build import HERE, ROOT, driver

OPS = sorted(path.stem for path in (HERE / "cases").glob("*.cpp"))
SECONDS = {"address": 60, "thread": 120}
"""For one op on a machine that is busy. An op takes 0.5 and 10 s; one that needs much more has cases that are too large."""

driver = functools.cache(driver)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("sanitizer", SECONDS)
def test_sanitizer_is_silent(sanitizer, op):
    result = subprocess.run([driver(sanitizer), op], capture_output=True, text=True, timeout=SECONDS[sanitizer])
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{op}: silent\n", ""), result.stdout + result.stderr


def test_every_kernel_file_has_cases():
    assert OPS == sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
    assert OPS == subprocess.run([driver("address")], capture_output=True, text=True, check=True).stdout.split()
