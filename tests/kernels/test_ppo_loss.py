"""PPO's losses: the kernels for the CPU and, emulated, those for CUDA against float64 and autograd."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from megagpt.kernels.ppo_loss import ppo_policy_loss, ppo_value_loss
from tests.helpers.kernels import (
    VERY_WIDE,
    WIDTHS,
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
    largest_error,
    strided,
)

LOSSES = {"policy": ppo_policy_loss, "value": ppo_value_loss}
INPUTS = {"policy": ("logprobs", "old_logprobs", "advantages", "mask"), "value": ("values", "old_values", "returns", "mask")}
CLIP = 0.25
"""Exact in every type, as are its sum with 1 and its difference from it."""
Case = dict[str, Tensor]


def example(loss: str, *shape: int, spread: float = 0.4) -> Case:
    """Tokens inside the clip and on both sides of it."""
    new, old, goal, mask = INPUTS[loss]
    case = {new: torch.randn(shape), goal: torch.randn(shape), mask: (torch.rand(shape) < 0.7).float()}
    return {name: case.get(name, case[new] + spread * torch.randn(shape)) for name in INPUTS[loss]}


def run(loss: str, case: Case, implementation: str, clip: float = CLIP) -> dict[str, Tensor]:
    """The loss, the sums to report, and the gradient of 0.37 times the loss."""
    new, *others = case.values()
    new = new.detach().requires_grad_()
    value, report = LOSSES[loss](new, *others, clip, implementation=implementation)
    assert not report.requires_grad
    (gradient,) = torch.autograd.grad(value, new, torch.tensor(0.37, dtype=value.dtype))
    return {"loss": value.detach(), "report": report, "gradient": gradient}


def compare(loss: str, case: Case) -> None:
    exact = run(loss, {name: tensor.double() for name, tensor in case.items()}, "reference")
    assert_within_budget(run(loss, case, "fused"), run(loss, case, "reference"), exact)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("width", WIDTHS)
def test_ppo_loss_within_error_budget(kernels, width, loss):
    compare(loss, example(loss, 3, width))


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_many_elements(kernels, loss):
    """More than blocks take at once, or one part on a CPU."""
    compare(loss, example(loss, 2, VERY_WIDE))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (7,), (2, 3, 4)])
def test_ppo_loss_any_shape(kernels, shape, loss):
    compare(loss, example(loss, *shape))


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_takes_tensors_of_any_strides(kernels, loss):
    case = example(loss, 5, 40)
    ours, expected = run(loss, {name: strided(tensor) for name, tensor in case.items()}, "fused"), run(loss, case, "fused")
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def grid(*axes: tuple[float, ...]) -> list[Tensor]:
    return [axis.flatten() for axis in torch.meshgrid(*map(torch.tensor, axes), indexing="ij")]


@pytest.mark.parametrize("clip", [0.0, CLIP, 1.0])
def test_ppo_policy_loss_at_ties(kernels, clip):
    """Ratio 1 before the first update, and on its bounds where they are 1; advantages of 0: every gradient as autograd splits it."""
    logprobs, advantages, mask = grid((0.0, -torch.inf, 0.1, -0.1, 0.22, 0.23, -0.28, -0.29, 3.0), (0.0, -0.0, 1.5, -1.5), (0.0, 1.0))
    logprobs = torch.where(mask == 1, logprobs, 0.0)  # -inf times 0 is NaN
    case = {"logprobs": logprobs, "old_logprobs": torch.zeros_like(logprobs), "advantages": advantages, "mask": mask}
    ours, plain = run("policy", case, "fused", clip), run("policy", case, "reference", clip)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0.0)
    at_one = case | {"logprobs": torch.zeros_like(logprobs)}
    assert torch.equal(run("policy", at_one, "fused", clip)["gradient"], -(advantages * mask) * 0.37), "a half, and a half through the clip"


def test_ppo_value_loss_at_ties(kernels):
    """Old values, returns in the middle between clipped and plain, steps on the bounds: exact numbers, so the same bits as autograd's."""
    values, old_values, returns, mask = grid(*[(-0.75, -0.5, -0.25, 0.0, 0.125, 0.25, 0.5, 0.75)] * 3, (0.0, 1.0))
    case = {"values": values, "old_values": old_values, "returns": returns, "mask": mask}
    ours, plain = run("value", case, "fused"), run("value", case, "reference")
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    step = values - old_values
    free, bound = (values - returns).square(), (old_values + step.clamp(-CLIP, CLIP) - returns).square()
    assert ((free == bound) & (step.abs() > CLIP) & (mask == 1)).any() and ((step.abs() == CLIP) & (mask == 1)).any(), "the case holds no ties"


