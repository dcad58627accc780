"""What the frozen lower layers make of ranked answers, computed once and kept on disk.

Where only the top layers are trained, everything below them gives the same numbers in every epoch and every measurement. They
are computed once for each group, whose answers share what they begin with, and are looked up by content: a resumed run goes on
where the computation was killed, and another run of the same parent and the same depth takes what it finds.

    FOLDER/<parent>_<layers>_<type>/<first group>.safetensors     content of a group -> [tokens of its shared row, hidden]
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from megagpt.data.ranking import EncodedGroup
from megagpt.model.gpt import GPT
from megagpt.reward.shared_row import SharedRow, pad_rows, shared_row
from megagpt.runtime import atomic
from megagpt.runtime.log import is_main_rank, say, say_here

PIECE_BYTES = 32 * 2**20
"""Of a file: what a kill costs at most, about half a minute of a small model on a CPU."""
TOKENS_AT_ONCE = 2048
"""Of one forward pass, padding included; more do not fill a CPU or a GPU any better."""


class Activations:
    """Hidden states of groups, memory-mapped.

    Args:
        folder: of one parent, one depth and one type; made if it is not there.
        hidden_size, dtype: of the hidden states.
    """

    def __init__(self, folder: Path, hidden_size: int, dtype: torch.dtype) -> None:
        self.folder, self.hidden_size, self.dtype = folder, hidden_size, dtype
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, Any] = {}

    def find(self) -> None:
        """Look at what is on disk now. A damaged piece is removed: its groups are computed again."""
        self._files = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                file = safe_open(str(path), framework="pt")
            except FileNotFoundError:
                continue  # another rank has removed it
            except SafetensorError as error:
                say_here(f"{path}: damaged ({error}); it is computed again")
                path.unlink(missing_ok=True)
                continue
            self._files |= dict.fromkeys(file.keys(), file)

    def __contains__(self, row: SharedRow) -> bool:
        return _content(row) in self._files

    def __getitem__(self, row: SharedRow) -> Tensor:
        """[n, hidden]"""
        name = _content(row)
        return self._files[name].get_tensor(name)

    def zeros(self, num_tokens: int, num_rows: int) -> Tensor:
        """[tokens, rows, hidden] of a batch without any group."""
        return torch.zeros(num_tokens, num_rows, self.hidden_size, dtype=self.dtype)

    def write(self, found: Sequence[tuple[SharedRow, Tensor]]) -> None:
        """Add a piece: whole or not at all. `find` sees it."""
        tensors = {_content(row): hidden.contiguous() for row, hidden in found}
        path = self.folder / f"{next(iter(tensors))}.safetensors"
        temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
        save_file(tensors, str(temporary))
        atomic.sync(temporary)
        os.replace(temporary, path)


def fill(activations: Activations, trunk: GPT, groups: Sequence[EncodedGroup], device: torch.device) -> None:
    """Compute what is missing, each replica its share, with a progress bar. All ranks of the trunk's grid call this.

    Args:
        trunk: embedding and frozen layers.
    """
    grid, places, whole = trunk.groups.grid, trunk.groups.coordinates, trunk.groups.whole
    dist.barrier(whole)  # around the look: all ranks must find the same, and none may write meanwhile
    activations.find()
    dist.barrier(whole)
    rows = {_content(row): row for row in map(shared_row, groups)}
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


def _content(row: SharedRow) -> str:
    return hashlib.sha256(row.tokens.tobytes() + row.branches.tobytes()).hexdigest()[:32]
