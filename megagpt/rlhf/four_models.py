"""Policy, reference, reward and value, each on its own grid: who trains, who is frozen, which of them this rank holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from megagpt.checkpoint.load import Checkpoint, load_model
from megagpt.config.schema import RlhfConfig
from megagpt.data.prompts import EncodedPrompt
from megagpt.engine.build import Engine
from megagpt.engine.deepspeed_scope import join_world
from megagpt.engine.offload import OffloadedWeights
from megagpt.engine.sharding import useful_zero_stage
from megagpt.model.gpt import GPT
from megagpt.model.layout import DTYPES
from megagpt.model.lora import adapters_off, describe
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import Groups, build_groups
from megagpt.parallel.placement import TRAINED, reference_is_policy
from megagpt.rlhf.ema import WeightAverage
from megagpt.rlhf.handover import Handover
from megagpt.rlhf.reward_function import RewardFunction, load_reward_function
from megagpt.rlhf.weight_view import WeightView
from megagpt.runtime.distributed import barrier
from megagpt.runtime.log import say
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Starts:
    """The checkpoints that the models of a job start from."""

    policy: Checkpoint
    reward: Checkpoint | None
    held_out: Checkpoint | None = None

    def of(self, role: str) -> Checkpoint:
        """The value model starts from the reward model, its head on the scale of the normalised score: from the policy, with a new head, where there
        is none or it reads other tokens."""
        if role == "held_out":
            return self.held_out
        if role in ("policy", "rollout", "reference") or self.reward is None or (role == "value" and self.is_foreign(self.reward)):
            return self.policy
        return self.reward

    def is_foreign(self, judge: Checkpoint) -> bool:
        """Was it trained with another tokenizer than the policy?"""
        return judge.state["tokenizer_hash"] != self.policy.state["tokenizer_hash"]

    @property
    def judges(self) -> dict[str, Checkpoint]:
        return {role: judge for role, judge in (("reward", self.reward), ("held_out", self.held_out)) if judge is not None}


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
    handovers: Mapping[str, Handover] = field(default_factory=dict)
    """For each judge (`reward`, `held_out`) with another tokenizer than the policy."""
    pooling: Mapping[str, str] = field(default_factory=dict)
    """For each judge, where its scores are read (`RewardConfig.pooling`)."""
    offloaded: Mapping[str, OffloadedWeights] = field(default_factory=dict)
    """For each frozen model of this rank whose weights wait in host memory."""
    reference_is_policy: bool = False
    """With its adapters switched off; `reference` is None on every rank then."""
    rollout: GPT | None = None
    """The policy's weights in the layout that writes responses, where it has one of its own."""
    view: WeightView | None = None
    """Keeps them equal to the policy's."""

    @property
    def writer(self) -> str:
        """The role that writes responses."""
        return "policy" if self.view is None else "rollout"

    def module(self, role: str) -> GPT | None:
        """The bare model of a role."""
        held = self._held(role)
        return held.model if isinstance(held, Engine) else held

    @contextlib.contextmanager
    def scope(self, role: str) -> Iterator[None]:
        """Where forward passes of a role happen."""
        held = self._held(role)
        with contextlib.ExitStack() as stack:
            if role in self.offloaded:
                stack.enter_context(self.offloaded[role].present())
            if isinstance(held, Engine):
                stack.enter_context(held.scope())
                if role == "reference":
                    stack.enter_context(adapters_off(held.model))
            yield

    def _held(self, role: str) -> Engine | GPT | None:
        return self.policy if role == "reference" and self.reference_is_policy else getattr(self, role)


