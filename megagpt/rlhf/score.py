"""A rollout -> log-probabilities, scores and values from all four models, then the experience that PPO trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.config.schema import RlhfConfig
from megagpt.engine.schedule_run import infer
from megagpt.model.token_loss import response_logprobs
from megagpt.parallel.route import replica_rows, share_rows
from megagpt.rlhf.advantage import generalised_advantages, token_rewards, whiten
from megagpt.rlhf.experience import Experience, Rollout
from megagpt.rlhf.four_models import FourModels


@dataclass(frozen=True)
class ScoringBatch:
    """Rows of a rollout in one forward pass."""

    tokens: Tensor
    """[b, T]"""
    lengths: Tensor
    """[b]"""


def score_rows(
    models: FourModels, role: str, rollout: Rollout, micro_batch_size: int, read: Callable[[Tensor, ScoringBatch], Tensor],
    width: int, device: torch.device,
) -> Tensor:
    """One model over all rows of a rollout, each replica over its own; the result on every rank of the job.

    Args:
        read: (output of the last stage, batch) -> [b, width].

    Returns:
        [n, width] float32
    """
    grid, groups = models.grids[role], models.groups[role]
    num_rows, local = rollout.tokens.size(0), None
    if groups is not None:
        rows = replica_rows(num_rows, grid, groups.coordinates.dp)
        batches = [
            ScoringBatch(rollout.tokens[i : i + micro_batch_size], rollout.lengths[i : i + micro_batch_size])
            for i in range(rows.start, rows.stop, micro_batch_size)
        ]
        with models.scope(role):
            outputs = infer(models.module(role), batches, read, rows=micro_batch_size, length=rollout.tokens.size(1))
        local = torch.cat(outputs) if outputs else None
    return share_rows(local, grid, (num_rows, width), torch.float32, device)


def language_model_logprobs(models: FourModels, role: str, rollout: Rollout, config: RlhfConfig, device: torch.device) -> Tensor:
    """Log-probability of every next token under logits / temperature; [n, P]."""
    model = models.module(role)

    def read(logits: Tensor, batch: ScoringBatch) -> Tensor:
        return response_logprobs(model, logits[:, :-1], batch.tokens[:, 1:], config.ppo.temperature)

    return score_rows(models, role, rollout, config.ppo.micro_batch_size, read, rollout.tokens.size(1) - 1, device)


def policy_logprobs(models: FourModels, rollout: Rollout, config: RlhfConfig, device: torch.device) -> tuple[Tensor, float]:
    """Of the policy before the update, [n, P], from whom the configuration says; and the largest gap between sampler and trainer.

    The trainer scores the whole rollout, or one microbatch of each replica where only the gap is asked of it.
    """
    scored = rollout
    if config.ppo.logprobs == "sampler":
        scored = rollout.first(config.ppo.micro_batch_size * models.grids["policy"].dp)
    logprobs = language_model_logprobs(models, "policy", scored, config, device)
    gap = float(((scored.sampler_logprobs - logprobs) * scored.response_mask).abs().max())
    return (rollout.sampler_logprobs if config.ppo.logprobs == "sampler" else logprobs), gap


def reward_scores(models: FourModels, rollout: Rollout, config: RlhfConfig, device: torch.device) -> Tensor:
    """Normalised score of each row, read at its last token; [n]."""

    def read(scalars: Tensor, batch: ScoringBatch) -> Tensor:
        return scalars.gather(1, batch.lengths[:, None] - 1)

    raw = score_rows(models, "reward", rollout, config.ppo.micro_batch_size, read, 1, device).squeeze(1)
    return (raw - models.reward_mean) / models.reward_std


def score(models: FourModels, rollout: Rollout, config: RlhfConfig, kl_coefficient: float, device: torch.device) -> Experience:
    """All four models over the rollout. Models on disjoint ranks compute at the same time; results meet in `share_rows`."""
    ppo, mask = config.ppo, rollout.response_mask
    width = rollout.tokens.size(1) - 1
    scores = reward_scores(models, rollout, config, device)
    values = score_rows(models, "value", rollout, ppo.micro_batch_size, lambda scalars, batch: scalars[:, :-1], width, device)
    reference_logprobs = language_model_logprobs(models, "reference", rollout, config, device)
    logprobs, sampler_gap = policy_logprobs(models, rollout, config, device)
    rewards = token_rewards(
        scores, rollout.stopped, logprobs, reference_logprobs, mask,
        kl_coefficient=kl_coefficient, clip_reward=ppo.clip_reward, missing_eos_penalty=ppo.missing_eos_penalty,
    )
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)
    if ppo.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Experience(rollout, mask, logprobs, reference_logprobs, values, scores, advantages, returns, sampler_gap)