def test_ppo_policy_loss_small_updates(kernels):
    """The estimate of KL is then a difference of almost equal numbers."""
    compare("policy", example("policy", 4, 1000, spread=1e-3))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_ppo_loss_passes_nan_and_infinity_on(kernels, number, loss):
    """As autograd does, hidden tokens included: 0 times NaN is NaN."""
    for name in INPUTS[loss]:
        for width in (40, 37):
            case = example(loss, 2, width)
            case["mask"][1, 35] = float(width == 40)
            case[name][1, 35] = number
            ours, plain = run(loss, case, "fused"), run(loss, case, "reference")
            for output in plain:
                assert torch.equal(ours[output].isnan(), plain[output].isnan()), (name, output)
                assert torch.equal(ours[output].isinf(), plain[output].isinf()), (name, output)


def test_ppo_policy_loss_of_an_infinite_ratio(kernels):
    """inf * 0 is NaN, and stays it although the other side of the minimum is a number."""
    zeros = torch.zeros(3)
    case = {"logprobs": torch.tensor([0.0, 200.0, 0.0]), "old_logprobs": zeros, "advantages": zeros, "mask": torch.ones(3)}
    ours, plain = run("policy", case, "fused"), run("policy", case, "reference")
    assert plain["loss"].isnan() and ours["loss"].isnan()
    assert all(largest_error(ours[name], plain[name]) == 0 for name in plain)


def test_ppo_loss_reference_gradcheck():
    for loss in LOSSES:
        new, old, goal, mask = (tensor.double() for tensor in example(loss, 3, 5).values())
        inputs = [tensor.requires_grad_() for tensor in (new, old, goal)]
        assert torch.autograd.gradcheck(lambda *t, loss=loss, mask=mask: LOSSES[loss](*t, mask, CLIP, implementation="reference")[0], inputs)


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_opcheck(loss):
    new, *others = example(loss, 4, 33).values()
    torch.library.opcheck(getattr(torch.ops.megagpt, f"ppo_{loss}_loss"), (new.requires_grad_(), *others, CLIP))


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_differentiates_its_first_input_only(loss):
    case = example(loss, 2, 8)
    list(case.values())[1].requires_grad_()
    with pytest.raises(NotImplementedError, match="only the first input has a gradient; implementation='reference'"):
        LOSSES[loss](*case.values(), CLIP, implementation="fused")


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_same_bits_for_any_number_of_threads(loss):
    case = example(loss, 5, 20001)
    assert_same_bits_for_any_number_of_threads(lambda: run(loss, case, "fused"))


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_same_bits_under_any_schedule(loss):
    case = example(loss, 4, 1000)
    assert_same_bits_under_any_schedule(lambda: run(loss, case, "fused"))


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_moves_each_byte_once(loss):
    for shape in ((8, 1000), (3, 333)):
        operator = getattr(torch.ops.megagpt_emulated, f"ppo_{loss}_loss")
        case = example(loss, *shape)
        assert bytes_moved(functools.partial(operator, *case.values(), CLIP)) == 5 * case["mask"].numel() * 4


@pytest.mark.parametrize("loss", LOSSES)
def test_ppo_loss_refuses(loss):
    names, clip = INPUTS[loss], {"policy": "clip_ratio", "value": "clip_value"}[loss]
    operator = getattr(torch.ops.megagpt, f"ppo_{loss}_loss")
    good = [torch.zeros(2, 8) for _ in names]
    with pytest.raises(RuntimeError, match=f"ppo_{loss}_loss: {clip} is -1; it must not be negative"):
        operator(*good, -1.0)
    for i, name in enumerate(names):
        with pytest.raises(RuntimeError, match=f"ppo_{loss}_loss: {name} is Half; it must be Float"):
            operator(*good[:i], good[i].half(), *good[i + 1 :], CLIP)
        if i > 0:
            with pytest.raises(RuntimeError, match=rf"ppo_{loss}_loss: {name} has shape \[8\]; it must be \[2, 8\]"):
                operator(*good[:i], torch.zeros(8), *good[i + 1 :], CLIP)
