"""Dropout before the residual addition, and its masks: the kernels for the CPU and, emulated, those for CUDA against the reference."""

from __future__ import annotations

import functools

import pytest
import torch

from megagpt.kernels import reference
from megagpt.kernels.bias_dropout_add import bias_dropout_add, dropout_key, dropout_mask
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

KEY = dropout_key(1234, 56, 7, 2)
Case = dict[str, torch.Tensor]


def example(dtype: torch.dtype, width: int, positions: int = 2, batch: int = 2, bias: bool = True) -> Case:
    names = ("x", "residual", "grad_y")
    case = {name: torch.randn(positions, batch, width) for name in names} | ({"bias": torch.randn(width)} if bias else {})
    return {name: tensor.to(dtype) for name, tensor in case.items()}


def run(case: Case, implementation: str, p: float = 0.1, first_position: int = 0) -> Case:
    """Output, and the gradient of every input."""
    inputs = {name: case[name].detach().requires_grad_() for name in ("x", "bias", "residual") if name in case}
    row_ids = 5 + 3 * torch.arange(case["x"].shape[1])
    arguments = {"bias": None} | inputs
    y = bias_dropout_add(**arguments, p=p, key=KEY, row_ids=row_ids, first_position=first_position, implementation=implementation)
    gradients = torch.autograd.grad(y, list(inputs.values()), case["grad_y"])
    return {"y": y.detach()} | {f"grad of {name}": g for name, g in zip(inputs, gradients)}


def compare(case: Case, **options) -> None:
    exact = run({name: tensor.double() for name, tensor in case.items()}, "reference", **options)
    assert_within_budget(run(case, "fused", **options), run(case, "reference", **options), exact)


# ---------------------------------------------------------------- the random numbers


@pytest.mark.parametrize(
    "counter, key, answer",
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, answer):
    """Those of the authors' own code (Random123, tests/kat_vectors). csrc/ops/bias_dropout_add.cpp asserts the same when it is compiled."""

    def words(text: str) -> list[int]:
        return [int(word, 16) for word in text.split()]

    def signed(low: int, high: int) -> int:
        return (high << 32 | low) - (high >> 31 << 64)

    c, k = words(counter), words(key)
    low, high = torch.tensor(signed(*c[:2])), torch.tensor(signed(*c[2:]))
    assert reference.philox(low, high, signed(*k)).tolist() == words(answer)


@pytest.mark.parametrize("first, count", [(0, 1), (0, 64), (3, 1), (1, 37), (6, 2051), (2**34 - 5, 40), (2**40, 129), (0, 5000)])
def test_dropout_mask_equals_the_reference(kernels, first, count):
    for p, key in ((0.1, KEY), (0.9, -1), (1e-3, 2**62)):
        row_ids = torch.tensor([0, 1, 2**32 + 1, -7])
        fused = dropout_mask(p, key, row_ids, count, first, implementation="fused")
        assert torch.equal(fused, dropout_mask(p, key, row_ids, count, first, implementation="reference")), (p, key)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_mask_of_any_type(kernels, dtype):
    """What a 16-bit type cannot hold is rounded to it, so the mask is what the float32 mask would become."""
    fused = dropout_mask(0.3, KEY, torch.arange(3), 200, dtype=dtype, implementation="fused")
    assert fused.dtype == dtype and fused.shape == (3, 200)
    assert torch.equal(fused, dropout_mask(0.3, KEY, torch.arange(3), 200, dtype=dtype, implementation="reference"))


def test_masks_do_not_depend_on_the_layout(kernels):
    """Any share of the rows, in any order, and any part of their positions gives the part of the same mask."""
    positions, batch, width = 12, 4, 20
    x, row_ids = torch.ones(positions, batch, width), torch.tensor([9, 2, 4, 3])

    def dropped(share: slice, part: slice, order: torch.Tensor) -> torch.Tensor:
        here = x[part][:, order[share]]
        return bias_dropout_add(here, None, torch.zeros_like(here), 0.4, KEY, row_ids[order[share]], part.start, implementation="fused")

    everything, order = slice(0, batch), torch.tensor([2, 0, 3, 1])
    whole = dropped(everything, slice(0, positions), torch.arange(batch))
    assert 0.3 < (whole == 0).float().mean() < 0.5
    for part in (slice(0, 6), slice(6, 12), slice(5, 8)):
        for share in (slice(0, 2), slice(2, 4), everything):
            assert torch.equal(dropped(share, part, order), whole[part][:, order[share]])
    # The same mask, row by row.
    masks = dropout_mask(0.4, KEY, row_ids, positions * width, implementation="fused")
    assert torch.equal(masks.view(batch, positions, width).transpose(0, 1), whole)


