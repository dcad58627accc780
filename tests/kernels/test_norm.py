"""LayerNorm and RMSNorm: the kernels for the CPU and, emulated, those for CUDA against float64."""

from __future__ import annotations

import functools

import pytest
import torch

from megagpt.kernels.norm import layer_norm, rms_norm
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

NORMS = ("layer", "rms")


def example(norm: str, dtype: torch.dtype, width: int, rows: int = 5, residual: bool = True) -> dict[str, torch.Tensor]:
    case = {"x": torch.randn(rows, width) + 0.5, "weight": torch.randn(width), "grad_y": torch.randn(rows, width)}
    if norm == "layer":
        case["bias"] = torch.randn(width)
    if residual:
        case |= {"residual": torch.randn(rows, width), "grad_s": torch.randn(rows, width)}
    return {name: tensor.to(dtype) for name, tensor in case.items()}


def run(norm: str, case: dict[str, torch.Tensor], implementation: str) -> dict[str, torch.Tensor]:
    """Outputs, and the gradient of every input."""
    inputs = {name: case[name].detach().requires_grad_() for name in ("x", "weight", "bias", "residual") if name in case}
    result = (layer_norm if norm == "layer" else rms_norm)(**inputs, eps=1e-5, implementation=implementation)
    outputs = dict(zip(("y", "s"), result if isinstance(result, tuple) else (result,)))
    gradients = torch.autograd.grad(list(outputs.values()), list(inputs.values()), [case[f"grad_{name}"] for name in outputs])
    return {name: tensor.detach() for name, tensor in outputs.items()} | {f"grad of {name}": g for name, g in zip(inputs, gradients)}


def compare(norm: str, case: dict[str, torch.Tensor]) -> None:
    exact = run(norm, {name: tensor.double() for name, tensor in case.items()}, "reference")
    assert_within_budget(run(norm, case, "fused"), run(norm, case, "reference"), exact)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_within_error_budget(kernels, dtype, width, norm):
    for residual in (False, True):
        compare(norm, example(norm, dtype, width, residual=residual))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows, width", [(700, 40), (4000, 40), (300, 1700), (300, 4100)])
def test_norm_many_rows(kernels, norm, rows, width):
    """More rows than the backward pass takes at once on CUDA, many teams in a block, one, and none; or more than it has parts on a CPU."""
    compare(norm, example(norm, torch.float32, width, rows=rows))


@pytest.mark.parametrize("dtype, width", [(torch.float32, 3072), (torch.bfloat16, 4096), (torch.bfloat16, 24_576)], ids=str)
def test_norm_at_the_limit_of_shared_memory(kernels, dtype, width):
    """The forward or the backward pass takes 48 KiB beside what the kernel declares by itself."""
    compare("layer", example("layer", dtype, width, rows=2))


def test_norm_very_wide_row(kernels):
    compare("layer", example("layer", torch.bfloat16, VERY_WIDE, rows=2))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_mean_far_from_zero(kernels, norm):
    case = example(norm, torch.float32, 1003)
    case["x"] += 100
    compare(norm, case)


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (8,), (2, 3, 4, 8)])
def test_norm_any_leading_shape(kernels, shape):
    x, weight, bias = torch.randn(shape, requires_grad=True), torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    y = layer_norm(x, weight, bias, implementation="fused")
    gradients = torch.autograd.grad(y, (x, weight, bias), torch.ones(shape))
    plain = layer_norm(x, weight, bias, implementation="reference")
    torch.testing.assert_close(y, plain)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, (x, weight, bias), torch.ones(shape)))


def test_norm_takes_tensors_of_any_strides(kernels):
    case = example("layer", torch.float16, 40)
    compare("layer", {name: strided(tensor) for name, tensor in case.items()})


@pytest.mark.parametrize("norm", NORMS)
def test_norm_passes_nan_and_infinity_on(kernels, norm):
    case = example(norm, torch.float32, 37, residual=False)
    case["x"][1, 36], case["x"][3, 0] = torch.nan, torch.inf
    # On a GPU torch's own RMSNorm makes NaN of a whole row that holds infinity.
    ours, plain = run(norm, case, "fused"), run(norm, {name: tensor.cpu() for name, tensor in case.items()}, "reference")
    for name in ("y", "grad of x"):
        assert torch.equal(ours[name].cpu().isfinite(), plain[name].isfinite()), name


