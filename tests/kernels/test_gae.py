"""Generalised advantages: the kernels for the CPU and, emulated, those for CUDA against float64 and the loop over columns."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from megagpt.kernels.gae import gae
from tests.helpers.kernels import (
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
    strided,
)

WIDTHS = (1, 31, 33, 127, 128, 1000, 1024)
"""One column, around a warp, around a warp of four columns each, many; the loop over columns is too slow for more."""


def example(rows: int, width: int, holes: bool = False) -> dict[str, Tensor]:
    """A response in each row: it may be empty, or the whole row. With holes: any mask."""
    columns, first, last = torch.arange(width), torch.randint(-1, width, (rows, 1)), torch.randint(0, width + 1, (rows, 1))
    mask = torch.rand(rows, width) < 0.7 if holes else (columns >= first) & (columns <= last)
    return {"rewards": torch.randn(rows, width), "values": torch.randn(rows, width), "mask": mask.float()}


def run(case: dict[str, Tensor], implementation: str, gamma: float = 1.0, gae_lambda: float = 0.95) -> dict[str, Tensor]:
    advantages, returns = gae(**case, gamma=gamma, gae_lambda=gae_lambda, implementation=implementation)
    return {"advantages": advantages, "returns": returns}


def compare(case: dict[str, Tensor], **settings) -> None:
    exact = run({name: tensor.double() for name, tensor in case.items()}, "reference", **settings)
    assert_within_budget(run(case, "fused", **settings), run(case, "reference", **settings), exact)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_gae_within_error_budget(kernels, width, holes):
    compare(example(6, width, holes))


@pytest.mark.parametrize("gamma, gae_lambda", [(1.0, 1.0), (0.9, 0.5), (0.99, 0.0), (0.0, 1.0)])
def test_gae_discounts(kernels, gamma, gae_lambda):
    for width in (33, 260):
        compare(example(7, width), gamma=gamma, gae_lambda=gae_lambda)


def test_gae_all_shown_or_all_hidden(kernels):
    case = example(3, 300)
    case["mask"][0], case["mask"][1] = 1, 0
    compare(case, gamma=1.0, gae_lambda=1.0)


def test_gae_cpu_has_the_bits_of_the_loop():
    case = example(50, 333, holes=True)
    ours, plain = run(case, "fused", 0.99), run(case, "reference", 0.99)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0), (1, 1)])
def test_gae_any_shape(kernels, shape):
    compare({name: torch.ones(shape) for name in ("rewards", "values", "mask")})


def test_gae_takes_tensors_of_any_strides(kernels):
    case = example(5, 40)
    ours, expected = run({name: strided(tensor) for name, tensor in case.items()}, "fused"), run(case, "fused")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    compare({name: torch.randn(40, 5).t() for name in case} | {"mask": case["mask"]})


@pytest.mark.parametrize("name", ["rewards", "values", "mask"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_gae_passes_nan_and_infinity_on(kernels, number, name):
    """As the loop does, hidden tokens included: 0 times NaN is NaN."""
    for width, column in ((37, 35), (200, 150), (256, 3)):
        case = example(4, width, holes=True)
        case[name][1, column] = number
        ours, plain = run(case, "fused"), run(case, "reference")
        for output in plain:
            assert torch.equal(ours[output].isfinite(), plain[output].isfinite()), output
            assert torch.equal(ours[output].isnan(), plain[output].isnan()), output


def test_gae_reference_gradcheck():
    rewards, values = (torch.randn(2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1.0]], dtype=torch.float64)
    scan = functools.partial(gae, mask=mask, gamma=0.9, gae_lambda=0.8, implementation="reference")
    assert torch.autograd.gradcheck(scan, (rewards, values))


def test_gae_opcheck():
    torch.library.opcheck(torch.ops.megagpt.gae, (*example(4, 33).values(), 0.9, 0.8))
    torch.library.opcheck(torch.ops.megagpt.gae, (*[strided(tensor) for tensor in example(4, 33).values()], 0.9, 0.8))


def test_gae_has_no_gradient():
    case = example(2, 8)
    case["values"].requires_grad_()
    with pytest.raises(NotImplementedError, match="gae has no gradient; implementation='reference'"):
        run(case, "fused")["advantages"].sum().backward()


def test_gae_same_bits_for_any_number_of_threads():
    case = example(301, 500)
    assert_same_bits_for_any_number_of_threads(lambda: run(case, "fused"))


def test_gae_same_bits_under_any_schedule():
    for width in (100, 290):
        case = example(7, width)
        assert_same_bits_under_any_schedule(lambda: run(case, "fused"))


def test_gae_more_than_2_31_elements():
    """Only the last four rows are there: memory that is never touched costs none."""
    rows, width = 2**21 + 4, 1024
    numbers, last = torch.empty(rows, width), torch.rand(4, width)
    numbers[-4:] = last
    with emulated(only_block=rows // 4 - 1):
        advantages, returns = torch.ops.megagpt_emulated.gae(numbers, numbers, numbers, 0.9, 0.8)
    expected = run({name: last for name in ("rewards", "values", "mask")}, "reference", 0.9, 0.8)
    torch.testing.assert_close(advantages[-4:], expected["advantages"])
    torch.testing.assert_close(returns[-4:], expected["returns"])


def test_gae_moves_each_byte_once():
    for width in (256, 33):
        case = example(6, width)
        assert bytes_moved(functools.partial(run, case, "fused")) == 5 * 6 * width * 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rewards": torch.zeros(8)}, r"gae: rewards has shape \[8\]; it must be \[rows, width\]"),
        ({"values": torch.zeros(2, 9)}, r"gae: values has shape \[2, 9\]; it must be \[2, 8\]"),
        ({"values": torch.zeros(2, 8).double()}, "gae: values is Double; it must be Float"),
        ({"mask": torch.zeros(2, 8, dtype=torch.bool)}, "gae: mask is Bool; it must be Float"),
        ({"gamma": 1.5}, r"gae: gamma is 1.5; it must be in \[0, 1\]"),
        ({"gae_lambda": -0.5}, r"gae: gae_lambda is -0.5; it must be in \[0, 1\]"),
        ({"rewards": torch.zeros(2, 8).half()}, "gae: the fused kernel was asked for, but it does not take torch.float16"),
    ],
)
def test_gae_refuses(change, message):
    arguments = {name: torch.zeros(2, 8) for name in ("rewards", "values", "mask")} | {"gamma": 1.0, "gae_lambda": 0.9}
    with pytest.raises(RuntimeError, match=message):
        gae(**arguments | change, implementation="fused")