def test_uniform_numbers_are_uniform_and_independent():
    """Mean, variance and the distribution within five standard deviations; no correlation between neighbours, words, rows and keys."""
    count = 30_000
    keys = [dropout_key(1, step, layer, place) for step in (0, 1) for layer in (0, 1) for place in (0, 1)]
    series = torch.cat([reference.philox_uniform(key, torch.tensor([0, 1]), 0, count) for key in keys]).double()
    sigma = count**-0.5
    assert ((series.mean(1) - 1 / 2).abs() < 5 * sigma * 12**-0.5).all()
    assert ((series.var(1) - 1 / 12).abs() < 5 * sigma * 180**-0.5).all()
    steps = torch.arange(1, count + 1) / count
    assert ((series.sort(1).values - steps).abs().amax(1) < 2.5 * sigma).all()  # Kolmogorov-Smirnov, wrong once in 10^5
    correlation = torch.corrcoef(series) - torch.eye(len(series))
    assert correlation.abs().max() < 5 * sigma
    for lag in (1, 2, 3, 4, 5, 128):
        shifted = torch.corrcoef(torch.stack((series[0, :-lag], series[0, lag:])))[0, 1]
        assert shifted.abs() < 5 * sigma, lag


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_share_of_dropped_elements(p):
    mask = dropout_mask(p, KEY, torch.arange(4), 100_000, implementation="fused")
    assert ((mask == 0).double().mean(1) - p).abs().max() < 5 * (p * (1 - p) / 100_000) ** 0.5
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])


def test_dropout_key():
    keys = {dropout_key(seed, step, layer, place) for seed in range(3) for step in range(3) for layer in range(3) for place in range(4)}
    assert len(keys) == 3 * 3 * 3 * 4 and all(-(2**63) <= key < 2**63 for key in keys)


# ---------------------------------------------------------------- the sum


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_dropout_add_within_error_budget(kernels, dtype, width):
    compare(example(dtype, width, batch=1 if width > 1024 else 2))
    if width <= 1024:
        compare(example(dtype, width, bias=False), first_position=3)


@pytest.mark.parametrize("positions", [350, 550])
def test_bias_dropout_add_many_rows(kernels, positions):
    """More rows than the backward pass has parts, and parts of more than eight rows; not all parts alike."""
    compare(example(torch.float32, 8, positions=positions), p=0.5)


def test_bias_dropout_add_very_wide_row(kernels):
    compare(example(torch.bfloat16, VERY_WIDE, positions=1, batch=1))


@pytest.mark.parametrize("shape", [(0, 2, 8), (3, 0, 8), (1, 1, 1), (5, 3, 12)])
def test_bias_dropout_add_any_shape(kernels, shape):
    positions, batch, width = shape
    compare(example(torch.float32, width, positions=positions, batch=batch))
    compare(example(torch.float32, width, positions=positions, batch=batch, bias=False))


@pytest.mark.parametrize("bias", [True, False])
def test_bias_dropout_add_without_dropout(kernels, bias):
    case = example(torch.float32, 40, bias=bias)
    result = run(case, "fused", p=0.0)
    torch.testing.assert_close(result["y"], case["residual"] + case["x"] + (case["bias"] if bias else 0))
    assert torch.equal(result["grad of x"], case["grad_y"]) and torch.equal(result["grad of residual"], case["grad_y"])


def test_bias_dropout_add_takes_tensors_of_any_strides(kernels):
    compare({name: strided(tensor) for name, tensor in example(torch.float16, 40).items()})


def test_bias_dropout_add_passes_nan_and_infinity_on(kernels):
    case = example(torch.float32, 37, positions=3)
    case["x"][1, 0, 36], case["x"][2, 1, :9], case["residual"][0, 1, 4], case["grad_y"][1, 1, 3] = torch.nan, torch.inf, torch.nan, torch.nan
    ours, plain = run(case, "fused", p=0.5), run(case, "reference", p=0.5)
    for name in plain:
        assert torch.equal(ours[name].isnan(), plain[name].isnan()) and torch.equal(ours[name].isinf(), plain[name].isinf()), name


def test_bias_dropout_add_reference_gradcheck():
    x, residual = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def add(x, residual, bias=None):
        return bias_dropout_add(x, bias, residual, 0.4, KEY, torch.arange(3), 2, implementation="reference")

    assert torch.autograd.gradcheck(add, (x, residual, bias))
    assert torch.autograd.gradcheck(add, (x, residual))


def test_bias_dropout_add_opcheck():
    x, residual = (torch.randn(4, 2, 33, requires_grad=True) for _ in range(2))
    bias, row_ids = torch.randn(33, requires_grad=True), torch.tensor([5, 3])
    for b in (bias, None):
        torch.library.opcheck(torch.ops.megagpt.bias_dropout_add_forward, (x, b, residual, 0.1, KEY, row_ids, 66))
        torch.library.opcheck(torch.ops.megagpt.bias_dropout_add_backward, (torch.randn(4, 2, 33), 0.1, KEY, row_ids, 66, b is not None))
    torch.library.opcheck(torch.ops.megagpt.dropout_mask, (row_ids, torch.float16, 33, 0.1, KEY, 66))


def test_bias_dropout_add_cannot_be_differentiated_twice():
    x = torch.randn(2, 1, 8, requires_grad=True)
    y = bias_dropout_add(x, None, torch.zeros(2, 1, 8), 0.1, KEY, torch.tensor([0]), implementation="fused")
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="bias_dropout_add_backward has no gradient"):
        grad.sum().backward()


