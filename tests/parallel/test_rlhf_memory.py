"""Memory of PPO: what the planner says of each model and phase of every rank, and what the ranks measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

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
from megagpt.parallel.placement import build_grids
from megagpt.rlhf import ppo
from megagpt.rlhf.four_models import Starts, build_four_models
from megagpt.rlhf.memory import MemoryMeter
from megagpt.runtime.distributed import World
from megagpt.runtime.memory import measured_peak
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.timeline import Timeline
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_ppo import on
from tests.helpers.tiny_run import prompts, toy_tokenizer, write_rows


PLACEMENTS = {
    "one_rank": {"policy": on(0), "reference": on(0), "reward": on(0), "value": on(0)},
    "cut_and_shared": {"policy": on(0, 1, tp=2, precision="bf16"), "reference": on(0, 1), "reward": on(2, 3, pp=2), "value": on(2, 3, zero=2)},
    "offloaded": {
        "policy": on(0, 1, zero=1, offload="cpu"), "reference": on(0, 1, tp=2, offload="cpu"), "reward": on(0, 1, offload="cpu"), "value": on(0, 1, tp=2),
    },
    "adapters": {"policy": on(0, 1, zero=2), "reference": on(0, 1), "reward": on(0, 1, tp=2), "value": on(0, 1, pp=2)},
    "zero3": {"policy": on(0, 1, zero=3), "reference": on(0, 1), "reward": on(0, 1, tp=2), "value": on(0, 1, zero=3)},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    tokenizer = toy_tokenizer(folder / "tokenizer")
    run = RunConfig(name="toy", root=str(folder))
    sizes = {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "max_sequence_length": 96, "vocab_size": 1500}
    make_checkpoint(run, "sft", ModelConfig(family="gpt", **sizes), tokenizer, seed=1)
    make_checkpoint(run, "reward", ModelConfig(family="llama", num_query_groups=2, **sizes), tokenizer, seed=2, reward_mean=0.0, reward_std=1.0)
    write_rows(folder / "prompts.jsonl", prompts())
    return folder


def config_of(folder: Path, name: str) -> RlhfConfig:
    return RlhfConfig(
        run=RunConfig(name="toy", root=str(folder), seed=1), placement=PlacementConfig(**PLACEMENTS[name]),
        prompts=PromptsConfig(files=[str(folder / "prompts.jsonl")], max_prompt_length=64, max_response_length=32, eval_prompts=8),
        ppo=PpoConfig(steps=2, rollout_batch_size=16, minibatch_size=8, micro_batch_size=2, ema_decay=0.9),
        lora=LoraConfig(rank=4) if name == "adapters" else None,  # the reference is the policy without them
    )  # fmt: skip


def measured_round(config: RlhfConfig) -> dict[str, float]:
    """Two rounds, the second of which is measured; its memory metrics."""
    world = World(dist.get_rank(), dist.get_world_size(), dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    starts = Starts(*(Checkpoint.open(find_checkpoint(where, RunFolder(config.run))) for where in (config.policy, config.reward)))
    tokenizer = starts.policy.tokenizer()
    asked = load_prompts(config.prompts, tokenizer).train
    models = build_four_models(config, build_grids(config.placement, world.size), starts, world.device)
    trainer = ppo.Trainer(config, world, models, tokenizer, asked)
    meter = MemoryMeter(config, models, starts, world.device, Path(config.run.root), step=2)
    trainer.timeline = Timeline(tell=meter.span)
    for step in (1, 2):
        meter.begin(step, trainer.questions(step).prompts)
        trainer.step(step)
        assert bool(metrics := meter.tell()) == (step == 2)
    for engine in (models.policy, models.value):
        if engine is not None:
            engine.close()
    return metrics


@pytest.mark.parametrize("name", PLACEMENTS)
def test_rlhf_memory_is_what_the_planner_says(folder, name):
    """Each part of each model exactly, each phase's peak within 10 %, on every rank."""
    num_ranks = 1 + max(rank for role in PLACEMENTS[name].values() for rank in role.ranks)
    metrics = run_ranks(num_ranks, measured_round, config_of(folder, name))
    ranks = json.loads((folder / "memory.json").read_text())["ranks"]
    assert len(ranks) == num_ranks
    for number, rank in enumerate(ranks):
        shared = {"reference"} if name == "adapters" else set()
        assert set(rank["models"]) == {role for role, where in PLACEMENTS[name].items() if number in where.ranks} - shared
        for role, parts in rank["models"].items():
            assert {part: pair["measured"] for part, pair in parts.items()} == {part: pair["predicted"] for part, pair in parts.items()}, role
        updates = {f"update {role}" for role in ("policy", "value") if role in rank["models"]}
        writes = {"rollout"} if "policy" in rank["models"] else set()
        assert set(rank["phases"]) == {"score"} | writes | updates
        for phase, pair in rank["phases"].items():
            print(f"{name} rank {number} {phase}: {pair['predicted']:,} planned, {pair['measured']:,} measured, {pair['predicted'] / pair['measured'] - 1:+.1%}")
            assert pair["predicted"] == pytest.approx(pair["measured"], rel=0.1), f"rank {number}: {phase}"
    held = max(sum(pair["measured"] for pair in rank["models"].get("policy", {}).values()) for rank in ranks)
    assert all(rank == metrics[0] for rank in metrics) and metrics[0]["memory_policy_gib"] == held / 2**30
    assert metrics[0]["memory_peak_gib"] == max(pair["measured"] for rank in ranks for pair in rank["phases"].values()) / 2**30


def peak_of_known_tensors() -> int:
    with measured_peak(torch.device("cpu")) as peak:
        first = torch.zeros(1000)
        second = first + 1  # both live: 8,000 bytes
        del first
        third = second[:100] * 2  # 4,400 bytes
        dist.all_reduce(third)
    return peak.num_bytes


def test_memory_peak_of_known_tensors():
    for num_bytes in run_ranks(2, peak_of_known_tensors):
        assert num_bytes == pytest.approx(8000, abs=64)
