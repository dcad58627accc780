"""What each model and each phase takes on every rank: as the planner says, and as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megagpt.config.schema import RlhfConfig
from megagpt.parallel.placement import TRAINED
from megagpt.parallel.route import replica_rows
from megagpt.plan import memory as plan_memory
from megagpt.plan import ppo_memory
from megagpt.plan.hardware import load_hardware
from megagpt.plan.job import Job
from megagpt.plan.ppo import jobs_of
from megagpt.plan.show import size
from megagpt.rlhf.four_models import FourModels, Starts
from megagpt.runtime import atomic
from megagpt.runtime.log import is_main_rank, say
from megagpt.runtime.memory import measured_peak, storage_bytes

PARTS = ("weights", "gradients", "optimizer", "buffers", "average")
"""Of a model; a frozen one has weights alone."""
FILE = "memory.json"


class MemoryMeter:
    """Measures one round, the second of this process where there is one: some optimizer states are made in the first.

    Args:
        folder: of the stage.
        step: the round to be measured.
    """

    def __init__(self, config: RlhfConfig, models: FourModels, starts: Starts, device: torch.device, folder: Path, step: int) -> None:
        self._config, self._models, self._starts, self._device, self._folder, self._step = config, models, starts, device, folder, step
        self._now = 0
        self._measured: dict[str, int] = {}
        self._predicted: dict[str, dict[str, Any]] = {}

    def begin(self, step: int, prompts: Sequence[Sequence[int]]) -> None:
        """The round that comes, and what it asks: token ids of each row."""
        self._now = step
        if step == self._step:
            self._predicted = predict(self._config, self._models, self._starts, prompts)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Around each span of this rank's timeline, by its name; without effect but in the measured round. A phase takes what its largest span does."""
        kind, _, role = name.partition(" ")
        phase = {"generate": "rollout", "score": "score", "advantages": "score", "train": f"update {role}"}.get(kind)
        if self._now != self._step or phase is None:
            yield
            return
        resident = torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else self._resident_bytes()
        with measured_peak(self._device) as peak:
            yield
        self._measured[phase] = max(self._measured.get(phase, 0), resident + peak.num_bytes)

    def tell(self) -> dict[str, float]:
        """After the measured round, on every rank of the job: print what rank 0 holds, write memory.json; the largest bytes of any rank, as metrics."""
        if self._now != self._step:
            return {}
        here = {"models": _pairs(self._predicted["models"], self._held()), "phases": _pairs(self._predicted["phases"], self._measured)}
        ranks: list[dict[str, Any]] = [{}] * dist.get_world_size()
        dist.all_gather_object(ranks, here)
        if is_main_rank():
            self._write(ranks)
        for line in lines(ranks[0]):
            say(f"[rlhf] memory of rank 0, {line}")
        self._now = 0  # an evaluation that follows is not measured
        return _largest(ranks)

    def _write(self, ranks: list[dict[str, Any]]) -> None:
        try:
            atomic.write_json(self._folder / FILE, {"step": self._step, "device": self._device.type, "ranks": ranks})
        except OSError as error:
            say(f"[rlhf] {FILE} could not be written ({error.strerror}); training goes on without")

    def _held(self) -> dict[str, dict[str, int]]:
        """Bytes of each model's parts on this rank's device."""
        models, found = self._models, {}
        for role in models.grids:
            if models.groups[role] is None or (role == "reference" and models.reference_is_policy):
                continue
            module = models.module(role)
            found[role] = getattr(models, role).held_bytes() if role in TRAINED else {"weights": storage_bytes(module.parameters())}
        if models.average is not None:
            found["policy"]["average"] = 0 if models.policy.offload_optimizer != "none" else storage_bytes(models.average.averages)
        return found

    def _resident_bytes(self) -> int:
        """Of all models between the phases."""
        return sum(num_bytes for parts in self._held().values() for part, num_bytes in parts.items() if part != "gradients")


def predict(config: RlhfConfig, models: FourModels, starts: Starts, prompts: Sequence[Sequence[int]]) -> dict[str, dict[str, Any]]:
    """What the planner says of this rank: bytes of each model's parts, and of each phase of a round that asks this."""
    grids = {role: grid for role, grid in models.grids.items() if role != "held_out"}
    sizes = {role: starts.of(role).model_config for role in models.grids}
    hardware = load_hardware("cpu").model_copy(update={"runtime_bytes": 0.0})  # tensors alone, which take the same on every device
    jobs = jobs_of(config, grids, sizes, hardware)
    roles = ppo_memory.stages_of(jobs, dist.get_rank())
    found: dict[str, dict[str, int]] = {}
    for role, stage in ppo_memory.present(config, jobs, roles).items():
        whole = ppo_memory.held(config, jobs[role], role, stage)
        found[role] = {part: getattr(whole, part) for part in (PARTS if role in TRAINED else PARTS[:1])}
        if role in TRAINED:
            found[role]["gradients"] = plan_memory.training_phases(jobs[role], stage)["reduce and step"].gradients
        if role == "value" or config.ppo.ema_decay is None:
            found[role].pop("average", None)
    phases = ppo_memory.phases(config, jobs, roles, _asked(config, jobs, models, prompts))
    return {"models": found, "phases": {phase: whole.total for phase, whole in phases.items()}}


def _asked(config: RlhfConfig, jobs: dict[str, Job], models: FourModels, prompts: Sequence[Sequence[int]]) -> list[ppo_memory.Asked]:
    """Of this rank's replica, in each part of a rollout; nothing where it does not write."""
    if (groups := models.groups[models.writer]) is None:
        return []
    rows = ppo_memory.rows_of_a_part(config, jobs, len(prompts))
    at_once, found = ppo_memory.rows_at_once(config, jobs[models.writer], rows), []
    for begin in range(0, len(prompts), rows):
        mine = replica_rows(rows, groups.grid, groups.coordinates.dp)
        found.append(ppo_memory.Asked.of([prompts[begin + row] for row in mine], at_once))
    return found


def _pairs(predicted: Any, measured: Any) -> Any:
    """The same tree with both numbers at each leaf; null where a phase was left out of the round."""
    if isinstance(predicted, dict):
        return {name: _pairs(value, None if measured is None else measured.get(name)) for name, value in predicted.items()}
    return {"predicted": predicted, "measured": measured}


def lines(rank: dict[str, Any]) -> list[str]:
    """What a rank holds of each model, and the peak of each phase: measured, and in brackets planned."""
    held = {role: {kind: sum(pair[kind] for pair in parts.values()) for kind in ("measured", "predicted")} for role, parts in rank["models"].items()}
    peaks = {phase: pair for phase, pair in rank["phases"].items() if pair["measured"] is not None}
    return [
        f"{title}: {', '.join(_words(name, pair) for name, pair in pairs.items())}"
        for title, pairs in (("models, measured (planned)", held), ("peaks of the phases", peaks))
    ]


def _words(name: str, pair: dict[str, int]) -> str:
    return f"{name} {size(pair['measured'])} ({size(pair['predicted'])})"


def _largest(ranks: list[dict[str, Any]]) -> dict[str, float]:
    """Over all ranks: GiB of each model, and of the highest peak."""
    metrics: dict[str, float] = {}
    for rank in ranks:
        named = {role: sum(pair["measured"] for pair in parts.values()) for role, parts in rank["models"].items()}
        named["peak"] = max((pair["measured"] or 0 for pair in rank["phases"].values()), default=0)
        for name, num_bytes in named.items():
            metrics[f"memory_{name}_gib"] = max(metrics.get(f"memory_{name}_gib", 0.0), num_bytes / 2**30)
    return metrics
