"""PPO's two losses, as sums over response tokens; the caller divides by the global number of response tokens.

The formulas step by step, in plain PyTorch: `kernels/reference.py`, ppo_policy_loss and ppo_value_loss, and `surrogate` below for the clips
that the fused kernel does not know.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megagpt.kernels.ppo_loss import ppo_policy_loss, ppo_value_loss


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_ratio: float,
    *, clip_ratio_high: float | None = None, dual_clip: float | None = None, clamp_log_ratio: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """- sum min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = pi / pi_old (Schulman et al. 2017, eq. 7).

    The fused kernel knows this much; with any of the last three arguments it is `surrogate`, in plain PyTorch.

    Args:
        all [b, P]; mask 1 on response tokens. For the rest see `surrogate`.

    Returns:
        the loss, and sums to report: the clipped tokens, the ratio's deviation from 1, k3's estimate of KL(old || new).
    """
    if clip_ratio_high is None and dual_clip is None and clamp_log_ratio is None:
        loss, (clipped, ratio_error, update_kl) = ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_ratio)
    else:
        loss, (clipped, ratio_error, update_kl) = surrogate(
            logprobs, old_logprobs, advantages, mask, clip_low=clip_ratio, clip_high=clip_ratio if clip_ratio_high is None else clip_ratio_high,
            dual_clip=math.inf if dual_clip is None else dual_clip, clamp_log_ratio=math.inf if clamp_log_ratio is None else clamp_log_ratio,
        )
    return loss, {"policy_loss": loss.detach(), "clip_fraction": clipped, "ratio_error": ratio_error, "update_kl": update_kl}


def surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor,
    *, clip_low: float, clip_high: float, dual_clip: float, clamp_log_ratio: float,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate with everything that can be added to it.

    Per token S = min(rho A, clip(rho, 1 - low, 1 + high) A), and max(S, c A) where A < 0 (Ye et al. 2020): without the last, a token that became
    much more likely by chance and is bad has an unbounded loss. low < high lets unlikely tokens grow (Yu et al. 2025, section 3.1).

    Args:
        dual_clip: c > 1; infinite for none.
        clamp_log_ratio: log rho is kept within +- this, and has no gradient outside; infinite for none.

    Returns:
        the loss [], and [3] sums to report, without gradient: tokens whose ratio is outside the clip, |rho - 1|, rho - 1 - log rho.
    """
    log_ratio = ((logprobs - old_logprobs) * mask).clamp(-clamp_log_ratio, clamp_log_ratio)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip < math.inf:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    report = torch.stack([(x * mask).sum() for x in ((ratio != clipped).to(ratio.dtype), (ratio - 1.0).abs(), ratio - 1.0 - log_ratio)])
    return -(gain * mask).sum(), report.detach()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_value: float) -> tuple[Tensor, dict[str, Tensor]]:
    """1/2 sum max((V - R)^2, (clip(V, V_old +- eps) - R)^2) (the clipped form of Schulman et al.'s own implementation).

    Args:
        all [b, P].
    """
    loss, (value_error,) = ppo_value_loss(values, old_values, returns, mask, clip_value)
    return loss, {"value_loss": loss.detach(), "value_error": value_error}
