"""PPO's two losses, as sums over response tokens; the caller divides by the global number of response tokens.

The formulas step by step, in plain PyTorch: `kernels/reference.py`, ppo_policy_loss and ppo_value_loss.
"""

from __future__ import annotations

from torch import Tensor

from megagpt.kernels.ppo_loss import ppo_policy_loss, ppo_value_loss


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_ratio: float) -> tuple[Tensor, dict[str, Tensor]]:
    """- sum min(rho A, clip(rho, 1 - eps, 1 + eps) A),  rho = pi / pi_old (Schulman et al. 2017, eq. 7).

    Args:
        all [b, P]; mask 1 on response tokens.

    Returns:
        the loss, and sums to report: the clipped tokens, the ratio's deviation from 1, k3's estimate of KL(old || new).
    """
    loss, (clipped, ratio_error, update_kl) = ppo_policy_loss(logprobs, old_logprobs, advantages, mask, clip_ratio)
    return loss, {"policy_loss": loss.detach(), "clip_fraction": clipped, "ratio_error": ratio_error, "update_kl": update_kl}


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_value: float) -> tuple[Tensor, dict[str, Tensor]]:
    """1/2 sum max((V - R)^2, (clip(V, V_old +- eps) - R)^2) (the clipped form of Schulman et al.'s own implementation).

    Args:
        all [b, P].
    """
    loss, (value_error,) = ppo_value_loss(values, old_values, returns, mask, clip_value)
    return loss, {"value_loss": loss.detach(), "value_error": value_error}
