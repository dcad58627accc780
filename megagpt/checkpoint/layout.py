"""Names and folders of a checkpoint on disk; no torch import.

    step_<n>/  model-*.safetensors      model.index.json      weights, in the type that they were trained in
               optimizer-*.safetensors  optimizer.index.json  exp_avg.NAME, exp_avg_sq.NAME; master.NAME where weights have 16 bits
               state.json  config.yaml  tokenizer/  checksums.json  COMPLETE

Tensors have canonical names (`model/param_map.py`), global shapes and no padding, whatever layout they were saved under. Where adapters
of low rank were trained, they lie beside the weights that they adapt.
Written as `step_<n>.tmp` and renamed when whole; COMPLETE is the last file. No pickle anywhere.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from megagpt.runtime import atomic
from megagpt.runtime.errors import Foreseen
from megagpt.runtime.run_folder import RunFolder

FORMAT = 1
INDEX = {"model": "model.index.json", "optimizer": "optimizer.index.json"}
"""Kind of tensors -> the file that says which of its files holds which tensor."""
STATE, CHECKSUMS, COMPLETE = "state.json", "checksums.json", "COMPLETE"


class CheckpointError(Foreseen, ValueError):
    """A checkpoint that cannot be used; the message names the folder and the reason."""


@dataclass(frozen=True)
class HeldOut:
    """What a checkpoint was measured at on held-out data; `held_out` in its state.json. The best of a stage is chosen by it."""

    name: str
    value: float
    better: Literal["lower", "higher"]


class SaveError(Foreseen, RuntimeError):
    """A checkpoint that could not be written."""

    exit_code = 1


def step_of(folder: Path) -> int | None:
    """Step number of a checkpoint folder's name, or None for other names (`.tmp` included)."""
    match = re.fullmatch(r"step_(\d+)", folder.name)
    return int(match[1]) if match else None


def complete_checkpoints(stage_folder: Path) -> list[Path]:
    """Whole checkpoints of a stage, oldest first: by step, since times get lost in copies."""
    found = [folder for folder in (stage_folder / "checkpoints").glob("step_*") if step_of(folder) is not None]
    return sorted((folder for folder in found if (folder / COMPLETE).exists()), key=step_of)


def best_checkpoint(stage_folder: Path) -> Path | None:
    """The whole checkpoint of a stage that did best on held-out data, of equals the newest; None where none was measured.

    Worked out from the checkpoints themselves: so no kill, resume or damage can leave a note of it that is wrong.
    """
    measured = [(found, folder) for folder in complete_checkpoints(stage_folder) if (found := held_out_of(folder)) is not None]
    if not measured:
        return None
    sign = -1 if measured[-1][0].better == "lower" else 1
    return max(reversed(measured), key=lambda pair: sign * pair[0].value)[1]


def held_out_of(checkpoint: Path) -> HeldOut | None:
    """How a checkpoint did on held-out data; None where that was not measured, was not finite, or cannot be read."""
    try:
        found = read_json(checkpoint, STATE).get("held_out")
    except CheckpointError:
        return None  # whoever opens the checkpoint will say so
    return None if found is None or found["value"] is None else HeldOut(**found)


