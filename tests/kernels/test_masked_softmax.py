"""Softmax over the keys that a query sees: the kernels for the CPU and, emulated, those for CUDA against float64."""

from __future__ import annotations

import functools

import pytest
import torch

from megagpt.kernels.masked_softmax import masked_softmax
from tests.helpers.kernels import (
    DTYPES,
    VERY_WIDE,
    WIDTHS,
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
    strided,
)

SCALE = 0.7


def example(dtype: torch.dtype, keys: int, queries: int = 3, batch: int = 2, heads: int = 2, padded: bool = False) -> dict[str, torch.Tensor]:
    shape = (batch, heads, queries, keys)
    case = {"x": (3 * torch.randn(shape)).to(dtype), "grad_y": torch.randn(shape).to(dtype)}
    if padded:
        case["mask"] = torch.rand(batch, keys) < 0.7
    return case


def run(case: dict[str, torch.Tensor], implementation: str, causal: bool = True) -> dict[str, torch.Tensor]:
    x = case["x"].detach().requires_grad_()
    y = masked_softmax(x, SCALE, causal=causal, mask=case.get("mask"), implementation=implementation)
    return {"y": y.detach(), "grad of x": torch.autograd.grad(y, x, case["grad_y"])[0]}


def compare(case: dict[str, torch.Tensor], causal: bool = True) -> dict[str, torch.Tensor]:
    exact = run({name: tensor if name == "mask" else tensor.double() for name, tensor in case.items()}, "reference", causal)
    ours = run(case, "fused", causal)
    assert_within_budget(ours, run(case, "reference", causal), exact)
    hidden = torch.zeros(case["x"].shape[-2:], dtype=torch.bool)
    if causal:
        hidden = torch.ones_like(hidden).triu(1 + hidden.size(1) - hidden.size(0))
    hidden = (hidden | ~case["mask"][:, None, None] if "mask" in case else hidden).expand(case["x"].shape)
    for name, tensor in ours.items():
        assert (tensor[hidden] == 0).all(), name
    return ours


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
@pytest.mark.parametrize("keys", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_softmax_within_error_budget(kernels, dtype, keys, causal):
    small = {"queries": 1, "heads": 1} if keys > 2000 else {}
    for padded in (False, True):
        compare(example(dtype, keys, padded=padded, **small), causal)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries, keys", [(70, 70), (33, 40), (6, 3), (48, 64), (1, 9), (5, 300), (4, 2100)])
def test_masked_softmax_causal_limit(kernels, queries, keys, padded):
    """Squares, decoding with earlier keys, queries that see nothing, rows that begin at any address; one warp or one block for each."""
    compare(example(torch.bfloat16, keys, queries, padded=padded))
    compare(example(torch.float32, keys, queries, batch=1, padded=padded))


def test_masked_softmax_very_wide_row(kernels):
    compare(example(torch.bfloat16, VERY_WIDE, queries=1, batch=1, heads=1, padded=True))


@pytest.mark.parametrize("keys", [9, 40, 2100])
def test_masked_softmax_rows_that_see_nothing(kernels, keys):
    """Two of them by the causal limit, then those of a batch whose keys are padding, then one whose only key is padding."""
    case = example(torch.float32, keys, queries=keys + 2 if keys < 100 else 2, padded=True)
    case["mask"][0], case["mask"][1, 0] = False, False
    ours = compare(case)
    for tensor in ours.values():
        assert (tensor[0] == 0).all()
    if keys < 100:
        assert (ours["y"][1, :, :3] == 0).all()


@pytest.mark.parametrize("keys", [37, 2101])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_masked_softmax_passes_nan_and_infinity_on(kernels, keys, value):
    case = example(torch.float32, keys, queries=3, batch=1, heads=1, padded=True)
    case["mask"][0, :3] = torch.tensor([True, False, True])
    case["x"][0, 0, 0, 2] = case["x"][0, 0, 1, 0] = value
    ours, plain = run(case, "fused"), run(case, "reference")
    for name, tensor in ours.items():
        assert torch.equal(tensor.isnan(), plain[name].isnan()), name
    case["x"][0, 0, 2] = -torch.inf
    ours, plain = run(case, "fused"), run(case, "reference")
    assert torch.equal(ours["y"][0, 0, 2].isnan(), case["mask"][0])
    for name, tensor in ours.items():
        assert torch.equal(tensor.isnan(), plain[name].isnan()), name


@pytest.mark.parametrize("keys", [37, 2101])
def test_masked_softmax_what_is_hidden_has_no_influence(kernels, keys):
    case = example(torch.float32, keys, padded=True)
    before = run(case, "fused")
    hidden = (~case["mask"][:, None, None] | torch.ones(3, keys).triu(1 + keys - 3).bool()).expand(case["x"].shape)
    for name, value in (("x", torch.nan), ("grad_y", torch.nan), ("x", torch.inf)):
        case[name] = case[name].masked_fill(hidden, value)
        after = run(case, "fused")
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_masked_softmax_takes_tensors_of_any_strides(kernels):
    compare({name: strided(tensor) for name, tensor in example(torch.float16, 40, padded=True).items()})


@pytest.mark.parametrize("queries, keys", [(3, 40), (15, 13), (3, 600)])
def test_masked_softmax_of_tensors_that_lie_differently(kernels, queries, keys):
    """x two bytes behind a 16-byte address, y at one: moved element by element, by one block for each row however short."""
    case = example(torch.float16, keys, queries)
    for name, tensor in case.items():
        case[name] = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view_as(tensor).copy_(tensor)
    compare(case)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_masked_softmax_of_nothing(kernels, shape):
    x = torch.zeros(shape, requires_grad=True)
    y = masked_softmax(x, causal=True, mask=torch.ones(shape[0], shape[3], dtype=torch.bool), implementation="fused")
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


def test_masked_softmax_reference_gradcheck():
    x, mask = torch.randn(2, 1, 5, 4, dtype=torch.float64, requires_grad=True), torch.rand(2, 4) < 0.6
    assert torch.autograd.gradcheck(lambda x: masked_softmax(x, SCALE, causal=True, mask=mask, implementation="reference"), x)


def test_masked_softmax_reference_is_softmax():
    x = torch.randn(2, 2, 3, 7)
    torch.testing.assert_close(masked_softmax(x, 0.5, implementation="reference"), torch.softmax(x * 0.5, -1))


@pytest.mark.parametrize("padded", [False, True])
def test_masked_softmax_opcheck(padded):
    case = example(torch.float32, 33, padded=padded)
    operators, mask = torch.ops.megagpt, case.get("mask")
    torch.library.opcheck(operators.masked_softmax_forward, (case["x"].requires_grad_(), mask, SCALE, True))
    y = operators.masked_softmax_forward(case["x"].detach(), mask, SCALE, True)
    torch.library.opcheck(operators.masked_softmax_backward, (case["grad_y"], y, mask, SCALE, True))


def test_masked_softmax_same_bits_for_any_number_of_threads():
    case = example(torch.float32, 1000, queries=60, padded=True)
    assert_same_bits_for_any_number_of_threads(lambda: run(case, "fused"))


@pytest.mark.parametrize("keys", [100, 1500])
def test_masked_softmax_same_bits_under_any_schedule(keys):
    case = example(torch.float32, keys, padded=True)
    assert_same_bits_under_any_schedule(lambda: run(case, "fused"))


@pytest.mark.parametrize("keys, rows_of_block", [(1, 4), (512, 4), (4096, 1)])
def test_masked_softmax_more_than_2_31_elements(keys, rows_of_block):
    """Also of rows. Only those of the last block are there: memory that is never touched costs none."""
    rows = 2**31 // keys + rows_of_block
    x = torch.empty(1, 1, rows, keys, dtype=torch.float16)
    x[..., -rows_of_block:, :] = torch.randn(rows_of_block, keys)
    with emulated(only_block=rows // rows_of_block - 1):
        y = torch.ops.megagpt_emulated.masked_softmax_forward(x, None, SCALE, False)
        grad = torch.ops.megagpt_emulated.masked_softmax_backward(x, y, None, SCALE, False)
    last = x[..., -rows_of_block:, :].clone().requires_grad_()
    plain = masked_softmax(last, SCALE, implementation="reference")
    torch.testing.assert_close(y[..., -rows_of_block:, :], plain)
    torch.testing.assert_close(grad[..., -rows_of_block:, :], torch.autograd.grad(plain, last, last.detach())[0], atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("queries, keys", [(50, 64), (7, 77), (3, 1111), (2, 3000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masked_softmax_moves_each_byte_once(dtype, queries, keys):
    """Of what is read only the columns before the causal limit, of what is written all."""
    case = example(dtype, keys, queries)
    read, written = sum(range(keys - queries + 1, keys + 1)) * 4 * dtype.itemsize, case["x"].nbytes
    forward = functools.partial(torch.ops.megagpt_emulated.masked_softmax_forward, case["x"], None, SCALE, True)
    assert bytes_moved(forward) == read + written
    y = forward()
    assert bytes_moved(lambda: torch.ops.megagpt_emulated.masked_softmax_backward(case["grad_y"], y, None, SCALE, True)) == 2 * read + written


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(1, 2, 3, 8, dtype=torch.float64)}, "masked_softmax_forward: x is Double; it must be float32, float16 or bfloat16"),
        ({"x": torch.zeros(3, 8)}, r"masked_softmax_forward: x has shape \[3, 8\]; it must be \[batch, heads, queries, keys\]"),
        ({"mask": torch.ones(1, 7, dtype=torch.bool)}, r"masked_softmax_forward: mask has shape \[1, 7\]; it must be \[1, 8\]"),
        ({"mask": torch.ones(1, 8)}, "masked_softmax_forward: mask is Float; it must be Bool"),
        ({"scale": 0.0}, "masked_softmax_forward: scale is 0; it must be positive"),
        ({"scale": float("nan")}, "masked_softmax_forward: scale is nan; it must be positive"),
    ],
)
def test_masked_softmax_refuses(change, message):
    arguments = {"x": torch.zeros(1, 2, 3, 8), "mask": None, "scale": SCALE} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.megagpt.masked_softmax_forward(*arguments.values(), True)


def test_masked_softmax_backward_refuses():
    with pytest.raises(RuntimeError, match=r"masked_softmax_backward: grad_y has shape \[1, 2, 3, 7\]; it must be \[1, 2, 3, 8\]"):
        torch.ops.megagpt.masked_softmax_backward(torch.zeros(1, 2, 3, 7), torch.zeros(1, 2, 3, 8), None, SCALE, True)
