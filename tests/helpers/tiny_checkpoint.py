"""Checkpoints with random weights, written by the product on one rank: what a stage before would have left."""

from __future__ import annotations

from pathlib import Path

import torch

from megagpt.checkpoint.layout import prune
from megagpt.checkpoint.save import Saver
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.schema import BatchConfig, ModelConfig, RecordsConfig, RewardConfig, RunConfig, SftConfig
from megagpt.engine.build import Engine
from megagpt.parallel.grid import Grid
from megagpt.tokenizer.tokenizer import Tokenizer
from tests.helpers.plain import plain_init
from tests.helpers.sharded import sharded_model
from tests.helpers.spawn import run_ranks


class StubTokenizer:
    def save(self, folder: Path) -> None:
        (folder / "vocabulary.txt").write_text("a b c")


def save_tensors(folder: Path, step: int, parameters, groups, config: ModelConfig, head: str = "lm", keep: int = 2, tokenizer=None, optimizer=(), state: dict | None = None) -> Path:
    """A checkpoint of these canonical tensors."""
    saver = Saver(folder, groups, config_yaml="", tokenizer=tokenizer or StubTokenizer(), prune=lambda: prune([folder], keep, 0))
    path = saver.save(
        step, {"model": parameters, "optimizer": optimizer}, {"model": config.model_dump(mode="json"), "head": head, "tokenizer_hash": "stub", **(state or {})}
    )
    assert saver.wait()
    return path


def make_checkpoint(run: RunConfig, stage: str, model: ModelConfig, tokenizer: Tokenizer, seed: int, **state: float) -> Path:
    """Random weights as step 1 of a stage, `sft` (a language model) or `reward` (a reward model, whose state says reward_mean and reward_std)."""
    return run_ranks(1, write_checkpoint, run, stage, model, tokenizer, seed, **state)[0]


def write_checkpoint(run: RunConfig, stage: str, model: ModelConfig, tokenizer: Tokenizer, seed: int, **state: float) -> Path:
    """On the one rank."""
    config_class, scalar_head = {"sft": (SftConfig, False), "reward": (RewardConfig, True)}[stage]
    records = RecordsConfig(train=["none"], max_length=model.max_sequence_length)
    config = config_class(run=run, batch=BatchConfig(micro_batch_size=1, global_batch_size=1), data=records)
    engine = Engine(sharded_model(model, plain_init(model, seed, scalar_head), Grid()), config.optimizer, zero_stage=1)
    output = StageOutput(config, tokenizer, parents={})
    output.open(torch.device("cpu"))
    path = output.save(1, engine, model, head="scalar" if scalar_head else "lm", **state)
    output.wait()
    engine.close()
    return path
