"""SwiGLU of the two halves of x + bias: the kernels for the CPU and, emulated, those for CUDA against float64."""

from __future__ import annotations

import functools

import pytest
import torch

from megagpt.kernels.bias_swiglu import bias_swiglu
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
    case = {"x": 2 * torch.randn(rows, 2 * width), "grad_y": torch.randn(rows, width)} | ({"bias": torch.randn(2 * width)} if bias else {})
    return {name: tensor.to(dtype) for name, tensor in case.items()}


def run(case: Case, implementation: str) -> Case:
    """Output, and the gradient of every input."""
    inputs = {name: case[name].detach().requires_grad_() for name in ("x", "bias") if name in case}
    y = bias_swiglu(**inputs, implementation=implementation)
    gradients = torch.autograd.grad(y, list(inputs.values()), case["grad_y"])
    return {"y": y.detach()} | {f"grad of {name}": g for name, g in zip(inputs, gradients)}


def compare(case: Case) -> None:
    exact = run({name: tensor.double() for name, tensor in case.items()}, "reference")
    assert_within_budget(run(case, "fused"), run(case, "reference"), exact)


def test_bias_swiglu_gate_stands_first():
    x, bias = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([0.5, 0.0, 0.0, -1.0])
    expected = torch.tensor([[1.5 / (1 + torch.tensor(-1.5).exp()) * 3, 2 / (1 + torch.tensor(-2.0).exp()) * 3]])
    for implementation in ("fused", "reference"):
        torch.testing.assert_close(bias_swiglu(x, bias, implementation=implementation), expected)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_swiglu_within_error_budget(kernels, dtype, width):
    compare(example(dtype, width))
    if width <= 1024:
        compare(example(dtype, width, bias=False))


@pytest.mark.parametrize("rows", [700, 1100])
def test_bias_swiglu_many_rows(kernels, rows):
    """More rows than the backward pass has parts, and parts of more than eight rows; not all parts alike."""
    compare(example(torch.float32, 8, rows=rows))


def test_bias_swiglu_very_wide_row(kernels):
    compare(example(torch.bfloat16, VERY_WIDE, rows=1))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (8,), (2, 3, 4, 8)])
def test_bias_swiglu_any_leading_shape(kernels, shape):
    case = {"x": torch.randn(shape), "bias": torch.randn(8), "grad_y": torch.ones(*shape[:-1], 4)}
    compare(case)
    compare({name: case[name] for name in ("x", "grad_y")})


def test_bias_swiglu_takes_tensors_of_any_strides(kernels):
    compare({name: strided(tensor) for name, tensor in example(torch.float16, 40).items()})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_swiglu_at_large_gates(kernels, dtype):
    """silu(a) = -0 or a, slope 0 or 1, where exp overflows."""
    sizes = torch.tensor([0.0, 1e-30, 3.0, 88.0, 90.0, 104.0, 200.0, 6e4, *([1e20, 3e38] if dtype != torch.float16 else [])])
    gate = torch.cat((sizes, -sizes))
    case = {"x": torch.cat((gate, torch.ones_like(gate))).to(dtype), "grad_y": torch.ones_like(gate).to(dtype)}
    ours, exact = run(case, "fused"), run({name: tensor.double() for name, tensor in case.items()}, "reference")
    eps = max(torch.finfo(dtype).eps, 2e-6)
    for name in exact:
        torch.testing.assert_close(ours[name].double(), exact[name], rtol=eps, atol=eps)
    far = gate <= -200
    assert torch.equal(ours["y"][far], torch.zeros_like(ours["y"][far])) and ours["y"][far].signbit().all()


def test_bias_swiglu_passes_nan_and_infinity_on(kernels):
    case = example(torch.float32, 37, rows=7)
    for row, (column, value) in enumerate([(36, torch.nan), (0, torch.inf), (5, -torch.inf), (73, torch.nan), (37, torch.inf), (40, -torch.inf)]):
        case["x"][row, column] = value
    ours = run(case, "fused")
    plain = run({name: tensor.double() for name, tensor in case.items()}, "reference")  # in float32 torch may call oneDNN, which differs
    for name in plain:
        assert torch.equal(ours[name].isnan(), plain[name].isnan()), name
        assert torch.equal(ours[name].isposinf(), plain[name].isposinf()), name
        assert torch.equal(ours[name].isneginf(), plain[name].isneginf()), name


