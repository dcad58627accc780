"""PPO's two losses (Schulman et al. 2017, eq. 7, and the clipped value loss of its authors' code), each as a sum over response tokens.

The fused versions (csrc/ops/ppo_loss.h) make the loss, the sums to report and the gradient in one pass; backward only scales that gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels import reference, select
from megagpt.kernels.operators import call, register


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_ratio: float, *, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """- sum min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = exp(logprob - old_logprob), over the tokens where the mask is 1.

    logprobs, old_logprobs, advantages, mask   [b, P], or any other shape, float32 (float64: reference only)
    clip_ratio                                 eps, not negative
    returns                                    the loss [], and [3] sums to report, without gradient: the number of clipped tokens, |rho - 1|,
                                               and rho - 1 - log rho, k3's estimate of KL(old || new)

    Differentiable once, with respect to logprobs only. Raises RuntimeError for shapes or types that do not fit each other, and where "fused"
    is asked for and cannot run.
    """
    if select.choose("ppo_policy_loss", logprobs, implementation) == "fused":
        sums, _ = call("ppo_policy_loss", logprobs, old_logprobs, advantages, mask, clip_ratio)
        return sums[0], sums[1:].detach()
    return reference.ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_ratio)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_value: float, *, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """1/2 sum max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2) over the tokens where the mask is 1.

    values, old_values, returns, mask   [b, P], or any other shape, float32 (float64: reference only)
    clip_value                          eps, not negative
    returns                             the loss [], and [1] to report, without gradient: sum (V - R)^2

    Differentiable once, with respect to values only. Raises as ppo_policy_loss does.
    """
    if select.choose("ppo_value_loss", values, implementation) == "fused":
        sums, _ = call("ppo_value_loss", values, old_values, returns, mask, clip_value)
        return sums[0], sums[1:].detach()
    return reference.ppo_value_loss(values, old_values, returns, mask, clip_value)


def _fake(num_sums):
    return lambda x, *_: (x.new_empty(num_sums), torch.empty_like(x, memory_format=torch.contiguous_format))


def _save(ctx, inputs, output):
    if any(ctx.needs_input_grad[1:]):
        raise NotImplementedError("PPO's losses: only the first input has a gradient; implementation='reference' differentiates all of them")
    _, slope = output
    ctx.save_for_backward(slope)
    ctx.mark_non_differentiable(slope)


def _backward(ctx, grad_sums, _):
    (slope,) = ctx.saved_tensors
    return slope * grad_sums[0], None, None, None, None


register("ppo_policy_loss", _fake(4), _save, _backward)
register("ppo_value_loss", _fake(2), _save, _backward)
