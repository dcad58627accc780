"""What every training stage leaves in its folder: the configuration, checkpoints that name their parents, a manifest entry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt.checkpoint.layout import identity
from megagpt.checkpoint.load import Checkpoint
from megagpt.checkpoint.save import save_checkpoint
from megagpt.config.schema import ModelConfig, RlhfConfig, StageConfig
from megagpt.config.show import content_hash, store, to_yaml
from megagpt.engine.build import Engine
from megagpt.kernels.select import describe as describe_kernels
from megagpt.runtime.log import is_main_rank, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.version import code_version
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class StageOutput:
    """Where and how one stage saves.

    Args:
        parents: role -> checkpoint that this stage started from.
        original: the configuration file as it was written.
    """

    config: StageConfig | RlhfConfig
    tokenizer: Tokenizer
    parents: dict[str, Checkpoint]
    original: str = ""

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.config.run)

    @property
    def folder(self) -> Path:
        return self.run.stage(self.config.stage)

    def open(self, device: torch.device) -> Path:
        """Begin: announce the kernels, clear what an earlier run left, write the resolved configuration. Returns the folder."""
        for line in describe_kernels(device.type):
            say(f"[{self.config.stage}] kernels: {line}")
        if is_main_rank():
            self.run.forget(self.config.stage)
            store(self.config, self.original, self.folder)
        return self.folder

    def save(self, step: int, engine: Engine, model: ModelConfig, *, head: str, subfolder: str = "", **state: Any) -> Path:
        """A checkpoint of one model; all ranks of its grid call this.

        Args:
            head: `lm` or `scalar`.
            subfolder: within the stage's folder, where a stage saves several models.
            state: counters and statistics that later stages or a resume need.
        """
        path = save_checkpoint(
            self.folder / subfolder, step, engine.canonical_parameters(), engine.groups,
            state={
                "stage": self.config.stage, "head": head, "model": model.model_dump(mode="json"), "seed": self.config.run.seed,
                "tokenizer_hash": self.tokenizer.content_hash, "parents": self._parents(), "code": code_version(), **state,
            },
            config_yaml=to_yaml(self.config), tokenizer=self.tokenizer, keep=self.config.every.keep,
        )
        if dist.get_rank() == engine.groups.grid.ranks[0]:
            print(f"[{self.config.stage}] saved {path}", flush=True)
        return path

    def finish(self, checkpoint: Path, **facts: Any) -> None:
        """Enter the stage into the manifest; rank 0 writes."""
        if is_main_rank():
            self.run.record(
                self.config.stage, output=str(checkpoint), checkpoint=identity(checkpoint), parents=self._parents(),
                tokenizer=self.tokenizer.content_hash, config=content_hash(to_yaml(self.config)), code=code_version(), **facts,
            )

    def gate(self, name: str, value: float, bound: str, passed: bool) -> None:
        """Print and record one go/no-go check."""
        say(f"[{self.config.stage}] gate {'passed' if passed else 'FAILED'}: {name} = {value:.4g} (bound: {bound})")
        if is_main_rank():
            self.run.gate(self.config.stage, name, value, bound, passed)

    def _parents(self) -> dict[str, dict[str, str]]:
        return {role: {"path": str(parent.path), "checkpoint": identity(parent.path)} for role, parent in self.parents.items()}
