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
from megagpt.parallel.placement import ROLES
from megagpt.runtime.log import say


@dataclass(frozen=True)
class FourModels:
    """All four roles; the entries of roles that this rank does not hold are None."""

    grids: dict[str, Grid]
    groups: dict[str, Groups | None]
    policy: Engine | None
    value: Engine | None
    reference: GPT | None
    reward: GPT | None
    reward_mean: float
    """Mean raw score of the best-ranked held-out answers …"""
    reward_std: float
    """… and its standard deviation: scores are reported as (raw - mean) / std."""

    def module(self, role: str) -> GPT | None:
        """The bare model of a role."""
        held = getattr(self, role)
        return held.model if isinstance(held, Engine) else held

    def scope(self, role: str) -> contextlib.AbstractContextManager:
        """Where forward passes of a role happen."""
        held = getattr(self, role)
        return held.scope() if isinstance(held, Engine) else contextlib.nullcontext()


def build_four_models(config: RlhfConfig, grids: dict[str, Grid], policy: Checkpoint, reward: Checkpoint, device: torch.device) -> FourModels:
    """Load every model that this rank holds. Collective over the world: groups are made for all grids, in the order of ROLES.

    The reference is the policy's start, the value model starts from the reward model. None of them has dropout: a mask
    would make the first ratio of the update differ from 1.
    """
    join_world()  # on every rank, also on one that holds frozen models only
    groups = {role: build_groups(grids[role], config.run.timeout_seconds) for role in ROLES}
    for role in ROLES:
        say(f"[rlhf] {role:<9} {grids[role]}")

    def load(role: str) -> GPT | None:
        if groups[role] is None:
            return None
        checkpoint = policy if role in ("policy", "reference") else reward
        model = load_model(checkpoint, groups[role], device, scalar_head=role in ("reward", "value"), dropout=0.0)
        return model if role in ("policy", "value") else model.eval().requires_grad_(False)

    def train(role: str, optimizer) -> Engine | None:
        model = load(role)
        zero_stage = useful_zero_stage(getattr(config.placement, role).zero, grids[role])
        return None if model is None else Engine(model, optimizer, zero_stage)

    models = FourModels(
        grids, groups, policy=train("policy", config.policy_optimizer), value=train("value", config.value_optimizer),
        reference=load("reference"), reward=load("reward"),
        reward_mean=reward.state["reward_mean"], reward_std=reward.state["reward_std"],
    )
    dist.barrier()
    return models
