"""GELU of x + bias: the kernels for the CPU and, emulated, those for CUDA against float64."""

from __future__ import annotations

import functools

import pytest
import torch

from megagpt.kernels.bias_gelu import APPROXIMATIONS, bias_gelu
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

Case = dict[str, torch.Tensor]


def example(dtype: torch.dtype, width: int, rows: int = 3, bias: bool = True) -> Case:
    case = {"x": 2 * torch.randn(rows, width), "grad_y": torch.randn(rows, width)} | ({"bias": torch.randn(width)} if bias else {})
    return {name: tensor.to(dtype) for name, tensor in case.items()}


def run(case: Case, approximate: str, implementation: str) -> Case:
    """Output, and the gradient of every input."""
    inputs = {name: case[name].detach().requires_grad_() for name in ("x", "bias") if name in case}
    y = bias_gelu(**inputs, approximate=approximate, implementation=implementation)
    gradients = torch.autograd.grad(y, list(inputs.values()), case["grad_y"])
    return {"y": y.detach()} | {f"grad of {name}": g for name, g in zip(inputs, gradients)}


def compare(case: Case, approximate: str) -> None:
    exact = run({name: tensor.double() for name, tensor in case.items()}, approximate, "reference")
    assert_within_budget(run(case, approximate, "fused"), run(case, approximate, "reference"), exact)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_gelu_within_error_budget(kernels, dtype, width):
    compare(example(dtype, width), "tanh")
    if width <= 1024:
        compare(example(dtype, width), "none")
        for approximate in APPROXIMATIONS:
            compare(example(dtype, width, bias=False), approximate)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("rows", [700, 1100])
def test_bias_gelu_many_rows(kernels, rows, approximate):
    """More rows than the backward pass has parts, and parts of more than eight rows; not all parts alike."""
    compare(example(torch.float32, 8, rows=rows), approximate)


def test_bias_gelu_very_wide_row(kernels):
    compare(example(torch.bfloat16, VERY_WIDE, rows=1), "none")


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (8,), (2, 3, 4, 8)])
def test_bias_gelu_any_leading_shape(kernels, shape):
    case = {"x": torch.randn(shape), "bias": torch.randn(8), "grad_y": torch.ones(shape)}
    compare(case, "tanh")
    compare({name: case[name] for name in ("x", "grad_y")}, "none")


def test_bias_gelu_takes_tensors_of_any_strides(kernels):
    compare({name: strided(tensor) for name, tensor in example(torch.float16, 40).items()}, "tanh")


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_gelu_at_large_values(kernels, dtype, approximate):
    """y = -0 or v, slope 0 or 1, where exp and v^3 overflow."""
    sizes = torch.tensor([0.0, 1e-30, 3.0, 9.0, 10.5, 14.0, 30.0, 100.0, 6e4, *([1e13, 1e20, 3e38] if dtype != torch.float16 else [])])
    case = {"x": torch.cat((sizes, -sizes)).to(dtype)}
    case["grad_y"] = torch.ones_like(case["x"])
    ours, exact = run(case, approximate, "fused"), run({name: tensor.double() for name, tensor in case.items()}, approximate, "reference")
    eps = max(torch.finfo(dtype).eps, 2e-6)
    for name in exact:
        torch.testing.assert_close(ours[name].double(), exact[name], rtol=eps, atol=eps)
    far = case["x"] <= -30
    assert torch.equal(ours["y"][far], torch.zeros_like(ours["y"][far])) and ours["y"][far].signbit().all()


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_bias_gelu_passes_nan_and_infinity_on(kernels, approximate):
    case = example(torch.float32, 37, rows=4)
    case["x"][1, 36], case["x"][2, 0], case["x"][3, 5] = torch.nan, torch.inf, -torch.inf
    ours = run(case, approximate, "fused")
    plain = run({name: tensor.double() for name, tensor in case.items()}, approximate, "reference")  # in float32 torch may call oneDNN, which differs
    for name in plain:
        assert torch.equal(ours[name].isnan(), plain[name].isnan()), name
        assert torch.equal(ours[name].isposinf(), plain[name].isposinf()), name
        assert torch.equal(ours[name].isneginf(), plain[name].isneginf()), name


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_bias_gelu_reference_gradcheck(approximate):
    x, bias = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: bias_gelu(*t, approximate=approximate, implementation="reference"), (x, bias))
    assert torch.autograd.gradcheck(lambda t: bias_gelu(t, approximate=approximate, implementation="reference"), (x,))


