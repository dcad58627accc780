"""The layers of a reward model that are not trained: what they make of the rankings, and their weights for a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from megagpt.checkpoint.layout import identity
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import RewardConfig
from megagpt.data.activations import Activations, content
from megagpt.data.ranking import EncodedGroup
from megagpt.data.shared_row import SharedRow, pad_rows, shared_row
from megagpt.engine.build import gather_canonical
from megagpt.model.gpt import GPT
from megagpt.runtime.log import is_main_rank, say

PIECE_BYTES = 32 * 2**20
"""Of a file: what a kill costs at most, about half a minute of a small model on a CPU."""
TOKENS_AT_ONCE = 2048
"""Of one forward pass, padding included; more do not fill a CPU or a GPU any better."""


def activations_folder(config: RewardConfig, stage_folder: Path, parent: Checkpoint, depth: int) -> Path:
    """Where the activations of this parent's frozen layers are kept: its name says all that they depend on, apart from the rankings."""
    folder = stage_folder / "activations" if config.activations is None else Path(config.activations)
    return folder / f"{identity(parent.path)}_{depth}_{config.precision.dtype}"


def weights_of(models: Sequence[GPT]) -> Iterator[tuple[str, Tensor]]:
    """Canonical tensors of models without an engine. All ranks of their grid must iterate."""
    for model in models:
        for parameter, entry in model.entries():
            yield from gather_canonical(model, entry, parameter.data)


def fill(activations: Activations, trunk: GPT, groups: Sequence[EncodedGroup], device: torch.device) -> None:
    """Compute what is missing, each replica its share, with a progress bar. All ranks of the trunk's grid call this.

    Args:
        trunk: embedding and frozen layers.
    """
    grid, places, whole = trunk.groups.grid, trunk.groups.coordinates, trunk.groups.whole
    dist.barrier(whole)  # around the look: all ranks must find the same, and none may write meanwhile
    activations.find()
    dist.barrier(whole)
    rows = {content(row): row for row in map(shared_row, groups)}
    missing = sorted((row for row in rows.values() if row not in activations), key=len)
    mine = missing[places.dp :: grid.dp]
    say(
        f"[reward] frozen layers: activations of {len(rows) - len(missing)} groups are in {activations.folder}, "
        f"those of {len(missing)} are to be computed ({sum(map(len, missing)):,} tokens)"
    )
    bar = tqdm(
        total=sum(map(len, mine)), desc="frozen layers", unit="token", unit_scale=True, file=sys.stderr, disable=not is_main_rank() or not mine,
        mininterval=1.0 if sys.stderr.isatty() else 15.0, dynamic_ncols=True,
    )
    found: list[tuple[SharedRow, Tensor]] = []

    def write() -> None:
        if found and places.tp == 0:  # the other tensor-parallel ranks have the same hidden states
            activations.write(found)
        found.clear()

    was_training = trunk.training
    trunk.eval()
    with bar, torch.no_grad():
        for batch in _batches(mine):
            tokens, branches = (x.to(device) for x in pad_rows(batch, 0))
            hidden = trunk(tokens, branches=branches)
            found += [(row, hidden[: len(row), place].cpu().clone()) for place, row in enumerate(batch)]
            bar.update(sum(map(len, batch)))
            if sum(activation.nbytes for _, activation in found) >= PIECE_BYTES:
                write()
    trunk.train(was_training)
    write()
    dist.barrier(whole)
    activations.find()


def _batches(rows: Sequence[SharedRow]) -> Iterator[list[SharedRow]]:
    """Rows, which come sorted by length, as many at once as TOKENS_AT_ONCE allows."""
    batch: list[SharedRow] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(row) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
