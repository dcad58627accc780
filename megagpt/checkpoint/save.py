"""Write a checkpoint from a grid of ranks; every pipeline stage writes its own part, no rank holds the whole model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint.layout import CHECKSUMS, COMPLETE, FORMAT, INDEX, STATE, complete_checkpoints, write_checksums
from megagpt.parallel.groups import Groups
from megagpt.runtime import atomic


class SavesTokenizer(Protocol):
    def save(self, folder: Path) -> None: ...


def save_checkpoint(
    stage_folder: Path, step: int, parameters: Iterator[tuple[str, Tensor]], groups: Groups, *,
    state: dict[str, Any], config_yaml: str, tokenizer: SavesTokenizer, keep: int,
) -> Path:
    """Write `checkpoints/step_<step>` and drop the oldest beyond `keep`. All ranks of the grid call this.

    Args:
        parameters: this stage's canonical tensors, float32, whole (gathering is collective, so all ranks iterate).
        state: what else the checkpoint must say (stage, model, parent, counters …); `format` and `step` are added.

    Returns:
        The checkpoint's folder.
    """
    final = stage_folder / "checkpoints" / f"step_{step}"
    folder = final.with_name(final.name + ".tmp")
    is_leader = dist.get_rank() == groups.grid.ranks[0]
    if is_leader:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier(group=groups.whole)

    place = groups.coordinates
    writes = place.tp == 0 and place.dp == 0
    tensors = {}
    for name, tensor in parameters:
        if writes:
            tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    if writes:
        save_file(tensors, str(folder / f"model-{place.pp + 1:05d}-of-{groups.grid.pp:05d}.safetensors"))
        index = {name: {"file": f"model-{place.pp + 1:05d}-of-{groups.grid.pp:05d}.safetensors", "shape": list(t.shape)} for name, t in tensors.items()}
        atomic.write_json(folder / f".index-{place.pp}.json", index)
    dist.barrier(group=groups.whole)

    if is_leader:
        index = {}
        for part in sorted(folder.glob(".index-*.json")):
            index |= json.loads(part.read_text(encoding="utf-8"))
            part.unlink()
        atomic.write_json(folder / INDEX, index)
        atomic.write_json(folder / STATE, {"format": FORMAT, "step": step, **state})
        atomic.write_text(folder / "config.yaml", config_yaml)
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer")
        write_checksums(folder)
        atomic.write_text(folder / COMPLETE, (folder / CHECKSUMS).name + "\n")
        # A step that is saved again: the old one is moved aside, not deleted, until the new one has its name.
        replaced = final.with_name(final.name + ".old")
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            os.replace(final, replaced)
        os.replace(folder, final)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in complete_checkpoints(stage_folder)[:-keep]:
            shutil.rmtree(old)
    dist.barrier(group=groups.whole)
    return final
