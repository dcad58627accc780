"""What every training stage leaves in its folder: the configuration, checkpoints that name their parents, a manifest entry."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.checkpoint.layout import HeldOut, SaveError, identity, prune
from megagpt.checkpoint.load import Checkpoint
from megagpt.checkpoint.resume import clear_leftovers, last_good, require_same, restore_engine
from megagpt.checkpoint.save import Saver
from megagpt.config.schema import ModelConfig, RlhfConfig, StageConfig
from megagpt.config.show import content_hash, store, to_yaml
from megagpt.engine.build import Engine
from megagpt.engine.state import counters, optimizer_tensors
from megagpt.kernels.select import describe as describe_kernels
from megagpt.runtime.log import is_main_rank, say
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.version import code_version
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass
class StageOutput:
    """Where and how one stage saves, and where it goes on.

    Args:
        parents: role -> checkpoint that this stage started from.
        original: the configuration file as it was written.
        fixed: further settings that may not change between a run and its resume (name -> JSON value), besides seed,
            tokenizer and parents.
        subfolders: of the models that this stage saves, within its folder.

    Raises:
        ConfigError: there is a checkpoint to resume from which was made with other fixed settings.
    """

    config: StageConfig | RlhfConfig
    tokenizer: Tokenizer
    parents: dict[str, Checkpoint]
    original: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    subfolders: Sequence[str] = ("",)
    _savers: dict[str, Saver] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Now, not at each save: a parent may be gone by then.
        self._parents = {role: {"path": str(parent.path), "checkpoint": identity(parent.path)} for role, parent in self.parents.items()}
        self._fixed = {
            "run": {"seed": self.config.run.seed}, "tokenizer": self.tokenizer.content_hash,
            "parents": {role: parent["checkpoint"] for role, parent in self._parents.items()}, **self.fixed,
        }
        self._folders = [self.folder / subfolder for subfolder in self.subfolders]
        self._resumed: dict[str, Checkpoint] = {}
        if self.config.run.resume == "auto":
            require_same(self._folders, self._fixed)

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.config.run)

    @property
    def folder(self) -> Path:
        return self.run.stage(self.config.stage)

    def open(self, device: torch.device) -> Path:
        """Begin: announce the kernels, clear what an earlier run left half done, write the resolved configuration. Returns the folder.

        Raises:
            SaveError: on the main rank; the folder cannot be written to.
        """
        for line in describe_kernels(device.type):
            say(f"[{self.config.stage}] kernels: {line}")
        if is_main_rank():
            self._prepare_folder()
        self._device = device
        self._resumable = last_good(self._folders, device)  # rank 0 has cleared up by then: it names the checkpoints
        return self.folder

    def _prepare_folder(self) -> None:
        try:
            self.run.forget(self.config.stage)
            for subfolder in self.subfolders:
                clear_leftovers(self.folder / subfolder / "checkpoints", everything=self.config.run.resume == "never")
            store(self.config, self.original, self.folder)
        except OSError as error:  # a full disk: without room for a line there is none for a checkpoint
            raise SaveError(f"{self.folder}: cannot be written to ({error.strerror})") from error

    @property
    def resumes(self) -> bool:
        """Is there a checkpoint to go on from? Known once the output is open."""
        return self._resumable is not None

    def resume(self, *engines: Engine | None) -> dict[str, Any] | None:
        """Put engines into the state of the last good checkpoint; all ranks of the job call this.

        Args:
            engines: in the order of `subfolders`; None for a model that this rank does not hold, or that has no engine of its own.

        Returns:
            The first one's state.json, or None to start from the beginning.
        """
        state = self._restore(self._resumable, engines)
        if state is not None:
            say(f"[{self.config.stage}] goes on after step {state['step']}")
        return state

    def resumed(self, subfolder: str) -> Checkpoint | None:
        """What a model in this subfolder went on from."""
        return self._resumed.get(subfolder)

    def reload(self, *engines: Engine | None) -> dict[str, Any] | None:
        """The same in the middle of a run, from what it has saved so far."""
        for saver in self._savers.values():
            saver.wait()
        return self._restore(last_good(self._folders, self._device), engines)

    def _restore(self, checkpoints: list[Checkpoint] | None, engines: Sequence[Engine | None]) -> dict[str, Any] | None:
        if checkpoints is None:
            return None
        for subfolder, checkpoint, engine in zip(self.subfolders, checkpoints, engines, strict=True):
            self._resumed[subfolder] = checkpoint
            if engine is not None:
                restore_engine(checkpoint, engine)
        return checkpoints[0].state

    def save(
        self, step: int, engine: Engine, model: ModelConfig, *, head: str, subfolder: str = "", held_out: HeldOut | None = None,
        average: Iterator[tuple[str, Tensor]] | None = None, frozen: Iterable[tuple[str, Tensor]] = (), **state: Any,
    ) -> Path:
        """Begin to save a checkpoint of one model beside the training; all ranks of its grid call this.

        Args:
            head: `lm` or `scalar`.
            subfolder: within the stage's folder, where a stage saves several models.
            held_out: how the model did on held-out data; the best of those is never removed, and is what later stages take.
            average: canonical float32 tensors to save instead of the engine's weights, without its optimizer.
            frozen: canonical tensors of the model that the engine does not hold.
            state: counters and statistics that later stages or a resume need.
        """
        resumed = self._resumed.get(subfolder)
        if resumed is not None and resumed.state["step"] == step:
            return resumed.path  # nothing was left to do
        if subfolder not in self._savers:
            self._savers[subfolder] = Saver(
                self.folder / subfolder, engine.groups, config_yaml=to_yaml(self.config), tokenizer=self.tokenizer,
                prune=lambda: prune(self._folders, self.config.every.keep, self.config.every.keep_every),
            )
        dtype, lora = engine.model.layout.dtype, engine.model.shape.lora
        weights = average
        if average is None:
            weights = ((name, tensor.to(dtype)) for name, tensor in itertools.chain(engine.canonical_parameters(), frozen))
        return self._savers[subfolder].save(
            step, {"model": weights, "optimizer": optimizer_tensors(engine) if average is None else iter(())},
            {
                "stage": self.config.stage, "head": head, "model": model.model_dump(mode="json"),
                "lora": None if lora is None else lora.model_dump(mode="json"), "seed": self.config.run.seed,
                "tokenizer_hash": self.tokenizer.content_hash, "parents": self._parents, "code": code_version(),
                "optimizer": counters(engine), "fixed": self._fixed, "held_out": None if held_out is None else asdict(held_out), **state,
            },
        )

    def wait(self) -> None:
        """Until every checkpoint that was begun is on disk; all ranks call this.

        Raises:
            SaveError: one could not be written; the rank that failed printed why.
        """
        ok = torch.tensor(float(all([saver.wait() for saver in self._savers.values()])), device=self._device)
        dist.all_reduce(ok, op=dist.ReduceOp.MIN)
        if not ok:
            raise SaveError(f"{self.folder / 'checkpoints'}: the last checkpoint could not be written; those before it are whole")

    def finish(self, checkpoint: Path, **facts: Any) -> None:
        """Enter the stage into the manifest; rank 0 writes."""
        if is_main_rank():
            self.run.record(
                self.config.stage, output=str(checkpoint), checkpoint=identity(checkpoint), parents=self._parents,
                tokenizer=self.tokenizer.content_hash, config=content_hash(to_yaml(self.config)), code=code_version(), **facts,
            )

    def gate(self, name: str, value: float, bound: str, passed: bool) -> None:
        """Print and record one go/no-go check."""
        say(f"[{self.config.stage}] gate {'passed' if passed else 'FAILED'}: {name} = {value:.4g} (bound: {bound})")
        if is_main_rank():
            self.run.gate(self.config.stage, name, value, bound, passed)