def find_checkpoint(where: str, run: RunFolder) -> Path:
    """A checkpoint from what a configuration says: a stage of the same run, a stage folder, or a checkpoint folder.

    Of a stage it is the best one where they were measured on held-out data, else the newest.

    Raises:
        CheckpointError: nothing there, or nothing whole there.
    """
    for folder in (Path(where), run.path / where):
        if (folder / COMPLETE).exists():
            return folder
        if whole := complete_checkpoints(folder):
            return best_checkpoint(folder) or whole[-1]
        if folder.name.startswith("step_") and folder.is_dir():
            raise CheckpointError(f"{folder}: the checkpoint is incomplete ({COMPLETE} is missing)")
    stages = [path.parent.name for path in run.path.glob("*/checkpoints")]
    near = difflib.get_close_matches(where, stages, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; stages with checkpoints in {run.path}: {', '.join(sorted(stages)) or 'none'}"
    raise CheckpointError(f"{where}: no complete checkpoint there or in {run.path / where}{hint}")


def read_state(checkpoint: Path, *, check_sizes: bool = True) -> dict[str, Any]:
    """state.json of a whole checkpoint.

    Args:
        check_sizes: compare the size of every file with checksums.json; thousands of ranks had better share that (`verify`).

    Raises:
        CheckpointError: incomplete, damaged, or of another format.
    """
    if not (checkpoint / COMPLETE).exists():
        raise CheckpointError(f"{checkpoint}: the checkpoint is incomplete ({COMPLETE} is missing)")
    state = read_json(checkpoint, STATE)
    for name, facts in read_json(checkpoint, CHECKSUMS).items() if check_sizes else ():
        if fault := _size_fault(checkpoint / name, facts):
            raise CheckpointError(fault)
    if state["format"] != FORMAT:
        raise CheckpointError(f"{checkpoint}: format {state['format']}; this version reads format {FORMAT}")
    return state


def read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    """One of a checkpoint's own files.

    Raises:
        CheckpointError: it is missing or is not JSON.
    """
    try:
        return json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint / name}: damaged ({error})") from error


def file_facts(path: Path) -> dict[str, Any]:
    """What checksums.json says of a file: its size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": atomic.sha256_file(path)}


def write_checksums(folder: Path, known: Mapping[str, dict[str, Any]] = MappingProxyType({})) -> None:
    """checksums.json of a checkpoint in the making.

    Args:
        known: facts of files that their writers have hashed, by name; the others are hashed here.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS, COMPLETE))
    atomic.write_json(folder / CHECKSUMS, {name: known.get(name) or file_facts(folder / name) for name in sorted(names)})


def verify(checkpoint: Path, part: int = 0, parts: int = 1) -> list[str]:
    """Compare every file with its SHA-256. Returns one line for each fault; [] when whole.

    Args:
        part, parts: check only the part-th of so many shares of the files.
    """
    read_state(checkpoint, check_sizes=False)
    faults = []
    for name, facts in list(read_json(checkpoint, CHECKSUMS).items())[part::parts]:
        if fault := _size_fault(checkpoint / name, facts):
            faults.append(fault)
        elif atomic.sha256_file(checkpoint / name) != facts["sha256"]:
            faults.append(f"{checkpoint / name}: content changed")
    return faults


def _size_fault(file: Path, facts: dict[str, Any]) -> str | None:
    whole = file.is_file() and file.stat().st_size == facts["bytes"]
    return None if whole else f"{file}: damaged; {facts['bytes']} bytes were written"


def common_steps(folders: Sequence[Path]) -> list[int]:
    """Steps of which every one of these stage folders has a whole checkpoint, oldest first."""
    return sorted(set.intersection(*({step_of(path) for path in complete_checkpoints(folder)} for folder in folders)))


def prune(folders: Sequence[Path], keep: int, keep_every: int) -> None:
    """Remove checkpoints that are older than the newest `keep` which all folders have, not of a step that `keep_every` divides (0: none), and not the best."""
    kept = common_steps(folders)[-keep:]
    best = {step_of(path) for folder in folders if (path := best_checkpoint(folder)) is not None}
    for folder in folders:
        for path in complete_checkpoints(folder) if kept else ():
            if step_of(path) < kept[0] and step_of(path) not in best and not (keep_every and step_of(path) % keep_every == 0):
                shutil.rmtree(path, ignore_errors=True)  # of several models, two ranks may do so at once


def identity(checkpoint: Path) -> str:
    """Short hash that names a checkpoint's content: that of its checksums."""
    return atomic.sha256_file(checkpoint / CHECKSUMS)[:16]
