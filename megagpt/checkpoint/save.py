"""Write checkpoints from a grid of ranks, beside the training.

Every rank of a pipeline stage copies its share of the stage's tensors to host memory, the only part that training waits
for. A thread of each rank then writes and hashes that share; a thread of the grid's first rank waits until all shares are
there, adds the index and the rest, marks the folder complete and gives it its name. No rank ever holds the whole model.
Threads talk through files in the folder, never through collectives, which would get mixed up with those of training.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint.layout import CHECKSUMS, COMPLETE, FORMAT, INDEX, STATE, SaveError, complete_checkpoints, file_facts, step_of, write_checksums
from megagpt.parallel.groups import Groups
from megagpt.runtime import atomic
from megagpt.runtime.log import say_here

POLL_SECONDS = 0.05


class SavesTokenizer(Protocol):
    def save(self, folder: Path) -> None: ...


class Saver:
    """Saves one model of a stage; all ranks of its grid hold one and call it alike.

    Args:
        stage_folder: checkpoints go to `checkpoints/step_<n>` in here.
        keep, keep_every: newest checkpoints that are kept, and, besides them, each whose step is a multiple of the second (0: none).
    """

    def __init__(self, stage_folder: Path, groups: Groups, *, config_yaml: str, tokenizer: SavesTokenizer, keep: int, keep_every: int = 0) -> None:
        self._folder, self._groups = stage_folder / "checkpoints", groups
        self._config_yaml, self._tokenizer, self._keep, self._keep_every = config_yaml, tokenizer, keep, keep_every
        self._threads: list[_Task] = []
        self._cancelled = threading.Event()

    def save(self, step: int, tensors: Mapping[str, Iterator[tuple[str, Tensor]]], state: Mapping[str, Any]) -> Path:
        """Begin to write `step_<step>`; returns its path once this rank's share is copied.

        Args:
            tensors: kind (`model`, `optimizer`) -> this stage's canonical tensors, whole (gathering is collective, so all ranks iterate).
            state: what else the checkpoint must say (stage, model, parent, counters …); `format` and `step` are added.
        """
        self.wait()
        final = self._folder / f"step_{step}"
        folder = final.with_name(final.name + ".tmp")
        if self._is_leader:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        share = self._take_share(tensors)
        dist.barrier(group=self._groups.whole)  # the folder is there
        self._threads = [_Task(self._write, folder, share)]
        if self._is_leader:
            self._threads.append(_Task(self._complete, folder, final, {"format": FORMAT, "step": step, **state}))
        return final

    def wait(self) -> bool:
        """Until what was begun is on disk. Returns whether it is, the same on all ranks; the reason was printed."""
        ok = all([task.succeeded() for task in self._threads[:1]])
        ok = self._agree(ok)
        if not ok:
            self._cancelled.set()
        ok = self._agree(all([task.succeeded() for task in self._threads[1:]]) and ok)
        self._threads = []
        self._cancelled.clear()
        return ok

    # ------------------------------------------------------------ in the thread of the caller

    @property
    def _is_leader(self) -> bool:
        return dist.get_rank() == self._groups.grid.ranks[0]

    def _agree(self, ok: bool) -> bool:
        device = "cuda" if dist.get_backend(self._groups.whole) == "nccl" else "cpu"
        flag = torch.tensor(float(ok), device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=self._groups.whole)
        return bool(flag)

    def _take_share(self, tensors: Mapping[str, Iterator[tuple[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
        """Copies of the tensors that this rank writes: each goes to the rank of the stage that has the fewest bytes so far."""
        grid, place = self._groups.grid, self._groups.coordinates
        loads, mine = [0] * (grid.tp * grid.cp * grid.dp), (place.dp * grid.cp + place.cp) * grid.tp + place.tp
        share: dict[str, dict[str, Tensor]] = {}
        for kind, pairs in tensors.items():
            share[kind] = {}
            for name, tensor in pairs:
                writer = loads.index(min(loads))
                loads[writer] += tensor.nbytes
                if writer == mine:
                    share[kind][name] = tensor.detach().to("cpu", copy=True).contiguous()
        return share

    # ------------------------------------------------------------ in threads

    def _write(self, folder: Path, share: dict[str, dict[str, Tensor]]) -> None:
        """This rank's files, and last a note that says what is in them."""
        rank, number = dist.get_rank() - self._groups.grid.ranks[0] + 1, self._groups.grid.size
        note: dict[str, Any] = {"index": {}, "checksums": {}}
        for kind, tensors in share.items():
            if not tensors:
                continue
            path = folder / f"{kind}-{rank:05d}-of-{number:05d}.safetensors"
            save_file(tensors, str(path))
            atomic.sync(path)
            note["index"][kind] = {name: {"file": path.name, "shape": list(tensor.shape)} for name, tensor in tensors.items()}
            note["checksums"][path.name] = file_facts(path)
        atomic.write_json(folder / f".share-{rank}.json", note)

    def _complete(self, folder: Path, final: Path, state: dict[str, Any]) -> None:
        """All that is written once, when every rank's share is there; then the name."""
        began, number = time.perf_counter(), self._groups.grid.size
        while len(shares := list(folder.glob(".share-*.json"))) < number:
            if self._cancelled.wait(POLL_SECONDS):
                shutil.rmtree(folder, ignore_errors=True)
                raise SaveError(f"{final}: not written; a rank could not write its share")
        try:
            notes = [json.loads(share.read_text(encoding="utf-8")) for share in shares]
            for kind, file in INDEX.items():
                index = {name: facts for note in notes for name, facts in note["index"].get(kind, {}).items()}
                atomic.write_json(folder / file, {name: index[name] for name in sorted(index, key=_natural)})
            for share in shares:
                share.unlink()
            atomic.write_json(folder / STATE, state)
            atomic.write_text(folder / "config.yaml", self._config_yaml)
            (folder / "tokenizer").mkdir()
            self._tokenizer.save(folder / "tokenizer")
            write_checksums(folder, {name: facts for note in notes for name, facts in note["checksums"].items()})
            atomic.write_text(folder / COMPLETE, CHECKSUMS + "\n")
            atomic.sync(folder)
            _give_name(folder, final)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk: leave room for the rest
            raise
        self._prune()
        say_here(f"saved {final} ({time.perf_counter() - began:.1f} s beside the training)")

    def _prune(self) -> None:
        for old in complete_checkpoints(self._folder.parent)[: -self._keep]:
            if not (self._keep_every and step_of(old) % self._keep_every == 0):
                shutil.rmtree(old)


class _Task(threading.Thread):
    """A thread that remembers whether it failed, and says why at once."""

    def __init__(self, work, *arguments) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._work, self._arguments, self._failed = work, arguments, False
        self.start()

    def run(self) -> None:
        try:
            self._work(*self._arguments)
        except Exception as error:  # whatever it is, training goes on and the caller learns of it
            self._failed = True
            say_here(f"rank {dist.get_rank()}: checkpoint not written: {error}")

    def succeeded(self) -> bool:
        self.join()
        return not self._failed


def _natural(name: str) -> list[int | str]:
    """Sorting key: layer 2 before layer 10."""
    return [int(word) if word.isdigit() else word for word in name.split(".")]


def _give_name(folder: Path, final: Path) -> None:
    """Rename; a step that is saved again moves the old one aside, and deletes it only when the new one has its name."""
    replaced = final.with_name(final.name + ".old")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        os.replace(final, replaced)
    os.replace(folder, final)
    atomic.sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
