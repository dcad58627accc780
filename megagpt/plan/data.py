"""Core-hours and disk of a data preparation, extrapolated from one that was measured, with the arithmetic shown."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megagpt.config.load import ConfigError
from megagpt.config.prepare import PrepareConfig
from megagpt.plan.show import size

MEASURED = Path(__file__).parents[2] / "configs" / "data" / "measured.json"
"""What one core took for each phase, on a mixture of all kinds of source; its own header says where."""
UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15}

GROWING = ("work/clean", "work/dedup", "work/seen", "work/unweighed", "documents", "ledger")
"""Folders whose size goes with the corpus; the others have some kilobytes a task."""


@dataclass(frozen=True)
class Phase:
    """One phase of the whole."""

    name: str
    tasks: int
    core_hours: float
    sum: str
    """How that was reckoned."""


@dataclass(frozen=True)
class DataPlan:
    num_bytes: float
    """Of raw input."""
    cores: int
    phases: list[Phase]
    disk: dict[str, float] = field(default_factory=dict)
    """Folder -> bytes; `work/…` is there only while it runs."""
    notes: list[str] = field(default_factory=list)

    @property
    def core_hours(self) -> float:
        return sum(phase.core_hours for phase in self.phases)

    @property
    def hours(self) -> float:
        """With all cores at work; a phase of few tasks keeps few cores busy, and one core does a task to its end."""
        return sum(phase.core_hours / phase.tasks * math.ceil(phase.tasks / self.cores) for phase in self.phases if phase.tasks)


def parse_size(text: str) -> float:
    """`100TB`, `1.5 GB`: bytes, in powers of ten.

    Raises:
        ConfigError: no such number and unit.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgtp]b)\s*", text, re.IGNORECASE)
    try:
        return float(found[1]) * UNITS[found[2].lower()]
    except (TypeError, ValueError):
        raise ConfigError(f"--size {text}: expected a number and one of {', '.join(unit.upper() for unit in UNITS)}, as 100TB") from None


def plan_data(config: PrepareConfig, num_bytes: float, cores: int, measured: dict[str, Any]) -> DataPlan:
    """Every task takes some time to start, and every phase time in proportion to the bytes of its input: those of the raw files in the first, and what
    is left of them later.

    Sorting takes the logarithm of the number of documents more, which is inside the margin of the rest (a factor of 1.3 from a million documents to
    ten billion, of a phase that is a few percent of the whole).

    Args:
        cores: tasks at the same time.
        measured: `timing.json` of a run, or MEASURED, which has `start_seconds` too: phase -> what a task takes that has almost nothing to do.

    Raises:
        ConfigError: the measurement holds no input.
    """
    phases, raw = measured["phases"], measured["phases"].get("clean", {}).get("bytes", 0)
    if not raw:
        raise ConfigError("the measured run read no input; name one that did by --measured")
    factor, shards, found = num_bytes / raw, math.ceil(num_bytes / (config.shard_mib * 2**20)), []
    for name, phase in phases.items():
        tasks = shards if phase["tasks"] == phases["clean"]["tasks"] else phase["tasks"]
        start = measured.get("start_seconds", {}).get(name, 0.0)
        seconds = max(phase["seconds"]["all"] - start * phase["tasks"], 0.0)
        words = f"{seconds:,.3f} core-seconds for {raw / 1e6:,.1f} MB, x {factor:,.0f}" + (f", {start:.2g} s to start a task" if start else "")
        found.append(Phase(name, tasks, (seconds * factor + start * tasks) / 3600, words))
    disk = {name: measured["disk"][name] * factor for name in GROWING if name in measured["disk"]}
    return DataPlan(num_bytes, cores, found, disk, _notes(config, num_bytes, shards, measured))


def _notes(config: PrepareConfig, num_bytes: float, shards: int, measured: dict[str, Any]) -> list[str]:
    seconds = measured["phases"]["clean"]["seconds"]
    whole, parts = seconds["all"], sorted(((value, name) for name, value in seconds.items() if name != "all"), reverse=True)
    shares = ", ".join(f"{name} {value / whole:.0%}" for value, name in parts[:5])
    return [
        f"tasks: {num_bytes / 1e12:,.3g} TB / {config.shard_mib:,.0f} MiB a shard = {shards:,}",
        f"of the first phase: {shares}",
        f"memory: {config.executor.memory_gib:g} GiB where a task sorts or joins, whatever the size of the corpus",
        "a larger corpus holds more duplicates: the phases behind their search are an upper bound",
    ]


def as_json(plan: DataPlan) -> dict[str, Any]:
    phases = [{"name": phase.name, "tasks": phase.tasks, "core_hours": phase.core_hours, "sum": phase.sum} for phase in plan.phases]
    return {
        "stage": "prepare", "bytes": plan.num_bytes, "cores": plan.cores, "core_hours": plan.core_hours, "hours": plan.hours, "phases": phases,
        "disk": plan.disk, "notes": plan.notes,
    }  # fmt: skip


def lines(plan: DataPlan, price: float | None) -> list[str]:
    """The plan for a terminal."""
    width = max(len(phase.name) for phase in plan.phases)
    found = [f"{plan.num_bytes / 1e12:,.4g} TB of raw input on {plan.cores:,} cores"]
    found += [f"  {phase.name:<{width}}  {phase.core_hours:>12,.1f} core-hours in {phase.tasks:,} tasks   ({phase.sum})" for phase in plan.phases]
    cost = "" if price is None else f", {plan.core_hours * price:,.0f} at {price:g} a core-hour"
    found.append(f"  {'all':<{width}}  {plan.core_hours:>12,.1f} core-hours: {plan.hours:,.1f} hours{cost}")
    while_running = sum(num_bytes for name, num_bytes in plan.disk.items() if name.startswith("work/"))
    found.append(f"disk: {size(sum(plan.disk.values()) - while_running)} stay, {size(while_running)} more while it runs")
    found += [f"  {name}: {size(num_bytes)}" for name, num_bytes in plan.disk.items()]
    return found + plan.notes


def read_measured(path: Path | None) -> dict[str, Any]:
    """Of a run folder or a file; default: the figures that come with the project.

    Raises:
        ConfigError: there is none.
    """
    path = MEASURED if path is None else path / "prepare" / "timing.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no timing of a data preparation ({error})") from error