def build_four_models(
    config: RlhfConfig, grids: dict[str, Grid], starts: Starts, device: torch.device, prompts: Iterable[EncodedPrompt] = ()
) -> FourModels:
    """Load every model that this rank holds. Collective over the world: groups are made for all grids, in their order.

    None of them has dropout: a mask would make the first ratio of the update differ from 1.

    Args:
        prompts: all that the policy will be asked, for judges that read other tokens.
    """
    reward, held_out = starts.reward, starts.held_out
    join_world()  # on every rank, also on one that holds frozen models only
    groups = {role: build_groups(grids[role], config.run.timeout_seconds) for role in grids}
    adapters, shares_reference = {"policy": config.lora, "rollout": config.lora, "value": config.value_lora}, reference_is_policy(config, grids)
    for role in grids:
        note = describe(ModelShape(starts.of(role).model_config, adapters.get(role)), scalar_head=role == "value")
        say(f"[rlhf] {role:<9} {grids[role]}{', the policy without its adapters' if role == 'reference' and shares_reference else note}")
    roles = {role: config.placement.policy if role == "rollout" else getattr(config.placement, role) for role in grids}
    if held_out is not None:
        beside = "reward" if "reward" in grids else "reference"
        grids, groups, roles = (of | {"held_out": of[beside]} for of in (grids, groups, roles))

    mean, std = 0.0, 1.0
    if reward is not None and config.ppo.normalise_reward != "none":
        mean, std = reward.state["reward_mean"], reward.state["reward_std"]

    def load(role: str) -> GPT | None:
        if groups.get(role) is None or (role == "reference" and shares_reference):
            return None
        model = load_model(
            starts.of(role), groups[role], device, scalar_head=role in ("reward", "held_out", "value"), dropout=0.0, seed=config.run.seed,
            lora=adapters.get(role), dtype=DTYPES[roles[role].precision],
        )
        if role == "value" and starts.of(role) is reward:
            _normalise_head(model, mean, std)
        return model if role in TRAINED else model.eval().requires_grad_(False)

    def train(role: str, optimizer) -> Engine | None:
        model, where = load(role), roles.get(role)
        if model is None:
            return None
        zero_stage = useful_zero_stage(where.zero, grids[role], where.precision, where.offload)
        return Engine(model, optimizer, zero_stage, loss_scale=where.loss_scale, offload_optimizer=where.offload)

    tokenizer, function = starts.policy.tokenizer(), None
    if config.reward_function is not None:
        function = RewardFunction(config.reward_function, load_reward_function(config.reward_function), tokenizer)

    prompts = list(prompts)
    handovers = {
        role: Handover(tokenizer, judge.tokenizer(), prompts, judge.model_config.max_sequence_length)
        for role, judge in starts.judges.items() if starts.is_foreign(judge)
    }  # fmt: skip
    for role in handovers:
        say(f"[rlhf] {role}: has another tokenizer than the policy; conversations go to it as text")
    learner, decay = train("policy", config.policy_optimizer), config.ppo.ema_decay
    writer = load("rollout")
    value, frozen = train("value", config.value_optimizer), {role: load(role) for role in ("reference", "reward", "held_out")}
    models = FourModels(
        grids, groups, policy=learner, value=value,
        **frozen, offloaded={role: OffloadedWeights(model) for role, model in frozen.items() if model is not None and roles[role].offload == "cpu"},
        average=None if learner is None or decay is None else WeightAverage(learner, decay),
        reward_mean=mean, reward_std=std, reward_function=function, tokenizer=tokenizer, handovers=handovers, reference_is_policy=shares_reference,
        rollout=writer, view=WeightView(grids["policy"], grids["rollout"], learner, writer) if "rollout" in grids else None,
        pooling={role: judge.state.get("pooling", "last") for role, judge in starts.judges.items()},
        **({} if held_out is None else {"held_out_mean": held_out.state["reward_mean"], "held_out_std": held_out.state["reward_std"]}),
    )
    barrier()
    return models


@torch.no_grad()
def _normalise_head(model: GPT, mean: float, std: float) -> None:
    """Let a reward model's head say (score - mean) / std, which the value model is to predict. On the raw scale its first values were off by the
    mean, so that the first advantages punished the end of every response, and clip_value keeps the way back long."""
    if model.post_process:
        model.scalar_head.bias.sub_(mean)
        for parameter in model.scalar_head.parameters():
            parameter.div_(std)
