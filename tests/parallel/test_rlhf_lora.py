"""PPO on adapters: a reference that is the policy with its adapters switched off gives the run of a reference of its own, for less memory."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import (
    LoraConfig,
    ModelConfig,
    PlacementConfig,
    PpoConfig,
    PromptsConfig,
    RlhfConfig,
    RunConfig,
)
from megagpt.data.prompts import load_prompts
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.placement import build_grids
from megagpt.rlhf import four_models
from megagpt.rlhf.four_models import FourModels, Starts, build_four_models
from megagpt.rlhf.ppo import Trainer
from megagpt.runtime.distributed import World
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import plain_init
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_ppo import on
from tests.helpers.tiny_run import prompts, toy_tokenizer, write_rows
from tests.helpers.tolerance import KL_ABSOLUTE, LOG_PROBABILITY_ABSOLUTE, PARITY_RELATIVE, PPO_METRIC_RELATIVE, assert_tensors_close

OPTIMIZER = {"lr": 3e-2, "min_lr_ratio": 0.1, "eps": 1e-5, "clip_grad": 0.5}
POLICY_LORA, VALUE_LORA = LoraConfig(rank=4, alpha=8.0), LoraConfig(rank=2, alpha=2.0, targets=("qkv", "fc2"))


ONE_RANK = PlacementConfig(policy=on(0), reference=on(0), reward=on(0), value=on(0))
FOUR_RANKS = {
    "tp2_shared": PlacementConfig(policy=on(0, 1, tp=2), reference=on(0, 1, tp=2), reward=on(2, 3), value=on(2, 3, tp=2)),
    "pp2_zero2_shared": PlacementConfig(policy=on(2, 3, pp=2, zero=2), reference=on(2, 3, pp=2), reward=on(0, 1), value=on(0, 1, zero=2)),
    "same_ranks_cut_otherwise": PlacementConfig(policy=on(0, 1, zero=2), reference=on(0, 1, tp=2), reward=on(2, 3), value=on(2, 3, pp=2)),
    "zero3_shared": PlacementConfig(policy=on(0, 1, zero=3), reference=on(0, 1), reward=on(2, 3), value=on(2, 3, zero=3)),
    "each_alone": PlacementConfig(policy=on(0), reference=on(1), reward=on(2), value=on(3)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rlhf_lora")
    tokenizer = toy_tokenizer(folder / "tokenizer")
    run = RunConfig(name="toy", root=str(folder))
    sizes = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 40, "vocab_size": tokenizer.vocab_size}
    make_checkpoint(run, "sft", ModelConfig(family="llama", num_query_groups=2, **sizes), tokenizer, seed=1)
    make_checkpoint(run, "reward", ModelConfig(family="gpt", **sizes), tokenizer, seed=2, reward_mean=0.05, reward_std=0.3)
    write_rows(folder / "prompts.jsonl", prompts())
    return folder


def ppo_config(folder: Path, where: PlacementConfig) -> RlhfConfig:
    return RlhfConfig(
        run=RunConfig(name="toy", root=str(folder), seed=1), placement=where, policy_optimizer=OPTIMIZER, value_optimizer=OPTIMIZER,
        lora=POLICY_LORA, value_lora=VALUE_LORA,
        prompts=PromptsConfig(files=[str(folder / "prompts.jsonl")], max_prompt_length=32, max_response_length=8, eval_prompts=8),
        ppo=PpoConfig(
            steps=4, rollout_batch_size=16, minibatch_size=8, micro_batch_size=2, epochs=2, temperature=0.7, missing_eos_penalty=0.5, ema_decay=0.7
        ),
    )  # fmt: skip


# ---------------------------------------------------------------- on each rank


class Found(NamedTuple):
    metrics: list[dict[str, float]]
    policy: dict[str, Tensor]
    value: dict[str, Tensor]
    average: dict[str, Tensor]
    weight_bytes: int
    """Of all models on this rank."""
    has_reference: bool


def two_steps(config: RlhfConfig, own_reference: bool = False) -> Found:
    """Args: own_reference: load one also where it could be the policy."""
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    starts = Starts(*(Checkpoint.open(find_checkpoint(where, RunFolder(config.run))) for where in (config.policy, config.reward)))
    tokenizer = starts.policy.tokenizer()
    asked, grids = load_prompts(config.prompts, tokenizer).train, build_grids(config.placement, world.size)
    with mock.patch.object(four_models, "reference_is_policy", (lambda *_: False) if own_reference else four_models.reference_is_policy):
        models = build_four_models(config, grids, starts, world.device, asked)
    trainer = Trainer(config, world, models, tokenizer, asked)
    trainer.stop_ids = tuple(range(0, tokenizer.vocab_size, 7))  # random weights hardly ever say <|end|>; lengths shall differ
    metrics = [{name: value for name, value in trainer.step(step).items() if not name.endswith("_seconds")} for step in (1, 2)]
    weights = [{} if held is None else held_here(held.canonical_parameters()) for held in (models.policy, models.value, models.average)]
    found = Found(metrics, *weights, weight_bytes(models), models.reference is not None)
    for engine in (models.policy, models.value):
        if engine is not None:
            engine.close()
    return found


def weight_bytes(models: FourModels) -> int:
    held = {id(model): model for role in ("policy", "reference", "reward", "value") if (model := models.module(role)) is not None}
    return sum(parameter.nbytes for model in held.values() for parameter in model.parameters())


# ---------------------------------------------------------------- the cases


@pytest.fixture(scope="module")
def on_one_rank(folder) -> Found:
    return run_ranks(1, two_steps, ppo_config(folder, ONE_RANK))[0]


def model_of(folder: Path, stage: str) -> ModelConfig:
    return Checkpoint.open(find_checkpoint(stage, RunFolder(RunConfig(name="toy", root=str(folder))))).model_config


def test_rlhf_with_lora_needs_no_reference_model(folder, on_one_rank):
    (apart,) = run_ranks(1, two_steps, ppo_config(folder, ONE_RANK), own_reference=True)
    assert apart.has_reference and not on_one_rank.has_reference
    for ours, theirs in zip(on_one_rank.metrics, apart.metrics, strict=True):
        assert ours == pytest.approx(theirs, rel=PARITY_RELATIVE, abs=KL_ABSOLUTE)
    for ours, theirs in ((on_one_rank.policy, apart.policy), (on_one_rank.value, apart.value)):
        assert_tensors_close(ours, theirs)
    assert apart.weight_bytes - on_one_rank.weight_bytes == 4 * num_parameters(ModelShape(model_of(folder, "sft")))


def test_rlhf_with_lora_trains_nothing_but_the_adapters(folder, on_one_rank):
    first, second = on_one_rank.metrics
    assert first["kl"] == pytest.approx(0, abs=KL_ABSOLUTE) and second["kl"] > 0.05  # the first update went away from the reference
    assert max(first["sampler_gap"], second["sampler_gap"]) <= LOG_PROBABILITY_ABSOLUTE  # decoding has the adapters too
    for found, model, lora, head in ((on_one_rank.policy, "sft", POLICY_LORA, False), (on_one_rank.value, "reward", VALUE_LORA, True)):
        start = plain_init(model_of(folder, model), 1 if model == "sft" else 2, head)
        kept = [name for name in start if not name.startswith("scalar_head.")]
        assert all(torch.equal(found[name], start[name]) for name in kept)
        assert sum(tensor.numel() for tensor in found.values()) == num_parameters(ModelShape(model_of(folder, model), lora), head)
        assert all(tensor.abs().max() > 0 for name, tensor in found.items() if name.endswith("lora_b"))
        if head:
            assert not torch.equal(found["scalar_head.weight"], start["scalar_head.weight"])
    policy, average = on_one_rank.policy, on_one_rank.average
    assert policy.keys() == average.keys()
    assert all(torch.equal(policy[name], average[name]) == ("lora_" not in name) for name in policy)


@pytest.mark.parametrize("name", FOUR_RANKS)
def test_rlhf_with_lora_is_placed_alike(folder, on_one_rank, name):
    ranks = run_ranks(4, two_steps, ppo_config(folder, FOUR_RANKS[name]))
    assert any(rank.has_reference for rank in ranks) == (not name.endswith("shared"))
    for rank in ranks:
        for ours, theirs in zip(rank.metrics, on_one_rank.metrics, strict=True):
            assert ours == pytest.approx(theirs, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
    for role in ("policy", "value", "average"):
        assert_tensors_close(merge_ranks([getattr(rank, role) for rank in ranks]), getattr(on_one_rank, role), relative=PPO_METRIC_RELATIVE)
