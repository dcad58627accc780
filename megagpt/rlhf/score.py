"""A rollout -> log-probabilities, scores and values from all models, then the experience that PPO trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.config.schema import PpoConfig, RlhfConfig
from megagpt.engine.schedule_run import infer
from megagpt.model.token_loss import response_logprobs
from megagpt.parallel.route import replica_rows, share_rows
from megagpt.rlhf.advantage import final_rewards, generalised_advantages, grpo_advantages, rloo_advantages, token_rewards, whiten
from megagpt.rlhf.experience import Experience, Rollout
from megagpt.rlhf.four_models import FourModels
from megagpt.rlhf.kl import kl_estimate
from megagpt.rlhf.reward_function import require_finite
from megagpt.rlhf.running import RunningMoments


@dataclass(frozen=True)
class ScoringBatch:
    """Rows of a rollout in one forward pass."""

    tokens: Tensor
    """[b, T]"""
    lengths: Tensor
    """[b]"""
    prompt_lengths: Tensor
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
            ScoringBatch(*(x[i : i + micro_batch_size] for x in (rollout.tokens, rollout.lengths, rollout.prompt_lengths)))
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
    """Normalised score of each row, read where the reward model was trained to be read, and what the reward function says; [n].

    Raises:
        RewardError: a score that is not finite, on every rank.
    """
    scores = torch.zeros(rollout.tokens.size(0), device=device)
    if "reward" in models.grids:
        scores = (_row_scalars(models, "reward", rollout, config, device) - models.reward_mean) / models.reward_std
    if models.reward_function is not None:
        scores = scores + models.reward_function(rollout)
    require_finite(scores, rollout, models.tokenizer)
    return scores


def held_out_scores(models: FourModels, rollout: Rollout, config: RlhfConfig, device: torch.device) -> Tensor | None:
    """What the held-out reward model says of each row, on its own scale, [n]; None where there is none."""
    if "held_out" not in models.grids:
        return None
    return (_row_scalars(models, "held_out", rollout, config, device) - models.held_out_mean) / models.held_out_std


def _row_scalars(models: FourModels, role: str, rollout: Rollout, config: RlhfConfig, device: torch.device) -> Tensor:
    """A scalar head's output at each row's last token, or its mean over the response, as the model was trained; [n]."""
    pooling = models.pooling.get(role, "last")

    def read(scalars: Tensor, batch: ScoringBatch) -> Tensor:
        return read_scores(scalars, batch, pooling)

    if role in models.handovers:
        rollout = models.handovers[role](rollout)
    return score_rows(models, role, rollout, config.ppo.micro_batch_size, read, 1, device).squeeze(1)


def read_scores(scalars: Tensor, batch: ScoringBatch, pooling: str) -> Tensor:
    """[b, T] -> [b, 1]"""
    if pooling == "last":
        return scalars.gather(1, batch.lengths[:, None] - 1)
    places = torch.arange(scalars.size(1), device=scalars.device)
    of_response = (places >= batch.prompt_lengths[:, None]) & (places < batch.lengths[:, None])
    return (scalars * of_response).sum(dim=1, keepdim=True) / of_response.sum(dim=1, keepdim=True).clamp(min=1)


def score(
    models: FourModels, rollout: Rollout, config: RlhfConfig, kl_coefficient: float, device: torch.device, running: RunningMoments | None = None
) -> Experience:
    """All models over the rollout. Models on disjoint ranks compute at the same time; results meet in `share_rows`.

    Args:
        running: of the scores so far, where they are normalised by it; takes these in first.
    """
    ppo, mask, values = config.ppo, rollout.response_mask, None
    scores = reward_scores(models, rollout, config, device)
    if "value" in models.grids:
        width = rollout.tokens.size(1) - 1
        values = score_rows(models, "value", rollout, ppo.micro_batch_size, lambda scalars, batch: scalars[:, :-1], width, device)
    reference_logprobs = language_model_logprobs(models, "reference", rollout, config, device)
    logprobs, sampler_gap = policy_logprobs(models, rollout, config, device)
    shaped = scores
    if running is not None:
        running.update(scores)
        shaped = running.normalise(scores)
    final = final_rewards(
        shaped, rollout.stopped, rollout.response_lengths,
        clip_reward=ppo.clip_reward, missing_eos_penalty=ppo.missing_eos_penalty, length_penalty=ppo.length_penalty,
    )
    kl = kl_estimate(config.kl.estimator, logprobs, reference_logprobs, mask)
    rewards = token_rewards(final, kl, mask, kl_coefficient=kl_coefficient if config.kl.where == "reward" else 0.0)
    advantages, returns = advantages_of(rewards, values, mask, ppo)
    return Experience(rollout, mask, logprobs, reference_logprobs, scores, advantages, values, returns, sampler_gap)


def advantages_of(rewards: Tensor, values: Tensor | None, mask: Tensor, ppo: PpoConfig) -> tuple[Tensor, Tensor | None]:
    """Advantages and the value model's targets, [n, P]; the kind that the configuration names."""
    if ppo.advantage == "grpo":
        return grpo_advantages(rewards, mask, ppo.samples_per_prompt, divide_by_std=ppo.grpo_divide_by_std), None
    if ppo.advantage == "rloo":
        return rloo_advantages(rewards, mask, ppo.samples_per_prompt), None
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)
    return (whiten(advantages, mask) if ppo.whiten_advantages else advantages), returns
