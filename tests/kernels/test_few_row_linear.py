"""few_row_linear: the kernel for the CPU against float64; what it leaves to PyTorch."""

from __future__ import annotations

import pytest
import torch

from megagpt.kernels import few_row_linear as module
from megagpt.kernels.few_row_linear import few_row_linear
from tests.helpers.kernels import assert_same_bits_for_any_number_of_threads, assert_within_budget, strided

SIZES = [(1, 1), (7, 3), (8, 16), (50, 31), (256, 256), (300, 1024), (8193, 33)]
"""(outputs, inputs): fewer than a tile of outputs, tiles and a rest, rows of weights that lie 4 KiB apart."""


def example(rows: int, outputs: int, inputs: int, *, bias: bool = True) -> list[torch.Tensor | None]:
    return [torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs) if bias else None]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
@pytest.mark.parametrize("rows", [0, 1, 5, 8, 16, 17, 40])
def test_fused_few_row_linear_within_error_budget(rows, outputs, inputs, bias):
    case = example(rows, outputs, inputs, bias=bias)
    exact = few_row_linear(*(part if part is None else part.double() for part in case), implementation="reference")
    plain, ours = (few_row_linear(*case, implementation=choice) for choice in ("reference", "fused"))
    assert_within_budget({"y": ours}, {"y": plain}, {"y": exact})


def test_few_row_linear_does_not_depend_on_threads_or_on_other_rows():
    x, weight, bias = example(16, 500, 256)
    assert_same_bits_for_any_number_of_threads(lambda: {"y": few_row_linear(x, weight, bias, implementation="fused")})
    whole = few_row_linear(x, weight, bias, implementation="fused")
    for row in (0, 7, 15):
        assert torch.equal(few_row_linear(x[row : row + 1], weight, bias, implementation="fused")[0], whole[row])


def test_few_row_linear_takes_strided_tensors():
    case = example(16, 40, 32)
    expected = few_row_linear(*case, implementation="fused")
    assert torch.equal(few_row_linear(*map(strided, case), implementation="fused"), expected)


def test_few_row_linear_leaves_other_work_to_pytorch(monkeypatch):
    """Other numbers of rows, other types, and what needs a gradient; even where all kernels shall be fused."""
    called = []
    monkeypatch.setattr(module.select, "_setting", "fused")
    monkeypatch.setattr(module, "few", lambda: range(5, 9))
    monkeypatch.setattr(module, "call", lambda name, x, weight, bias, y: called.append(len(x)))
    with torch.no_grad():
        for rows in range(module.few().stop + 2):
            few_row_linear(*example(rows, 3, 5))
        assert called == list(module.few())
        few_row_linear(*(part.bfloat16() for part in example(16, 3, 5)))
        assert called == list(module.few())
    x, weight, bias = example(16, 3, 5)
    few_row_linear(x, weight.requires_grad_(), bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(dim=0).expand_as(weight))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5,), (3, 5), (3,)), r"x has shape \[5\]; it must be \[rows, inputs\]"),
        (((4, 5), (3, 6), (3,)), r"weight has shape \[3, 6\]; it must be \[3, 5\]"),
        (((4, 5), (3, 5), (4,)), r"bias has shape \[4\]; it must be \[3\]"),
    ],
    ids=["x", "weight", "bias"],
)
def test_few_row_linear_refuses(shapes, message):
    with pytest.raises(RuntimeError, match=message):
        few_row_linear(*map(torch.randn, shapes), implementation="fused")