def test_bias_swiglu_reference_gradcheck():
    x, bias = torch.randn(3, 6, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: bias_swiglu(*t, implementation="reference"), (x, bias))
    assert torch.autograd.gradcheck(lambda t: bias_swiglu(t, implementation="reference"), (x,))


def test_bias_swiglu_opcheck():
    x, bias = torch.randn(4, 66, requires_grad=True), torch.randn(66, requires_grad=True)
    for b in (bias, None):
        torch.library.opcheck(torch.ops.megagpt.bias_swiglu_forward, (x, b))
        torch.library.opcheck(torch.ops.megagpt.bias_swiglu_backward, (torch.randn(4, 33), x.detach(), None if b is None else b.detach()))


def test_bias_swiglu_cannot_be_differentiated_twice():
    x = torch.randn(2, 8, requires_grad=True)
    (grad,) = torch.autograd.grad(bias_swiglu(x, implementation="fused").square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="bias_swiglu_backward has no gradient"):
        grad.sum().backward()


def test_bias_swiglu_same_bits_for_any_number_of_threads():
    case = example(torch.float32, 1024, rows=200)
    assert_same_bits_for_any_number_of_threads(lambda: run(case, "fused"))


def test_bias_swiglu_same_bits_under_any_schedule():
    case = example(torch.float32, 100, rows=300)
    assert_same_bits_under_any_schedule(lambda: run(case, "fused"))


def test_bias_swiglu_more_than_2_31_elements():
    """Only the last block is there, which holds the last row's last 256 columns: memory that is never touched costs none."""
    rows, width = 2**20 + 1, 1024
    x, grad_y = torch.empty(rows, 2 * width, dtype=torch.float16), torch.empty(rows, width, dtype=torch.float16)
    x[-1], grad_y[-1] = torch.randn(2 * width), torch.randn(width)
    with emulated(only_block=-(-rows // 32) * 4 - 1):
        y = torch.ops.megagpt_emulated.bias_swiglu_forward(x, None)
        grad_x, _ = torch.ops.megagpt_emulated.bias_swiglu_backward(grad_y, x, None)
    gate, up = x[-1].float().view(2, width)[:, -256:]
    expected = run({"x": torch.cat((gate, up)), "grad_y": grad_y[-1, -256:].float()}, "reference")
    torch.testing.assert_close(y[-1, -256:].float(), expected["y"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grad_x[-1].view(2, width)[:, -256:].reshape(-1).float(), expected["grad of x"], rtol=1e-3, atol=1e-3)


def test_bias_swiglu_moves_each_byte_once():
    rows, width = 300, 256
    case = example(torch.bfloat16, width, rows=rows)
    forward = functools.partial(torch.ops.megagpt_emulated.bias_swiglu_forward, case["x"], case["bias"])
    backward = functools.partial(torch.ops.megagpt_emulated.bias_swiglu_backward, case["grad_y"], case["x"], case["bias"])
    assert bytes_moved(forward) == 3 * rows * width * 2  # x (twice the width), y
    assert bytes_moved(backward) == 5 * rows * width * 2  # grad_y, x, grad_x


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "bias_swiglu_forward: x is Double; it must be float32, float16 or bfloat16"),
        ({"bias": torch.zeros(4)}, r"bias_swiglu_forward: bias has shape \[4\]; it must be \[8\]"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "bias_swiglu_forward: bias is Half; it must be Float"),
        ({"x": torch.zeros(2, 7)}, r"bias_swiglu_forward: x has shape \[2, 7\]; it must be \[..., 2 \* width\] with width > 0"),
        ({"x": torch.zeros(2, 0)}, "bias_swiglu_forward: x has shape .* with width > 0"),
    ],
)
def test_bias_swiglu_refuses(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.megagpt.bias_swiglu_forward(*({"x": torch.zeros(2, 8), "bias": torch.zeros(8)} | change).values())


def test_bias_swiglu_refuses_what_does_not_fit():
    with pytest.raises(RuntimeError, match=r"bias_swiglu_backward: grad_y has shape \[2, 8\]; it must be \[2, 4\]"):
        torch.ops.megagpt.bias_swiglu_backward(torch.zeros(2, 8), torch.zeros(2, 8), None)
