"""A rollout -> log-probabilities, scores and values from all models, then the experience that PPO trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from megagpt.config.schema import PpoConfig, RlhfConfig
from megagpt.engine.schedule_run import infer
from megagpt.model.token_loss import response_logprobs
from megagpt.parallel.placement import rollout_parts
from megagpt.parallel.route import replica_rows, share_numbers, share_rows
from megagpt.rlhf.advantage import final_rewards, generalised_advantages, grpo_advantages, rloo_advantages, token_rewards, whiten
from megagpt.rlhf.experience import Experience, Rollout, predicting, spread
from megagpt.rlhf.four_models import FourModels
from megagpt.rlhf.kl import kl_estimate
from megagpt.rlhf.reward_function import RewardError, require_finite
from megagpt.rlhf.rollout import Questions, Writing
from megagpt.rlhf.running import RunningMoments
from megagpt.runtime.log import say_here
from megagpt.runtime.timeline import Timeline


@dataclass(frozen=True)
class ScoringBatch:
    """Rows of a rollout in one forward pass."""

    tokens: Tensor
    """[b, T]"""
    mask: Tensor
    """[b, P] of the responses"""
    only: Tensor
    """[b, T] bool, places that the model is asked about"""


@dataclass(frozen=True)
class Reading:
    """What is asked of a model about every row of a rollout."""

    role: str
    read: Callable[[Tensor, ScoringBatch], Tensor]
    """(output of the last stage at these places, [1, places, ...]; batch) -> [b, width]"""
    width: int
    places: Callable[[Rollout], Tensor]
    """[n, T] bool"""


@dataclass(frozen=True)
class Readings:
    """A rollout and what all models say of it, equal on every rank of the job."""

    rollout: Rollout
    found: dict[str, Tensor]
    """Role -> [n, width] float32"""
    rollout_seconds: float
    """That the policy wrote."""


def collect(
    models: FourModels, config: RlhfConfig, questions: Questions, roles: Iterable[str], device: torch.device, timeline: Timeline
) -> Readings:
    """Let the policy answer, and the models of these roles read what it wrote (the policy itself where the sampler is not believed).

    Models on other ranks than those that write read one part while the next is written. Each rank works through its own models and asks nothing of
    other grids; only when it is done does it meet the others, in the same order everywhere.
    """
    num_rows = len(questions.prompts)
    num_parts = rollout_parts(config, models.grids, num_rows)
    trusted = {"policy"} if config.ppo.logprobs == "sampler" else set()
    readings = [_reading(models, role, config) for role in roles if role in models.grids and role not in trusted]
    here: dict[str, list[Tensor]] = {reading.role: [] for reading in readings if models.groups[reading.role] is not None}
    writing = Writing(models, config, questions, num_parts, device, timeline)
    for number, part in writing.parts():
        for reading in readings:
            if reading.role in here:
                with timeline.span("score", reading.role, number):
                    here[reading.role] += _read(models, reading, part, config.ppo.micro_batch_size)
    found = {}
    with timeline.span("wait"):
        for reading in readings:
            grid, size = models.grids[reading.role], (num_rows, reading.width)
            local = torch.cat(outputs) if (outputs := here.get(reading.role)) else None
            parts = 1 if grid.ranks == models.grids[models.writer].ranks else num_parts
            found[reading.role] = share_rows(local, grid, size, torch.float32, device, parts)
        (seconds,) = share_numbers([writing.seconds], 1, models.grids[models.writer], device)
    return Readings(writing.rollout, found, seconds)


def _reading(models: FourModels, role: str, config: RlhfConfig) -> Reading:
    """Log-probability of every response token under logits / temperature, [n, P], 0 elsewhere; the value before each of them, likewise; or
    the score where the judge was trained to be read, [n, 1]."""
    predictions = config.prompts.max_prompt_length + config.prompts.max_response_length - 1
    if role == "value":
        return Reading(role, lambda values, batch: spread(values, batch.mask), predictions, _before_responses)
    if role in ("reward", "held_out"):
        return Reading(role, read_scores, 1, last_tokens if models.pooling.get(role, "last") == "last" else response_tokens)
    model = models.module(role)

    def logprobs(logits: Tensor, batch: ScoringBatch) -> Tensor:
        return spread(response_logprobs(model, logits, batch.tokens[:, 1:][batch.mask.bool()][None], config.ppo.temperature), batch.mask)

    return Reading(role, logprobs, predictions, _before_responses)


def _read(models: FourModels, reading: Reading, part: Rollout, micro_batch_size: int) -> list[Tensor]:
    """One model over this replica's rows of a part: [b, width] of every microbatch, on ranks of its last stage."""
    groups, role = models.groups[reading.role], reading.role
    rows = replica_rows(part.tokens.size(0), groups.grid, groups.coordinates.dp)
    if role in models.handovers:
        try:
            part = models.handovers[role](part)
        except RewardError as error:  # raised here alone it would leave the other ranks waiting; a score that is not a number stops all of them
            if dist.get_rank() == groups.grid.ranks[0]:
                say_here(str(error))
            return [torch.full((len(rows), reading.width), torch.nan, device=part.tokens.device)]
    whole = part.tokens, part.response_mask, reading.places(part)
    batches = [
        ScoringBatch(*(each[i : i + micro_batch_size] for each in whole))
        for i in range(rows.start, rows.stop, micro_batch_size)
    ]
    with models.scope(role):
        return infer(models.module(role), batches, reading.read, rows=micro_batch_size, length=part.tokens.size(1))


