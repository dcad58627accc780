"""Go on where a stage was stopped: the newest checkpoint that is whole and fits, and an engine put back into its state."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt.checkpoint.layout import INDEX, CheckpointError, complete_checkpoints, read_json, verify
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.load import ConfigError
from megagpt.engine import state
from megagpt.engine.build import Engine
from megagpt.runtime.log import say, say_here


def candidates(folders: Sequence[Path], fixed: Mapping[str, Any]) -> list[list[Checkpoint]]:
    """Checkpoints that a stage could resume from, newest step first; needs no process group.

    Args:
        folders: of the models that the stage trains; only steps that all of them saved count.
        fixed: what a resumed run must have in common with the one that saved: name of a setting -> value, as JSON.

    Raises:
        ConfigError: the newest was made with another value of something fixed.
    """
    found = []
    saved = [{path.name: path for path in complete_checkpoints(folder)} for folder in folders]
    for name in reversed(saved[0]):
        if all(name in paths for paths in saved):
            try:
                found.append([Checkpoint.open(paths[name]) for paths in saved])
            except CheckpointError as error:
                say(f"{error}; trying the checkpoint before")
    for checkpoint in found[0] if found else ():
        _require_same(checkpoint, fixed)
    return found


def _require_same(checkpoint: Checkpoint, fixed: Mapping[str, Any]) -> None:
    stored = _flat(checkpoint.state.get("fixed", {}))
    for name, value in _flat(fixed).items():
        if stored.get(name) != value:
            raise ConfigError(
                f"{name} = {value}: the checkpoint to resume from has {stored.get(name)} ({checkpoint.path}); "
                "take the same, another run.name, or start anew with run.resume=never"
            )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def last_good(found: Sequence[list[Checkpoint]], device: torch.device) -> list[Checkpoint] | None:
    """The first of the candidates whose files all have their SHA-256; each rank of the job hashes a share. All ranks call this."""
    for checkpoints in found:
        faults: list[str] = []
        for checkpoint in checkpoints:
            try:
                faults += verify(checkpoint.path, dist.get_rank(), dist.get_world_size())
            except (CheckpointError, OSError) as error:
                faults.append(str(error))
        whole = torch.tensor(float(not faults), device=device)
        dist.all_reduce(whole, op=dist.ReduceOp.MIN)
        if whole:
            return checkpoints
        for fault in faults:
            say_here(f"{fault}; trying the checkpoint before")
    return None


def restore_engine(checkpoint: Checkpoint, engine: Engine) -> None:
    """Weights, optimizer and loss scaler as they were when the checkpoint was saved. All ranks of the engine's grid call this."""
    masters = read_json(checkpoint.path, INDEX["optimizer"])
    with checkpoint.tensors("model") as weights, checkpoint.tensors("optimizer") as stored:
        state.restore(
            engine, lambda name: stored(f"{state.MASTER}.{name}") if f"{state.MASTER}.{name}" in masters else weights(name),
            stored, checkpoint.state["optimizer"],
        )


def clear_leftovers(folder: Path, everything: bool) -> None:
    """Remove what a killed run left half done in `checkpoints/`, or all of it. One process of the job calls this."""
    if everything:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for half in folder.glob("step_*.tmp"):
        shutil.rmtree(half)
    for aside in folder.glob("step_*.old"):  # killed between the two renames of a step that was saved again
        if aside.with_suffix("").exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, aside.with_suffix(""))