def test_bias_dropout_add_same_bits_for_any_number_of_threads():
    case = example(torch.float32, 1030, positions=100)
    assert_same_bits_for_any_number_of_threads(lambda: run(case, "fused"))


def test_bias_dropout_add_same_bits_under_any_schedule():
    case = example(torch.float32, 100, positions=150)
    assert_same_bits_under_any_schedule(lambda: run(case, "fused"))


def test_bias_dropout_add_more_than_2_31_elements():
    """Only the last block is there, which holds the last row's last 256 columns: memory that is never touched costs none."""
    positions, width, row_ids = 2**21 + 1, 1024, torch.tensor([11])
    x, residual = (torch.empty(positions, 1, width, dtype=torch.float16) for _ in range(2))
    x[-1, 0], residual[-1, 0] = torch.randn(2, width)
    with emulated(only_block=-(-positions // 32) * 4 - 1):
        y = torch.ops.megagpt_emulated.bias_dropout_add_forward(x, None, residual, 0.5, KEY, row_ids, 0)
        grad_x, _ = torch.ops.megagpt_emulated.bias_dropout_add_backward(x, 0.5, KEY, row_ids, 0, False)
    mask = dropout_mask(0.5, KEY, row_ids, 256, positions * width - 256, implementation="reference")
    dropped = mask[0] * x[-1, 0, -256:].float()
    torch.testing.assert_close(y[-1, 0, -256:].float(), dropped + residual[-1, 0, -256:].float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grad_x[-1, 0, -256:].float(), dropped, rtol=1e-3, atol=1e-3)


def test_bias_dropout_add_moves_each_byte_once():
    positions, batch, width = 150, 2, 256
    case, row_ids = example(torch.bfloat16, width, positions=positions), torch.arange(batch)
    operators, elements = torch.ops.megagpt_emulated, positions * batch * width
    forward = functools.partial(operators.bias_dropout_add_forward, case["x"], case["bias"], case["residual"], 0.1, KEY, row_ids, 0)
    backward = functools.partial(operators.bias_dropout_add_backward, case["grad_y"], 0.1, KEY, row_ids, 0, True)
    assert bytes_moved(forward) == 3 * elements * 2  # x, residual, y
    assert bytes_moved(backward) == 2 * elements * 2  # grad_y, grad_x
    assert bytes_moved(functools.partial(operators.dropout_mask, row_ids, torch.bfloat16, 512, 0.1, KEY, 0)) == 2 * 512 * 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(3, 2, 8, dtype=torch.float64)}, "bias_dropout_add_forward: x is Double; it must be float32, float16 or bfloat16"),
        ({"x": torch.zeros(2, 8)}, r"bias_dropout_add_forward: x has shape \[2, 8\]; it must be \[positions, batch, width\] with width > 0"),
        ({"bias": torch.zeros(7)}, r"bias_dropout_add_forward: bias has shape \[7\]; it must be \[8\]"),
        ({"residual": torch.zeros(3, 8)}, r"bias_dropout_add_forward: residual has shape \[3, 8\]; it must be \[3, 2, 8\]"),
        ({"row_ids": torch.zeros(3, dtype=torch.int64)}, r"bias_dropout_add_forward: row_ids has shape \[3\]; it must be \[2\]"),
        ({"row_ids": torch.zeros(2)}, "bias_dropout_add_forward: row_ids is Float; it must be Long"),
        ({"p": 1.0}, r"bias_dropout_add_forward: p is 1; it must be in \[0, 1\)"),
        ({"p": float("nan")}, r"bias_dropout_add_forward: p is nan; it must be in \[0, 1\)"),
        ({"first": -1}, "bias_dropout_add_forward: first is -1; it must be at least 0"),
    ],
)
def test_bias_dropout_add_refuses(change, message):
    x = torch.zeros(3, 2, 8)
    arguments = {"x": x, "bias": torch.zeros(8), "residual": x, "p": 0.1, "key": 0, "row_ids": torch.arange(2), "first": 0} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.megagpt.bias_dropout_add_forward(*arguments.values())


def test_dropout_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"dropout: p is 1.0; it must be in \[0, 1\)"):
        dropout_mask(1.0, KEY, torch.arange(2), 8)
    with pytest.raises(RuntimeError, match="dropout_mask: count is 0; it must be positive"):
        torch.ops.megagpt.dropout_mask(torch.arange(2), torch.float32, 0, 0.1, KEY, 0)
    with pytest.raises(RuntimeError, match="dropout_mask: row_ids is Float; it must be Long"):
        torch.ops.megagpt.dropout_mask(torch.zeros(2), torch.float32, 8, 0.1, KEY, 0)
    with pytest.raises(RuntimeError, match="dropout_mask: the mask is Double"):
        torch.ops.megagpt.dropout_mask(torch.arange(2), torch.float64, 8, 0.1, KEY, 0)
