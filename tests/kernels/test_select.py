"""Which kernel runs: the setting, the fallback and what is said about it; and that every op stands in all of its places."""

import logging
from pathlib import Path

import pytest
import torch

from megagpt.kernels import reference, select

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def auto_again():
    yield
    select.set_kernels("auto")


@pytest.fixture
def no_extension(monkeypatch):
    monkeypatch.setattr(select, "extension_missing", lambda: "not built")
    select._warn_once.cache_clear()


def test_auto_takes_the_fused_kernel_where_it_runs():
    assert select.choose("token_logprob", torch.zeros(1)) == "fused"
    assert select.choose("token_logprob", torch.zeros(1, dtype=torch.float64)) == "reference"
    assert select.choose("token_logprob", torch.zeros(1, device="meta")) == "fused"  # shapes only


def test_setting_and_argument():
    select.set_kernels("reference")
    assert select.choose("token_logprob", torch.zeros(1)) == "reference"
    assert select.choose("token_logprob", torch.zeros(1), "fused") == "fused"
    select.set_kernels("fused")
    assert select.choose("token_logprob", torch.zeros(1), "reference") == "reference"
    with pytest.raises(RuntimeError, match="token_logprob: the fused kernel was asked for, but it does not take torch.float64"):
        select.choose("token_logprob", torch.zeros(1, dtype=torch.float64))


def test_unknown_choice():
    with pytest.raises(ValueError, match="set_kernels: implementation is 'fast'; it must be one of auto, fused, reference"):
        select.set_kernels("fast")
    with pytest.raises(ValueError, match="token_logprob: implementation is 'fast'"):
        select.choose("token_logprob", torch.zeros(1), "fast")


def test_missing_extension_is_said_once(no_extension, caplog):
    with caplog.at_level(logging.WARNING):
        assert [select.choose("token_logprob", torch.zeros(1)) for _ in range(3)] == ["reference"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "kernels run as plain PyTorch, since megagpt._C is not there (not built); build it with: bash launch/setup.sh"
    ]
    with pytest.raises(RuntimeError, match=r"megagpt._C is not there \(not built\)"):
        select.choose("token_logprob", torch.zeros(1), "fused")


def test_describe(no_extension):
    assert select.describe("cpu") == ["token_logprob on cpu: reference (megagpt._C is not there (not built))"]
    select.set_kernels("fused")
    assert select.describe("cpu") == ["token_logprob on cpu: an error (megagpt._C is not there (not built))"]


def test_describe_where_built():
    assert select.describe("cpu") == ["token_logprob on cpu: fused"]
    select.set_kernels("reference")
    assert select.describe("cpu") == ["token_logprob on cpu: reference (as set by set_kernels)"]


@pytest.mark.parametrize("op", select.OPS)
def test_every_op_stands_in_all_of_its_places(op):
    for place in (f"csrc/cpu/{op}.cpp", f"megagpt/kernels/{op}.py", f"tests/kernels/test_{op}.py"):
        assert (ROOT / place).is_file(), place
    schema = select.OPS[op].removeprefix("megagpt::")
    assert f'm.def("{schema}(' in (ROOT / "csrc/bindings.cpp").read_text()
    assert callable(getattr(reference, op))
