"""What the frozen lower layers make of ranked answers, computed once and kept on disk.

Where only the top layers are trained, everything below them gives the same numbers in every epoch and every measurement. They
are computed once for each group, whose answers share what they begin with, and are looked up by content: a resumed run goes on
where the computation was killed, and another run of the same parent and the same depth takes what it finds.

    FOLDER/<parent>_<layers>_<type>/<first group>.safetensors     content of a group -> [tokens of its shared row, hidden]
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megagpt.data.shared_row import SharedRow
from megagpt.runtime import atomic
from megagpt.runtime.log import say_here


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
        return content(row) in self._files

    def __getitem__(self, row: SharedRow) -> Tensor:
        """[n, hidden]"""
        name = content(row)
        return self._files[name].get_tensor(name)

    def zeros(self, num_tokens: int, num_rows: int) -> Tensor:
        """[tokens, rows, hidden] of a batch without any group."""
        return torch.zeros(num_tokens, num_rows, self.hidden_size, dtype=self.dtype)

    def write(self, found: Sequence[tuple[SharedRow, Tensor]]) -> None:
        """Add a piece: whole or not at all. `find` sees it."""
        tensors = {content(row): hidden.contiguous() for row, hidden in found}
        path = self.folder / f"{next(iter(tensors))}.safetensors"
        temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
        save_file(tensors, str(temporary))
        atomic.sync(temporary)
        os.replace(temporary, path)


def content(row: SharedRow) -> str:
    """Its name in the store."""
    return hashlib.sha256(row.tokens.tobytes() + row.branches.tobytes()).hexdigest()[:32]
