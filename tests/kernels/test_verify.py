"""csrc/verify.sh passes for the kernels as they are, and fails, with kernel and figure, where a ceiling is lower than what they need."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml

from tests.emulator.build import ROOT

SECONDS = 600
"""The first run compiles every kernel for two architectures, some 5 s each."""


def verify(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / "csrc/verify.sh", *arguments], capture_output=True, text=True, timeout=SECONDS, env=os.environ | environment)


def test_kernels_are_within_their_ceilings():
    result = verify()
    assert result.returncode == 0, "\n".join(line for line in result.stdout.splitlines() if line.startswith("CEILING")) + result.stderr
    assert "norm_forward_kernel<__nv_bfloat16, 8, true>" in result.stdout and "kernels within their ceilings" in result.stdout


def test_ceilings_that_are_too_low_are_named(tmp_path):
    ceilings = yaml.safe_load((ROOT / "csrc/ceilings.yaml").read_text())
    ceilings["every"] |= {"registers": 31, "occupancy": 76, "narrow": 1, "wide_stores": 8, "traffic": 0.9}
    ceilings["exceptions"] = []
    (tmp_path / "ceilings.yaml").write_text(yaml.safe_dump(ceilings))
    result = verify("--op", "norm", "--ceilings", str(tmp_path / "ceilings.yaml"))
    said = [line.removeprefix("CEILING ") for line in result.stdout.splitlines() if line.startswith("CEILING")]
    assert result.returncode == 1, result.stdout + result.stderr
    for part in (
        "norm_forward_kernel<float, 4, true> on sm_90: registers ",
        "norm_backward_kernel<__half, 8, (Keep)0> on sm_80: occupancy 50 %, at least 76 %",
        "norm_forward_kernel<__half, 8, true> on sm_90: narrow 2, at most 1",
        "norm_forward_kernel<__half, 8, true> on sm_90: wide_stores 7, at least 8",
        "norm in float: moves 1.000 times the fewest bytes, at most 0.9",
    ):
        assert any(line.startswith(part) for line in said), f"{part!r} is not among\n" + "\n".join(said)
    assert not any("norm_forward_kernel<float, 1, true>" in line and "wide" in line for line in said)  # scalar variants are exempt


@pytest.mark.parametrize(
    "change, message",
    [
        ({"every": {"registers": 64}}, "it must hold 'every' with"),
        ({"exceptions": [{"kernel": "norm*", "registers": 80}]}, "ceilings and a reason"),
        ({"exceptions": [{"kernel": "norm*", "register": 80, "reason": "none"}]}, "ceilings and a reason"),
    ],
)
def test_ceilings_that_make_no_sense_are_refused(tmp_path, change, message):
    from csrc.verify.report import read_ceilings

    (tmp_path / "ceilings.yaml").write_text(yaml.safe_dump(yaml.safe_load((ROOT / "csrc/ceilings.yaml").read_text()) | change))
    with pytest.raises(SystemExit, match=message):
        read_ceilings(tmp_path / "ceilings.yaml")


def test_device_run_says_that_there_is_no_gpu():
    result = verify("--device", CUDA_VISIBLE_DEVICES="")
    assert (result.returncode, result.stdout.count("\n")) == (77, 1) and "no GPU here" in result.stdout
