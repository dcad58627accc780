"""Rewards, advantages and returns of a rollout; pure functions. Shapes as in `experience.py`.

All of them see the whole rollout, which every rank of the job has: means and deviations are over all ranks without another word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megagpt.kernels.gae import gae


def final_rewards(
    scores: Tensor, stopped: Tensor, lengths: Tensor, *, clip_reward: float, missing_eos_penalty: float, length_penalty: float
) -> Tensor:
    """What a whole response earns: its clipped score, less the penalties for not ending and for each of its tokens; [n].

    Args:
        all [n]; lengths in response tokens.
    """
    return scores.clamp(-clip_reward, clip_reward) - missing_eos_penalty * (~stopped).float() - length_penalty * lengths


def token_rewards(final: Tensor, kl: Tensor, mask: Tensor, *, kl_coefficient: float) -> Tensor:
    """r_t = -beta KL_t on each response token, plus the whole response's reward on the last (Ouyang et al. 2022, eq. 2).

    Args:
        final: [n]; kl: [n, P] estimates, 0 outside the response; mask: [n, P].

    Returns:
        [n, P]
    """
    return (-kl_coefficient * kl).scatter_add(1, _last(mask)[:, None], final[:, None])


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


def grpo_advantages(rewards: Tensor, mask: Tensor, samples_per_prompt: int, *, divide_by_std: bool, epsilon: float = 1e-6) -> Tensor:
    """(G_i - mean) / (std + epsilon) of the k responses to a prompt, on each of their tokens, G_i = sum_t r_t (Shao et al. 2024, section 4.1.2).

    std is the population's, and responses that earned the same have advantage 0. Without the division as in Liu et al. 2025.

    Args:
        rewards, mask: [n, P]; rows i k to (i + 1) k - 1 answer the same prompt.
    """
    group = _returns(rewards, mask, samples_per_prompt)
    advantages = group - group.mean(dim=1, keepdim=True)
    if divide_by_std:
        advantages = advantages / (group.std(dim=1, keepdim=True, correction=0) + epsilon)
    return advantages.reshape(-1, 1) * mask


def rloo_advantages(rewards: Tensor, mask: Tensor, samples_per_prompt: int) -> Tensor:
    """G_i less the mean of the other k - 1 responses to the same prompt, on each token: the leave-one-out baseline of Ahmadian et al. 2024
    (Kool et al. 2019), which does not depend on response i, so that the gradient stays unbiased. Arguments as in `grpo_advantages`."""
    group = _returns(rewards, mask, samples_per_prompt)
    others = (group.sum(dim=1, keepdim=True) - group) / (samples_per_prompt - 1)
    return (group - others).reshape(-1, 1) * mask


def _returns(rewards: Tensor, mask: Tensor, samples_per_prompt: int) -> Tensor:
    """[prompts, k] undiscounted return of each response."""
    return (rewards * mask).sum(dim=1).reshape(-1, samples_per_prompt)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all masked entries of the whole rollout; 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask
