"""Go on where a stage was stopped: the newest checkpoint that is whole and fits, and an engine put back into its state."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt.checkpoint.layout import INDEX, STATE, CheckpointError, common_steps, identity, read_json, verify
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.load import ConfigError
from megagpt.engine import state
from megagpt.engine.build import Engine
from megagpt.runtime.log import is_main_rank, say_here


def require_same(folders: Sequence[Path], fixed: Mapping[str, Any]) -> None:
    """Does what a stage would resume from fit? Needs no process group.

    Args:
        folders: of the models that the stage trains.
        fixed: what a resumed run must have in common with the one that saved: name of a setting -> value, as JSON.

    Raises:
        ConfigError: the newest checkpoint was made with another value of something fixed.
    """
    steps = common_steps(folders) or common_steps(folders[:1])  # other models than before: there is no step of all of these
    for folder in folders:
        for step in steps[-1:]:
            path = folder / "checkpoints" / f"step_{step}"
            try:
                stored = _flat(read_json(path, STATE).get("fixed", {}))
            except CheckpointError:
                continue  # damaged, which `last_good` will say, or not there
            for name, value in _flat(fixed).items():
                if stored.get(name) != value:
                    raise ConfigError(
                        f"{name} = {value}: the checkpoint to resume from has {stored.get(name)} ({path}); "
                        "take the same, another run.name, or start anew with run.resume=never"
                    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def last_good(folders: Sequence[Path], device: torch.device) -> list[Checkpoint] | None:
    """The newest step that all folders have whole, every file with its SHA-256; None where there is no checkpoint at all.

    All ranks of the job call this. Rank 0 says which steps there are (a shared file system may show others an older state), each
    rank hashes a share of the files, and all must see the same checkpoint.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    steps = _from_rank_0(common_steps(folders) if is_main_rank() else [], device)
    for step in reversed(steps):
        paths = [folder / "checkpoints" / f"step_{step}" for folder in folders]
        found, faults = [], []
        for path in paths:
            try:
                found.append(Checkpoint.open(path, check_sizes=False))
                faults += verify(path, dist.get_rank(), dist.get_world_size())
            except (OSError, ValueError, KeyError, TypeError) as error:  # whatever damaged JSON may lead to
                faults.append(str(error) if isinstance(error, CheckpointError) else f"{path}: damaged ({type(error).__name__}: {error})")
        # Ranks with a fault take part with a number of their own, so that none waits for another.
        seen = [int(identity(path)[:12], 16) for path in paths] if not faults else [-1 - dist.get_rank()] * len(paths)
        if _all_equal(seen, device) and not faults:
            if is_main_rank():
                _put_aside(folders, [later for later in steps if later > step])
            dist.barrier()
            return found
        for fault in faults:
            say_here(f"{fault}; trying the checkpoint before")
    if steps:
        raise CheckpointError(f"{folders[0] / 'checkpoints'}: none of {len(steps)} checkpoints is whole for all ranks; run.resume=never starts anew")
    return None


def _from_rank_0(numbers: list[int], device: torch.device) -> list[int]:
    """Rank 0's list, on all ranks."""
    size = torch.tensor([len(numbers)], device=device)
    dist.broadcast(size, src=0)
    if not size:
        return []
    shared = torch.tensor(numbers, dtype=torch.int64, device=device) if is_main_rank() else torch.zeros(int(size), dtype=torch.int64, device=device)
    dist.broadcast(shared, src=0)
    return shared.tolist()


def _all_equal(numbers: list[int], device: torch.device) -> bool:
    """Does every rank have the same numbers?"""
    bounds = torch.tensor([numbers, [-number for number in numbers]], dtype=torch.int64, device=device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    return bool((bounds[0] == -bounds[1]).all()) and min(numbers) >= 0


def _put_aside(folders: Sequence[Path], steps: Sequence[int]) -> None:
    """Give damaged checkpoints a name under which nobody takes them for newer ones."""
    for path in [folder / "checkpoints" / f"step_{step}" for folder in folders for step in steps]:
        aside = path.with_name(path.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)


def restore_engine(checkpoint: Checkpoint, engine: Engine) -> None:
    """Weights, optimizer and loss scaler as they were when the checkpoint was saved. All ranks of the engine's grid call this."""
    masters = read_json(checkpoint.path, INDEX["optimizer"])
    with checkpoint.tensors("model", merged=False) as weights, checkpoint.tensors("optimizer") as stored:
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
