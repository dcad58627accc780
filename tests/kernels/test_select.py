"""Which kernel runs: the setting, the fallback and what is said about it; and that every op stands in all of its places."""

import logging
from pathlib import Path

import pytest
import torch

from megagpt.kernels import reference, select, token_logprob  # noqa: F401  the last registers its shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def auto_again():
    yield
    select.set_kernels("auto")


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(select, "extension_missing", lambda: "megagpt._C is not there (not built)")
    select._warn_once.cache_clear()


def test_auto_takes_the_fused_kernel_where_it_runs():
    assert select.choose("token_logprob", torch.zeros(1)) == "fused"
    assert select.choose("token_logprob", torch.zeros(1, dtype=torch.float64)) == "reference"
    assert select.choose("token_logprob", torch.zeros(1, device="meta")) == "fused"  # shapes only
    assert select.choose("gae", torch.zeros(1, dtype=torch.bfloat16)) == "reference"


def test_auto_leaves_to_pytorch_what_it_does_as_fast():
    for op, device in select.SLOWER:
        tensor = torch.zeros(1, device=device)
        assert (select.choose(op, tensor), select.choose(op, tensor, "fused")) == ("reference", "fused")


def test_setting_and_argument():
    select.set_kernels("reference")
    assert select.choose("token_logprob", torch.zeros(1)) == "reference"
    assert select.choose("token_logprob", torch.zeros(1), "fused") == "fused"
    select.set_kernels("fused")
    assert select.choose("token_logprob", torch.zeros(1), "reference") == "reference"
    assert select.choose("layer_norm", torch.zeros(1)) == "fused"
    with pytest.raises(RuntimeError, match="token_logprob: the fused kernel was asked for, but it does not take torch.float64"):
        select.choose("token_logprob", torch.zeros(1, dtype=torch.float64))


def test_unknown_choice():
    with pytest.raises(ValueError, match="set_kernels: implementation is 'fast'; it must be one of auto, fused, reference, apex"):
        select.set_kernels("fast")
    with pytest.raises(ValueError, match="token_logprob: implementation is 'fast'"):
        select.choose("token_logprob", torch.zeros(1), "fast")


def test_missing_extension_is_said_once(no_extension, caplog):
    with caplog.at_level(logging.WARNING):
        assert [select.choose("token_logprob", torch.zeros(1)) for _ in range(3)] == ["reference"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "kernels run as plain PyTorch: megagpt._C is not there (not built); build it with: bash launch/setup.sh"
    ]
    with pytest.raises(RuntimeError, match=r"token_logprob: the fused kernel was asked for, but megagpt._C is not there \(not built\)"):
        select.choose("token_logprob", torch.zeros(1), "fused")


def test_missing_extension_that_is_asked_for_is_one_line(no_extension):
    with pytest.raises(select.KernelError, match=r"kernels = fused: megagpt._C is not there \(not built\); take auto"):
        select.set_kernels("fused")


def test_describe_groups_the_ops_by_what_runs():
    lines = select.describe("cpu")
    assert lines[-2:] == ["not used: NVIDIA's apex (no GPU)", "not used: flash-attention (no GPU)"]
    assert any(line.startswith("fused: rms_norm, token_logprob") for line in lines)
    assert "PyTorch (as fast): layer_norm" in lines
    select.set_kernels("reference")
    assert select.describe("cpu")[0] == f"PyTorch (kernels = reference): {', '.join(select.OPS)}"


def test_describe_without_the_extension(no_extension):
    assert select.describe("cpu")[0].startswith("PyTorch (megagpt._C is not there (not built)): layer_norm")


FILES = {"layer_norm": "norm", "rms_norm": "norm", "ppo_policy_loss": "ppo_loss", "ppo_value_loss": "ppo_loss"}
"""Ops that share the files of another name."""
ON_CPU_ALONE = ("few_row_linear",)
"""Ops without a CUDA kernel."""


@pytest.mark.parametrize("op", select.OPS)
def test_every_op_stands_in_all_of_its_places(op):
    file = FILES.get(op, op)
    places = [f"csrc/ops/{file}.h", f"csrc/ops/{file}.cpp", f"csrc/cpu/{file}.cpp", f"megagpt/kernels/{file}.py", f"tests/kernels/test_{file}.py"]
    if op not in ON_CPU_ALONE:
        places += [f"csrc/cuda/{file}.cu", f"tests/emulator/cases/{file}.cpp"]
    for place in places:
        assert (ROOT / place).is_file(), place
    assert f'm.def("{select.OPS[op]}(' in (ROOT / f"csrc/ops/{file}.cpp").read_text().replace("m.def(\n      ", "m.def(")
    assert callable(getattr(reference, {"token_logprob": "token_statistics"}.get(op, op)))
