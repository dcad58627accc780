"""The one record that travels between PPO's phases.

Legend: n rows of a rollout; T tokens of a row (prompt, response, padding on the right); P = T - 1 predictions, where
prediction i is about token i + 1 and its value is that of the state before this token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Rollout:
    """Responses to a batch of prompts."""

    tokens: Tensor
    """[n, T] int64"""
    prompt_lengths: Tensor
    """[n] int64"""
    lengths: Tensor
    """[n] int64, prompt and response together"""
    stopped: Tensor
    """[n] bool, False where the response was cut"""
    sampler_logprobs: Tensor | None = None
    """[n, P] of the sampled tokens, as the sampler saw them; 0 outside the response"""

    @property
    def response_lengths(self) -> Tensor:
        """[n] float32, the stop token included."""
        return (self.lengths - self.prompt_lengths).float()

    @property
    def response_mask(self) -> Tensor:
        """[n, P] float32, 1 where the predicted token belongs to the response (its stop token included)."""
        predicted = torch.arange(1, self.tokens.size(1), device=self.tokens.device)
        return ((predicted >= self.prompt_lengths[:, None]) & (predicted < self.lengths[:, None])).float()


@dataclass(frozen=True)
class Experience:
    """A scored rollout, equal on every rank of the job."""

    rollout: Rollout
    mask: Tensor
    """[n, P] the rollout's response_mask"""
    logprobs: Tensor
    """[n, P] of the policy that sampled, under logits / temperature"""
    reference_logprobs: Tensor
    """[n, P]"""
    scores: Tensor
    """[n] normalised reward-model scores and what the reward function adds, before running normalisation, clipping and penalties"""
    advantages: Tensor
    """[n, P]"""
    values: Tensor | None
    """[n, P] of the value model before the update; None where there is none"""
    returns: Tensor | None
    """[n, P] targets of the value model"""
    sampler_gap: float | None = None
    """Largest difference between the sampler's log-probability of a token and the trainer's; None where the trainer was not asked"""

    @property
    def kl(self) -> Tensor:
        """[n] sum over the response of log pi - log pi_ref, an unbiased estimate of the KL in nats a response."""
        return ((self.logprobs - self.reference_logprobs) * self.mask).sum(dim=1)


def predicting(mask: Tensor) -> Tensor:
    """Places [n, T] bool whose output is about a response token, for a mask [n, P]: a model's head is spared all others."""
    return F.pad(mask.bool(), (0, 1))


def spread(outputs: Tensor, mask: Tensor) -> Tensor:
    """What a model said at those places alone, [1, places], back where it belongs: [n, P], 0 elsewhere."""
    return torch.zeros_like(mask, dtype=outputs.dtype).masked_scatter(mask.bool(), outputs)
