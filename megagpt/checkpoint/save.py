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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint.layout import CHECKSUMS, COMPLETE, FORMAT, INDEX, STATE, SaveError, file_facts, write_checksums
from megagpt.parallel.groups import Groups
from megagpt.runtime import atomic
from megagpt.runtime.log import say_here

POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 1.0


class SavesTokenizer(Protocol):
    def save(self, folder: Path) -> None: ...


class Saver:
    """Saves one model of a stage; all ranks of its grid hold one and call it alike.

    Args:
        stage_folder: checkpoints go to `checkpoints/step_<n>` in here.
        prune: removes what is not to be kept, once a checkpoint is whole; called in the thread of the grid's first rank.
    """

    def __init__(self, stage_folder: Path, groups: Groups, *, config_yaml: str, tokenizer: SavesTokenizer, prune: Callable[[], None]) -> None:
        self._folder, self._groups = stage_folder / "checkpoints", groups
        self._config_yaml, self._tokenizer, self._prune = config_yaml, tokenizer, prune
        self._writing: _Task | None = None
        self._completing: _Task | None = None
        self._begun, self._cancelled = True, threading.Event()

    def save(self, step: int, tensors: Mapping[str, Iterator[tuple[str, Tensor]]], state: Mapping[str, Any]) -> Path:
        """Begin to write `step_<step>`; returns its path once this rank's share is copied.

        Args:
            tensors: kind (`model`, `optimizer`) -> this stage's canonical tensors, whole (gathering is collective, so all ranks iterate).
            state: what else the checkpoint must say (stage, model, parent, counters …); `format` and `step` are added.
        """
        self.wait()
        final = self._folder / f"step_{step}"
        folder = final.with_name(final.name + ".tmp")
        self._begun = self._agree(not self._is_leader or _make_anew(folder))
        if self._begun:
            share = self._take_share(tensors)
            self._writing = _Task(self._write, folder, share)
            if self._is_leader:
                self._completing = _Task(self._complete, folder, final, {"format": FORMAT, "step": step, **state})
        return final

    def wait(self) -> bool:
        """Until what was begun is on disk. Returns whether it is, the same on all ranks; the reason was printed."""
        ok = self._outcome(self._writing)
        if not ok:
            self._cancelled.set()
        ok = self._outcome(self._completing) and ok and self._begun
        self._writing = self._completing = None
        self._begun = True
        self._cancelled.clear()
        return ok

    # ------------------------------------------------------------ in the thread of the caller

    @property
    def _is_leader(self) -> bool:
        return dist.get_rank() == self._groups.grid.ranks[0]

    def _outcome(self, task: _Task | None) -> bool:
        """Did it go well on every rank that has one? A disk may need longer than a collective may wait, so the ranks ask each other again and again."""
        pause = POLL_SECONDS
        while not self._agree(task is None or not task.is_alive()):
            time.sleep(pause)
            pause = min(2 * pause, MAX_POLL_SECONDS)
        return self._agree(task is None or not task.failed)

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
        paths = {kind: folder / f"{kind}-{rank:05d}-of-{number:05d}.safetensors" for kind, tensors in share.items() if tensors}
        try:
            for kind, path in paths.items():
                save_file(share[kind], str(path))
                atomic.sync(path)
                note["index"][kind] = {name: {"file": path.name, "shape": list(tensor.shape)} for name, tensor in share[kind].items()}
                note["checksums"][path.name] = file_facts(path)
            atomic.write_json(folder / f".share-{rank}.json", note)
        except Exception:
            for path in paths.values():
                path.unlink(missing_ok=True)  # a full disk: leave room for the rest
            raise

    def _complete(self, folder: Path, final: Path, state: dict[str, Any]) -> None:
        """All that is written once, when every rank's share is there; then the name."""
        began, number, pause = time.perf_counter(), self._groups.grid.size, POLL_SECONDS
        while len(shares := list(folder.glob(".share-*.json"))) < number:
            if self._cancelled.wait(pause):
                shutil.rmtree(folder, ignore_errors=True)
                raise SaveError(f"{final}: a rank could not write its share")
            pause = min(2 * pause, MAX_POLL_SECONDS)
        try:
            notes = [json.loads(share.read_text(encoding="utf-8")) for share in shares]
            index = {kind: {name: facts for note in notes for name, facts in note["index"].get(kind, {}).items()} for kind in INDEX}
            known = {name: facts for note in notes for name, facts in note["checksums"].items()}
            for share in shares:
                share.unlink()
            complete(folder, final, index, state, config_yaml=self._config_yaml, tokenizer=self._tokenizer, known=known)
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        say_here(f"saved {final} ({time.perf_counter() - began:.1f} s beside the training)")
        self._prune()


def complete(
    folder: Path, final: Path, index: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any], *, config_yaml: str, tokenizer: SavesTokenizer,
    known: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> None:
    """Beside the tensors in `folder`, everything that makes it a whole checkpoint; then its name.

    Args:
        index: kind (`model`, `optimizer`) -> name of a tensor -> {"file", "shape"}.
        known: facts of files that their writers have hashed, by name.
    """
    for kind, file in INDEX.items():
        atomic.write_json(folder / file, {name: index[kind][name] for name in sorted(index[kind], key=_natural)})
    atomic.write_json(folder / STATE, atomic.without_nan(state))
    atomic.write_text(folder / "config.yaml", config_yaml)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    write_checksums(folder, known)
    atomic.write_text(folder / COMPLETE, CHECKSUMS + "\n")
    atomic.sync(folder)
    _give_name(folder, final)


class _Task(threading.Thread):
    """A thread that remembers whether it failed, and says why at once."""

    def __init__(self, work, *arguments) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._work, self._arguments, self.failed = work, arguments, False
        self.start()

    def run(self) -> None:
        try:
            self._work(*self._arguments)
        except Exception as error:  # whatever it is, training goes on and the caller learns of it
            self.failed = True
            say_here(f"rank {dist.get_rank()}: checkpoint not written: {error}")


def _make_anew(folder: Path) -> bool:
    """An empty folder; False, with the reason printed, where it cannot be made."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        say_here(f"checkpoint not written: {error}")
        return False
    return True


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
