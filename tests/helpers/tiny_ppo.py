"""A PPO job of toy models on whatever ranks: what it starts from, its configuration, and its trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import KlConfig, ModelConfig, PlacementConfig, PpoConfig, PromptsConfig, RlhfConfig, RoleConfig, RunConfig
from megagpt.data.prompts import load_prompts
from megagpt.parallel.placement import build_grids
from megagpt.rlhf.four_models import Starts, build_four_models
from megagpt.rlhf.ppo import Trainer
from megagpt.rlhf.pretrain_mix import open_pretrain_mix
from megagpt.runtime.distributed import World
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import prompts, toy_tokenizer, write_rows

OPTIMIZER = {"lr": 1e-2, "min_lr_ratio": 0.1, "eps": 1e-5, "clip_grad": 0.5}


def placement(policy: RoleConfig, reference: RoleConfig, reward: RoleConfig | None, value: RoleConfig | None) -> PlacementConfig:
    return PlacementConfig(policy=policy, reference=reference, reward=reward, value=value)


def on(*ranks: int, **layout: int | str) -> RoleConfig:
    return RoleConfig(ranks=list(ranks), **layout)


def ppo_folder(folder: Path) -> Path:
    """A run with an SFT model of one family and a reward model of the other, both trained with dropout; and prompts."""
    tokenizer = toy_tokenizer(folder / "tokenizer")
    run = RunConfig(name="toy", root=str(folder))
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 40, "vocab_size": tokenizer.vocab_size, "dropout": 0.1}
    make_checkpoint(run, "sft", ModelConfig(family="gpt", **sizes), tokenizer, seed=1)
    make_checkpoint(run, "reward", ModelConfig(family="llama", num_query_groups=2, **sizes), tokenizer, seed=2, reward_mean=0.05, reward_std=0.3)
    write_rows(folder / "prompts.jsonl", prompts())
    return folder


def foreign_reward(folder: Path) -> Path:
    """Checkpoint of a reward model that reads other tokens than the policy."""
    other = toy_tokenizer(folder / "tokenizer", vocab_size=331)
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 60, "vocab_size": other.vocab_size, "dropout": 0.1}
    return make_checkpoint(RunConfig(name="other", root=str(folder)), "reward", ModelConfig(**sizes), other, seed=3, reward_mean=0.0, reward_std=1.0)


def ppo_config(folder, where: PlacementConfig, kl: KlConfig = KlConfig(coefficient=0.1, target=0.5, horizon=40), **ppo) -> RlhfConfig:
    return RlhfConfig(
        run=RunConfig(name="toy", root=str(folder), seed=1),
        placement=where,
        policy_optimizer=OPTIMIZER,
        value_optimizer=OPTIMIZER,
        prompts=PromptsConfig(files=[str(folder / "prompts.jsonl")], max_prompt_length=32, max_response_length=8, eval_prompts=8),
        ppo=PpoConfig(
            **{
                "steps": 4, "rollout_batch_size": 16, "minibatch_size": 8, "micro_batch_size": 2, "epochs": 2, "temperature": 0.7,
                "missing_eos_penalty": 0.5, "ema_decay": 0.7,
            } | ppo
        ),
        kl=kl,
    )


@contextlib.contextmanager
def ppo_trainer(config: RlhfConfig) -> Iterator[Trainer]:
    """What `fit` builds before its loop."""
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    policy, reward = (where and Checkpoint.open(find_checkpoint(where, RunFolder(config.run))) for where in (config.policy, config.reward))
    assert all(checkpoint.model_config.dropout == 0.1 for checkpoint in (policy, reward) if checkpoint is not None)
    tokenizer = policy.tokenizer()
    asked = load_prompts(config.prompts, tokenizer).train
    models = build_four_models(config, build_grids(config.placement, world.size), Starts(policy, reward), world.device, asked)
    trainer = Trainer(config, world, models, tokenizer, asked, open_pretrain_mix(config, tokenizer))
    trainer.stop_ids = tuple(range(0, tokenizer.vocab_size, 7))  # random weights hardly ever say <|end|>; lengths shall differ
    yield trainer
    for engine in (models.policy, models.value):
        if engine is not None:
            engine.close()