def test_bias_gelu_opcheck():
    x, bias = torch.randn(4, 33, requires_grad=True), torch.randn(33, requires_grad=True)
    for b in (bias, None):
        torch.library.opcheck(torch.ops.megagpt.bias_gelu_forward, (x, b, True))
        torch.library.opcheck(torch.ops.megagpt.bias_gelu_backward, (torch.randn(4, 33), x.detach(), None if b is None else b.detach(), False))


def test_bias_gelu_cannot_be_differentiated_twice():
    x = torch.randn(2, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(bias_gelu(x, implementation="fused").square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="bias_gelu_backward has no gradient"):
        grad.sum().backward()


def test_bias_gelu_same_bits_for_any_number_of_threads():
    case = example(torch.float32, 1024, rows=200)
    assert_same_bits_for_any_number_of_threads(lambda: run(case, "tanh", "fused"))


def test_bias_gelu_same_bits_under_any_schedule():
    case = example(torch.float32, 100, rows=300)
    assert_same_bits_under_any_schedule(lambda: run(case, "tanh", "fused"))


def test_bias_gelu_more_than_2_31_elements():
    """Only the last block is there, which holds the last row's last 256 columns: memory that is never touched costs none."""
    rows, width = 2**21 + 1, 1024
    x, grad_y = (torch.empty(rows, width, dtype=torch.float16) for _ in range(2))
    x[-1], grad_y[-1] = torch.randn(2, width)
    with emulated(only_block=-(-rows // 32) * 4 - 1):
        y = torch.ops.megagpt_emulated.bias_gelu_forward(x, None, True)
        grad_x, _ = torch.ops.megagpt_emulated.bias_gelu_backward(grad_y, x, None, True)
    expected = run({"x": x[-1, -256:].float(), "grad_y": grad_y[-1, -256:].float()}, "tanh", "reference")
    torch.testing.assert_close(y[-1, -256:].float(), expected["y"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grad_x[-1, -256:].float(), expected["grad of x"], rtol=1e-3, atol=1e-3)


def test_bias_gelu_moves_each_byte_once():
    rows, width = 300, 256
    case = example(torch.bfloat16, width, rows=rows)
    forward = functools.partial(torch.ops.megagpt_emulated.bias_gelu_forward, case["x"], case["bias"], True)
    backward = functools.partial(torch.ops.megagpt_emulated.bias_gelu_backward, case["grad_y"], case["x"], case["bias"], True)
    assert bytes_moved(forward) == 2 * rows * width * 2  # x, y
    assert bytes_moved(backward) == 3 * rows * width * 2  # grad_y, x, grad_x


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "bias_gelu_forward: x is Double; it must be float32, float16 or bfloat16"),
        ({"bias": torch.zeros(7)}, r"bias_gelu_forward: bias has shape \[7\]; it must be \[8\]"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "bias_gelu_forward: bias is Half; it must be Float"),
        ({"x": torch.zeros(2, 0)}, "bias_gelu_forward: x has shape .* with width > 0"),
    ],
)
def test_bias_gelu_refuses(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.megagpt.bias_gelu_forward(*({"x": torch.zeros(2, 8), "bias": torch.zeros(8)} | change).values(), True)


def test_bias_gelu_refuses_what_does_not_fit():
    with pytest.raises(RuntimeError, match=r"bias_gelu_backward: grad_y has shape \[2, 7\]; it must be \[2, 8\]"):
        torch.ops.megagpt.bias_gelu_backward(torch.zeros(2, 7), torch.zeros(2, 8), None, True)
    with pytest.raises(ValueError, match="bias_gelu: approximate is 'quick'; it must be one of none, tanh"):
        bias_gelu(torch.zeros(2, 8), approximate="quick")
