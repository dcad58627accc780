"""Rotary position embedding: the kernels for the CPU and, emulated, those for CUDA against float64."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

from megagpt.kernels.rotary import rotary, rotary_table
from tests.helpers.kernels import (
    DTYPES,
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
    strided,
)

LAYOUTS = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
MAX_POSITION = 50


def example(dtype: torch.dtype, width: int, size: int, heads: int = 3, leading: tuple[int, ...] = (5, 2)) -> dict[str, torch.Tensor]:
    cos, sin = rotary_table(MAX_POSITION, size)
    shape = (*leading, heads, width)
    return {
        "x": torch.randn(shape).to(dtype), "grad_y": torch.randn(shape).to(dtype), "cos": cos, "sin": sin,
        "positions": torch.randint(MAX_POSITION, leading),
    }  # fmt: skip


def run(case: dict[str, torch.Tensor], interleaved: bool, implementation: str) -> dict[str, torch.Tensor]:
    x = case["x"].detach().requires_grad_()
    y = rotary(x, case["positions"], (case["cos"], case["sin"]), interleaved=interleaved, implementation=implementation)
    return {"y": y.detach(), "grad of x": torch.autograd.grad(y, x, case["grad_y"])[0]}


def compare(case: dict[str, torch.Tensor], interleaved: bool) -> dict[str, torch.Tensor]:
    exact = run({name: tensor.double() if name in ("x", "grad_y") else tensor for name, tensor in case.items()}, interleaved, "reference")
    ours = run(case, interleaved, "fused")
    assert ours["y"].is_contiguous()
    assert_within_budget(ours, run(case, interleaved, "reference"), exact)
    return ours


@LAYOUTS
@pytest.mark.parametrize(
    "width, size",
    [(1, 0), (2, 2), (8, 0), (16, 16), (31, 30), (33, 6), (64, 64), (64, 32), (80, 20), (128, 128), (256, 64), (1000, 1000), (1024, 1008)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_within_error_budget(kernels, dtype, width, size, interleaved):
    case = example(dtype, width, size)
    ours = compare(case, interleaved)
    assert torch.equal(ours["y"][..., size:], case["x"][..., size:])


@LAYOUTS
@pytest.mark.parametrize("width", [50256, 50257, 151936])
def test_rotary_very_wide_head(kernels, width, interleaved):
    compare(example(torch.bfloat16, width, 50256, heads=1, leading=(2,)), interleaved)


@LAYOUTS
@pytest.mark.parametrize("heads", [1, 2, 9, 300])
def test_rotary_many_heads(kernels, heads, interleaved):
    compare(example(torch.bfloat16, 32, 32, heads, leading=(3,)), interleaved)


@LAYOUTS
@pytest.mark.parametrize("tokens", [1, 63, 300])
def test_rotary_many_tokens(kernels, tokens, interleaved):
    """More than one block, and fewer tokens than the last one has room for."""
    compare(example(torch.float32, 8, 8, heads=1, leading=(tokens,)), interleaved)


@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (2, 1, 3)])
def test_rotary_any_leading_shape(kernels, leading):
    compare(example(torch.float32, 16, 8, leading=leading), False)


@LAYOUTS
def test_rotary_as_megatron_core_applies_it(kernels, interleaved):
    """x [s, b, heads, head size], the angles of its positions in every row."""
    x, base = torch.randn(7, 2, 3, 16), 10000.0
    angles = torch.arange(7.0)[:, None] * base ** -(torch.arange(0, 16, 2) / 16)
    angles = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat((angles, angles), dim=-1)
    expected = _apply_rotary_pos_emb_bshd(x, angles[:, None, None], rotary_interleaved=interleaved)
    for implementation in ("fused", "reference"):
        ours = rotary(x, torch.arange(7)[:, None], rotary_table(7, 16, base), interleaved=interleaved, implementation=implementation)
        torch.testing.assert_close(ours, expected)


def test_rotary_score_depends_on_distance_only(kernels):
    q, k, table = torch.randn(64), torch.randn(64), rotary_table(1000, 64)

    def score(at_q: int, at_k: int) -> float:
        turned = rotary(torch.stack((q, k))[:, None], torch.tensor([at_q, at_k]), table, implementation="fused")
        return (turned[0] * turned[1]).sum().item()

    assert math.isclose(score(17, 5), score(912, 900), abs_tol=1e-4)
    assert not math.isclose(score(17, 5), score(17, 6), abs_tol=1e-2)


@pytest.mark.parametrize("width", [16, 20, 15])
def test_rotary_reads_slices_where_they_lie(kernels, width):
    """Keys of fused [s, b, groups, (q + 2) * width], transposed rows, heads that lie apart, a gradient of other strides."""
    case = example(torch.bfloat16, width, 8)
    fused = torch.randn(5, 2, 3, 4 * width).bfloat16()
    case["x"] = fused[..., 2 * width : 3 * width]
    case["grad_y"] = case["grad_y"].transpose(0, 1).contiguous().transpose(0, 1)
    compare(case, False)
    case["x"] = torch.randn(2, 3, 5, width).bfloat16().permute(2, 0, 1, 3)
    compare(case, True)


def test_rotary_takes_tensors_of_any_strides(kernels):
    compare({name: strided(tensor) for name, tensor in example(torch.float16, 40, 40).items()}, False)
    case = example(torch.float32, 16, 16)
    compare(case | {"grad_y": torch.ones(()).expand(case["x"].shape)}, True)  # as sum() gives it


@LAYOUTS
def test_rotary_of_tensors_that_lie_between_16_byte_addresses(kernels, interleaved):
    case = example(torch.float32, 16, 16)
    for name in ("x", "cos"):
        tensor = case[name]
        compare(case | {name: torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view_as(tensor).copy_(tensor)}, interleaved)


def test_rotary_passes_nan_and_infinity_on(kernels):
    case = example(torch.float32, 40, 32)
    case["x"][0, 0, 0, 3], case["x"][1, 1, 1, 20], case["x"][2, 0, 2, 39] = torch.nan, torch.inf, torch.nan
    ours, plain = run(case, False, "fused"), run(case, False, "reference")
    assert torch.equal(ours["y"].isfinite(), plain["y"].isfinite())
    assert torch.equal(ours["y"].isnan(), plain["y"].isnan())


@LAYOUTS
def test_rotary_reference_gradcheck(interleaved):
    case = example(torch.float64, 6, 4, leading=(2,))
    turn = lambda x: rotary(x, case["positions"], (case["cos"], case["sin"]), interleaved=interleaved, implementation="reference")  # noqa: E731
    assert torch.autograd.gradcheck(turn, case["x"].requires_grad_())


@LAYOUTS
def test_rotary_opcheck(interleaved):
    case = example(torch.float32, 20, 16)
    for x in (case["x"], strided(case["x"]), case["x"].transpose(0, 1).contiguous().transpose(0, 1)):
        arguments = (x.detach().requires_grad_(), case["positions"], case["cos"], case["sin"], interleaved, False)
        torch.library.opcheck(torch.ops.megagpt.rotary, arguments)


@LAYOUTS
def test_rotary_can_be_differentiated_twice(interleaved):
    case = example(torch.float32, 8, 8)
    x, grad_y = case["x"].requires_grad_(), case["grad_y"].requires_grad_()
    y = rotary(x, case["positions"], (case["cos"], case["sin"]), interleaved=interleaved, implementation="fused")
    (grad,) = torch.autograd.grad(y, x, grad_y, create_graph=True)
    back = torch.autograd.grad(grad, grad_y, x.detach())[0]
    torch.testing.assert_close(back, y.detach())


@LAYOUTS
def test_rotary_same_bits_for_any_number_of_threads(interleaved):
    case = example(torch.float32, 64, 64, heads=8, leading=(200,))
    assert_same_bits_for_any_number_of_threads(lambda: run(case, interleaved, "fused"))


@LAYOUTS
def test_rotary_same_bits_under_any_schedule(interleaved):
    case = example(torch.float16, 48, 32)
    assert_same_bits_under_any_schedule(lambda: run(case, interleaved, "fused"))


def test_rotary_more_than_2_31_elements():
    """Only the last token is there: memory that is never touched costs none."""
    heads, width = 128, 128  # so many that a block has one token
    tokens = 2**31 // (heads * width) + 1
    x = torch.empty(tokens, heads, width, dtype=torch.float16)
    x[-1] = torch.randn(heads, width)
    table, positions = rotary_table(9, width), torch.full((tokens,), 8)
    with emulated(only_block=tokens - 1):
        y = torch.ops.megagpt_emulated.rotary(x, positions, *table, False, False)
    torch.testing.assert_close(y[-1], rotary(x[-1:], positions[-1:], table, implementation="reference")[0])


@LAYOUTS
@pytest.mark.parametrize("width, size", [(64, 64), (80, 32), (31, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotary_moves_each_byte_once(dtype, width, size, interleaved):
    case = example(dtype, width, size, heads=9)
    arguments = (case["x"], case["positions"], case["cos"], case["sin"], interleaved, False)
    assert bytes_moved(lambda: torch.ops.megagpt_emulated.rotary(*arguments)) == 2 * case["x"].nbytes


def test_rotary_table():
    cos, sin = rotary_table(200_000, 64, 500_000.0)
    assert cos.shape == sin.shape == (200_000, 32) and cos.dtype == sin.dtype == torch.float32
    for position, i in ((0, 0), (1, 0), (199_999, 0), (123_457, 3), (199_999, 31)):
        angle = position * 500_000.0 ** (-2 * i / 64)
        assert abs(cos[position, i].item() - math.cos(angle)) < 1e-7 and abs(sin[position, i].item() - math.sin(angle)) < 1e-7
    with pytest.raises(ValueError, match="rotary_table: size is 7; it must be even"):
        rotary_table(4, 7)


@pytest.mark.parametrize("position", [-1, MAX_POSITION, 2**40, -(2**62)])
def test_rotary_position_outside_the_table(position):
    case = example(torch.float32, 16, 16)
    case["positions"][4, 1] = position
    with pytest.raises(RuntimeError, match=rf"rotary: positions\[9\] is {position}; it must be in \[0, 50\), the rows of the table"):
        run(case, False, "fused")
    with emulated():
        clamped = run(case, False, "fused")
    case["positions"].clamp_(0, MAX_POSITION - 1)
    assert all(torch.allclose(clamped[name], tensor) for name, tensor in run(case, False, "reference").items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(5, 2, 8, dtype=torch.float64)}, "rotary: x is Double; it must be float32, float16 or bfloat16"),
        ({"x": torch.zeros(8)}, r"rotary: x has shape \[8\]; it must be \[..., heads, width\] with width > 0"),
        ({"positions": torch.zeros(4, dtype=torch.int64)}, r"rotary: positions has shape \[4\]; it must be \[5\]"),
        ({"positions": torch.zeros(5)}, "rotary: positions is Float; it must be Long"),
        ({"cos": torch.zeros(9, 5)}, r"rotary: cos has shape \[9, 5\]; it must be .* size <= 8"),
        ({"cos": torch.zeros(0, 4)}, "rotary: cos has shape .* with max_position > 0"),
        ({"cos": torch.zeros(9, 4, dtype=torch.float16)}, "rotary: cos is Half; it must be Float"),
        ({"sin": torch.zeros(8, 4)}, r"rotary: sin has shape \[8, 4\]; it must be \[9, 4\]"),
    ],
)
def test_rotary_refuses(change, message):
    positions = torch.zeros(5, dtype=torch.int64)
    arguments = {"x": torch.zeros(5, 2, 8), "positions": positions, "cos": torch.zeros(9, 4), "sin": torch.zeros(9, 4)} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.megagpt.rotary(*arguments.values(), False, False)
