"""Rewards, advantages and returns of a rollout; pure functions. Shapes as in `experience.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels.gae import gae


def token_rewards(
    scores: Tensor, stopped: Tensor, logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor, *,
    kl_coefficient: float, clip_reward: float, missing_eos_penalty: float,
) -> Tensor:
    """r_t = -beta (log pi - log pi_ref) on each response token, plus the score on the last (Ouyang et al. 2022, eq. 2).

    Args:
        scores: [n]; stopped: [n]; the others [n, P].

    Returns:
        [n, P]
    """
    rewards = -kl_coefficient * (logprobs - reference_logprobs) * mask
    final = scores.clamp(-clip_reward, clip_reward) - missing_eos_penalty * (~stopped).float()
    return rewards.scatter_add(1, _last(mask)[:, None], final[:, None])


def _last(mask: Tensor) -> Tensor:
    """Index of the last response prediction of each row, [n]."""
    return (mask * torch.arange(mask.size(1), device=mask.device)).argmax(dim=1)


def generalised_advantages(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lambda A_{t+1};  R_t = A_t + V_t (Schulman et al. 2016, eq. 16).

    The value after the last response token is 0: the episode ends there, whether by a stop token or by a cut.

    Returns:
        advantages and returns, [n, P], 0 outside the response.
    """
    return gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all masked entries of the whole rollout; 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask
