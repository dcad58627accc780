"""Reward, KL and length of the policy on prompts kept apart, and what it says there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megagpt.config.schema import RlhfConfig
from megagpt.data.prompts import EncodedPrompt
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.four_models import FourModels
from megagpt.rlhf.rollout import Questions
from megagpt.rlhf.score import collect, held_out_scores, policy_logprobs, reward_scores
from megagpt.runtime.timeline import Timeline


@dataclass(frozen=True)
class Evaluation:
    """Scores are normalised as in training."""

    reward: float
    reward_std: float
    kl: float
    """nats a response"""
    length: float
    """tokens a response"""
    stopped: float
    """share of responses that ended by themselves"""
    rollout: Rollout
    scores: torch.Tensor
    kls: torch.Tensor
    """[prompts] nats"""
    held_out_scores: torch.Tensor | None = None
    """by a reward model that the policy is not trained on, where there is one"""

    @property
    def held_out_reward(self) -> float | None:
        return None if self.held_out_scores is None else float(self.held_out_scores.mean())

    @property
    def judged(self) -> list[float]:
        """Score of each answer by the held-out reward model, else by the one that is trained on."""
        return (self.scores if self.held_out_scores is None else self.held_out_scores).tolist()

    def metrics(self) -> dict[str, Any]:
        names = ("reward", "reward_std", "kl", "length", "stopped", "held_out_reward")
        return {f"eval_{name}": value for name in names if (value := getattr(self, name)) is not None}


def win_rate(scores: Sequence[float], others: Sequence[float]) -> float:
    """Share of prompts on which the first answer scores higher; a draw counts half."""
    return sum(0.5 * ((a > b) + (a >= b)) for a, b in zip(scores, others, strict=True)) / len(scores)


def reward_gain(opening: Mapping[str, Any], closing: Mapping[str, Any]) -> float:
    """How far the mean score rose between two evaluations, in standard deviations of the first one's scores; in units of the score where these
    are all equal, as a rule's are that nothing satisfies yet."""
    return (closing["reward"] - opening["reward"]) / (opening["reward_std"] or 1.0)


def evaluate(
    models: FourModels, config: RlhfConfig, prompts: list[EncodedPrompt], stop_ids: tuple[int, ...], device: torch.device, timeline: Timeline
) -> Evaluation:
    """Sample once from every prompt, with randomness of its own, the same before and after training."""
    questions = Questions([p.tokens for p in prompts], [p.number for p in prompts], [0] * len(prompts), stop_ids, seed=config.run.seed + 1)
    readings = collect(models, config, questions, ("reward", "held_out", "reference", "policy"), device, timeline)
    rollout = readings.rollout
    scores, held_out = reward_scores(models, readings), held_out_scores(models, readings)
    difference = policy_logprobs(readings)[0] - readings.found["reference"]
    kl = (difference * rollout.response_mask).sum(dim=1)
    return Evaluation(
        reward=float(scores.mean()), reward_std=float(scores.std(correction=min(1, scores.numel() - 1))), kl=float(kl.mean()),
        length=float((rollout.lengths - rollout.prompt_lengths).float().mean()), stopped=float(rollout.stopped.float().mean()),
        rollout=rollout, scores=scores, kls=kl, held_out_scores=held_out,
    )