def test_norm_reference_gradcheck():
    x, r = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w, b = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *t: layer_norm(*t[:3], residual=t[3], implementation="reference"), (x, w, b, r))
    assert torch.autograd.gradcheck(lambda *t: rms_norm(*t[:2], residual=t[2], implementation="reference"), (x, w, r))


@pytest.mark.parametrize("center", [True, False])
def test_norm_opcheck(center):
    x, r, g = (torch.randn(4, 33, requires_grad=True) for _ in range(3))
    w, b = torch.randn(33, requires_grad=True), torch.randn(33, requires_grad=True) if center else None
    operators = torch.ops.megagpt
    torch.library.opcheck(operators.norm_forward, (x, r, w, b, 1e-5, center))
    torch.library.opcheck(operators.norm_forward, (x, None, w, b, 1e-5, center))
    stats = [stat.detach() for stat in operators.norm_forward(x, None, w, b, 1e-5, center)[2:]]
    torch.library.opcheck(operators.norm_backward, (g.detach(), None, x.detach(), w.detach(), *stats, center))


def test_norm_cannot_be_differentiated_twice():
    x, w = torch.randn(2, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    (grad,) = torch.autograd.grad(rms_norm(x, w, implementation="fused").square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="norm_backward has no gradient"):
        grad.sum().backward()


def test_norm_same_bits_for_any_number_of_threads():
    case = example("layer", torch.float32, 1024, rows=200)
    assert_same_bits_for_any_number_of_threads(lambda: run("layer", case, "fused"))


def test_norm_same_bits_under_any_schedule():
    case = example("layer", torch.float32, 100, rows=7)
    assert_same_bits_under_any_schedule(lambda: run("layer", case, "fused"))


def test_norm_more_than_2_31_elements():
    """Only the last row is there: memory that is never touched costs none."""
    rows, width = 2**21 + 1, 1024
    x, weight = torch.empty(rows, width, dtype=torch.float16), torch.ones(width, dtype=torch.float16)
    x[-1] = torch.randn(width)
    with emulated(only_block=rows - 1):
        y, _, _, rstd = torch.ops.megagpt_emulated.norm_forward(x, None, weight, None, 1e-5, False)
    torch.testing.assert_close(y[-1], rms_norm(x[-1], weight, implementation="reference"))
    torch.testing.assert_close(rstd[-1], torch.rsqrt(x[-1].float().square().mean() + 1e-5))


def test_norm_moves_each_byte_once():
    rows, width = 1056, 256
    case = example("layer", torch.bfloat16, width, rows=rows)
    forward = functools.partial(torch.ops.megagpt_emulated.norm_forward, case["x"], case["residual"], case["weight"], case["bias"], 1e-5, True)
    assert bytes_moved(forward) == 4 * rows * width * 2  # x, residual, sum, y
    y, s, mean, rstd = forward()
    assert bytes_moved(lambda: torch.ops.megagpt_emulated.norm_backward(case["grad_y"], case["grad_s"], s, case["weight"], mean, rstd, True)) == (
        4 * rows * width * 2  # grad_y, grad_sum, sum, grad_x
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, "norm_forward: x is Double; it must be float32, float16 or bfloat16"),
        ({"weight": torch.zeros(7)}, r"norm_forward: weight has shape \[7\]; it must be \[8\]"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "norm_forward: bias is Half; it must be Float"),
        ({"residual": torch.zeros(3, 8)}, r"norm_forward: residual has shape \[3, 8\]; it must be \[2, 8\]"),
        ({"x": torch.zeros(2, 0)}, "norm_forward: x has shape .* with width > 0"),
        ({"eps": 0.0}, "norm_forward: eps is 0; it must be positive"),
    ],
)
def test_norm_refuses(change, message):
    arguments = {"x": torch.zeros(2, 8), "residual": torch.zeros(2, 8), "weight": torch.zeros(8), "bias": torch.zeros(8), "eps": 1e-5} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.megagpt.norm_forward(*arguments.values(), True)
