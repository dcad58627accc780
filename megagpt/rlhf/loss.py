"""PPO's two losses, as sums over response tokens; the caller divides by the global number of response tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_ratio: float) -> tuple[Tensor, dict[str, Tensor]]:
    """- sum min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = pi / pi_old (Schulman et al. 2017, eq. 7).

    Args:
        all [b, P]; mask 1 on response tokens.

    Returns:
        the loss, and sums to report: the clipped tokens, the ratio's deviation from 1, k3's estimate of KL(old || new).
    """
    log_ratio = (logprobs - old_logprobs) * mask
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_ratio, 1.0 + clip_ratio)
    loss = -(torch.minimum(ratio * advantages, clipped * advantages) * mask).sum()
    with torch.no_grad():
        report = {
            "policy_loss": loss.detach(),
            "clip_fraction": ((ratio != clipped).float() * mask).sum(),
            "ratio_error": ((ratio - 1.0).abs() * mask).sum(),
            "update_kl": ((ratio - 1.0 - log_ratio) * mask).sum(),
        }
    return loss, report


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_value: float) -> tuple[Tensor, dict[str, Tensor]]:
    """1/2 sum max((V - R)^2, (clip(V, V_old +- eps) - R)^2) (the clipped form of Schulman et al.'s own implementation).

    Args:
        all [b, P].
    """
    clipped = old_values + (values - old_values).clamp(-clip_value, clip_value)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    loss = 0.5 * (errors * mask).sum()
    return loss, {"value_loss": loss.detach(), "value_error": ((values - returns).square() * mask).sum().detach()}
