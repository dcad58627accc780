"""Policy, reference, reward and value, each on its own grid: who trains, who is frozen, which of them this rank holds."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megagpt.checkpoint.load import Checkpoint, load_model
from megagpt.config.schema import RlhfConfig
from megagpt.engine.build import Engine
from megagpt.engine.deepspeed_scope import join_world
from megagpt.engine.sharding import useful_zero_stage
from megagpt.model.gpt import GPT
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import Groups, build_groups
from megagpt.rlhf.ema import WeightAverage
from megagpt.rlhf.reward_function import RewardFunction, load_reward_function
from megagpt.runtime.log import say
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class FourModels:
    """All roles of the job; the entries of those that it lacks, or that this rank does not hold, are None."""

    grids: dict[str, Grid]
    groups: dict[str, Groups | None]
    policy: Engine | None
    value: Engine | None
    reference: GPT | None
    reward: GPT | None
    average: WeightAverage | None
    """Of the policy's weights, where it is kept."""
    reward_mean: float
    """Mean raw score of the best-ranked held-out answers …"""
    reward_std: float
    """… and its standard deviation: scores are reported as (raw - mean) / std."""
    reward_function: RewardFunction | None
    """What is added to these scores, or stands in for them."""
    tokenizer: Tokenizer
    held_out: GPT | None = None
    """A reward model that nothing is trained on, where the reward model lives (else where the reference does) …"""
    held_out_mean: float = 0.0
    held_out_std: float = 1.0
    """… and its scale."""

    def module(self, role: str) -> GPT | None:
        """The bare model of a role."""
        held = getattr(self, role)
        return held.model if isinstance(held, Engine) else held

    def scope(self, role: str) -> contextlib.AbstractContextManager:
        """Where forward passes of a role happen."""
        held = getattr(self, role)
        return held.scope() if isinstance(held, Engine) else contextlib.nullcontext()


def build_four_models(
    config: RlhfConfig, grids: dict[str, Grid], policy: Checkpoint, reward: Checkpoint | None, device: torch.device,
    held_out: Checkpoint | None = None,
) -> FourModels:
    """Load every model that this rank holds. Collective over the world: groups are made for all grids, in their order.

    The reference is the policy's start, the value model starts from the reward model (from the policy, with a new head, where there is none).
    None of them has dropout: a mask would make the first ratio of the update differ from 1.
    """
    join_world()  # on every rank, also on one that holds frozen models only
    groups = {role: build_groups(grids[role], config.run.timeout_seconds) for role in grids}
    for role in grids:
        say(f"[rlhf] {role:<9} {grids[role]}")
    if held_out is not None:
        beside = "reward" if "reward" in grids else "reference"
        grids, groups = grids | {"held_out": grids[beside]}, groups | {"held_out": groups[beside]}

    def load(role: str) -> GPT | None:
        if groups.get(role) is None:
            return None
        checkpoint = held_out if role == "held_out" else policy if role in ("policy", "reference") or reward is None else reward
        model = load_model(checkpoint, groups[role], device, scalar_head=role not in ("policy", "reference"), dropout=0.0, seed=config.run.seed)
        return model if role in ("policy", "value") else model.eval().requires_grad_(False)

    def train(role: str, optimizer) -> Engine | None:
        model = load(role)
        return None if model is None else Engine(model, optimizer, useful_zero_stage(getattr(config.placement, role).zero, grids[role]))

    tokenizer, function, mean, std = policy.tokenizer(), None, 0.0, 1.0
    if config.reward_function is not None:
        function = RewardFunction(config.reward_function, load_reward_function(config.reward_function), tokenizer)
    if reward is not None and config.ppo.normalise_reward != "none":
        mean, std = reward.state["reward_mean"], reward.state["reward_std"]

    learner, decay = train("policy", config.policy_optimizer), config.ppo.ema_decay
    models = FourModels(
        grids, groups, policy=learner, value=train("value", config.value_optimizer),
        reference=load("reference"), reward=load("reward"),
        average=None if learner is None or decay is None else WeightAverage(learner, decay),
        reward_mean=mean, reward_std=std, reward_function=function, tokenizer=tokenizer, held_out=load("held_out"),
        **({} if held_out is None else {"held_out_mean": held_out.state["reward_mean"], "held_out_std": held_out.state["reward_std"]}),
    )
    dist.barrier()
    return models
