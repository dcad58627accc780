"""A chain of stages, and the configuration of each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megagpt.config.prepare import PrepareConfig
from megagpt.config.schema import (
    DataConfig,
    DpoConfig,
    Frozen,
    PretrainConfig,
    RewardConfig,
    RlhfConfig,
    RunConfig,
    SftConfig,
    TokenizeConfig,
    TokenizerTrainConfig,
)


class PipelineStep(Frozen):
    stage: Literal["data", "prepare", "tokenizer", "tokenize", "pretrain", "sft", "reward", "dpo", "rlhf"]
    """What to run."""
    config: str
    """Its configuration file, relative to the pipeline file."""
    num_ranks: int = Field(1, gt=0)
    """Ranks on this machine (without a hostfile)."""


class PipelineConfig(Frozen):
    """A chain of stages for `megagpt run`."""

    run: RunConfig
    steps: list[PipelineStep] = Field(min_length=1)
    """Stages in order; a finished stage whose inputs did not change is skipped."""


STAGES: dict[str, type[Frozen]] = {
    "data": DataConfig,
    "prepare": PrepareConfig,
    "tokenizer": TokenizerTrainConfig,
    "tokenize": TokenizeConfig,
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "reward": RewardConfig,
    "dpo": DpoConfig,
    "rlhf": RlhfConfig,
}
"""Every stage of a pipeline, in the order of work, and its configuration."""