def read_scores(scalars: Tensor, batch: ScoringBatch) -> Tensor:
    """Mean of a scalar head's output over the places of each row that it was asked about, [1, places] -> [b, 1]; of one place, what is there."""
    sums = torch.zeros(batch.only.shape, dtype=scalars.dtype, device=scalars.device).masked_scatter(batch.only, scalars).sum(dim=1, keepdim=True)
    return sums / batch.only.sum(dim=1, keepdim=True).clamp(min=1)


def last_tokens(part: Rollout) -> Tensor:
    """Each row's last token, where a judge reads by default; [n, T] bool."""
    return torch.arange(part.tokens.size(1), device=part.tokens.device) == part.lengths[:, None] - 1


def response_tokens(part: Rollout) -> Tensor:
    """[n, T] bool"""
    return F.pad(part.response_mask.bool(), (1, 0))


def _before_responses(part: Rollout) -> Tensor:
    return predicting(part.response_mask)


def reward_scores(models: FourModels, readings: Readings) -> Tensor:
    """Normalised score of each row, read where the reward model was trained to be read, and what the reward function says; [n].

    Raises:
        RewardError: a score that is not finite, on every rank.
    """
    rollout = readings.rollout
    scores = torch.zeros(rollout.tokens.size(0), device=rollout.tokens.device)
    if "reward" in readings.found:
        scores = (readings.found["reward"].squeeze(1) - models.reward_mean) / models.reward_std
    if models.reward_function is not None:
        scores = scores + models.reward_function(rollout)
    require_finite(scores, rollout, models.tokenizer)
    return scores


def held_out_scores(models: FourModels, readings: Readings) -> Tensor | None:
    """What the held-out reward model says of each row, on its own scale, [n]; None where there is none.

    Raises:
        RewardError: a score that is not finite, on every rank.
    """
    if "held_out" not in readings.found:
        return None
    scores = (readings.found["held_out"].squeeze(1) - models.held_out_mean) / models.held_out_std
    require_finite(scores, readings.rollout, models.tokenizer)
    return scores


def policy_logprobs(readings: Readings) -> tuple[Tensor, float | None]:
    """Of the policy before the update, [n, P]; and the largest gap between sampler and trainer.

    Where the sampler is believed, the policy has read nothing, and the update's first minibatch tells the gap: what the trainer thinks of it
    before it has moved.
    """
    rollout = readings.rollout
    if "policy" not in readings.found:
        return rollout.sampler_logprobs, None
    logprobs = readings.found["policy"]
    return logprobs, float(((rollout.sampler_logprobs - logprobs) * rollout.response_mask).abs().max())


def score(
    models: FourModels, readings: Readings, config: RlhfConfig, kl_coefficient: float, running: RunningMoments | None = None
) -> Experience:
    """What PPO trains on, computed alike on every rank from what all models said.

    Args:
        running: of the scores so far, where they are normalised by it; takes these in first.
    """
    ppo, rollout = config.ppo, readings.rollout
    mask, values, reference_logprobs = rollout.response_mask, readings.found.get("value"), readings.found["reference"]
    logprobs, sampler_gap = policy_logprobs(readings)
    scores = shaped = reward_scores(models, readings)
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
