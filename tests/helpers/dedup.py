"""A small corpus through the duplicate phases, without the phases around them."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig, PrepareConfig
from megagpt.prepare.dedup.fingerprints import Fingerprints
from megagpt.prepare.dedup.phases import dedup_phases
from megagpt.prepare.dedup.verdicts import Verdict, Verdicts


@dataclass(frozen=True)
class Item:
    id: str
    text: str
    quality: float = 0.0
    kind: str = "web"


def prepare_config(exact: ExactDuplicatesConfig | None = None, near: NearDuplicatesConfig | None = None, memory_gib: float = 0.5) -> PrepareConfig:
    return PrepareConfig.model_validate({
        "run": {"name": "dedup"}, "sources": [{"name": "made", "kind": "web", "files": ["none"]}], "executor": {"memory_gib": memory_gib},
        "steps": {"exact_duplicates": exact, "near_duplicates": near},
    })


def write_clean(work: Path, task: int, items: Sequence[Item], config: PrepareConfig, row_group: int = 100) -> None:
    """What the clean phase leaves of one task."""
    (work / "clean").mkdir(parents=True, exist_ok=True)
    ids, texts = (pa.array([getattr(item, name) for item in items], pa.string()) for name in ("id", "text"))
    columns = {"n": pa.array(range(len(items)), pa.int64()), "id": ids, "text": texts}
    pq.write_table(pa.table(columns), work / f"clean/{task:05d}.parquet", row_group_size=row_group)
    with Fingerprints(work, task, config.steps) as fingerprints:
        for n, item in enumerate(items):
            fingerprints.add(n, item.id, item.text, item.quality, item.kind)


def run_phases(work: Path, num_tasks: int, config: PrepareConfig, order: random.Random | None = None) -> None:
    """All tasks of all phases, those of one phase in any order."""
    for phase in dedup_phases(config, work, num_tasks):
        tasks = list(range(phase.num_tasks))
        if order is not None:
            order.shuffle(tasks)
        for task in tasks:
            phase.step.run_task(task, phase.num_tasks)


def verdicts_of(work: Path, shards: Sequence[Sequence[Item]], config: PrepareConfig) -> dict[str, Verdict]:
    """By document id."""
    found = {}
    for task, items in enumerate(shards):
        verdicts = Verdicts(work, task, config.steps)
        found |= {item.id: verdicts.of(n) for n, item in enumerate(items)}
    return found


def dedup(work: Path, shards: Sequence[Sequence[Item]], config: PrepareConfig) -> dict[str, Verdict]:
    """The whole way."""
    for task, items in enumerate(shards):
        write_clean(work, task, items, config)
    run_phases(work, len(shards), config)
    return verdicts_of(work, shards, config)


def digests(work: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path."""
    return {str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(work.rglob("*")) if path.is_file()}


def shingle_set(text: str, words: int = 5) -> set[tuple[str, ...]]:
    """The plain definition: runs of lower-cased `\\w+` words."""
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[start : start + words]) for start in range(len(found) - words + 1)}


def jaccard_sets(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def sentences(generator: random.Random, num_words: int, vocabulary: int = 5000) -> list[str]:
    """Words that mean nothing."""
    return [f"w{generator.randrange(vocabulary)}" for _ in range(num_words)]


def with_changes(generator: random.Random, words: Iterable[str], share: float) -> list[str]:
    """Some words replaced by ones that stand nowhere else."""
    return [f"x{generator.randrange(10**9)}" if generator.random() < share else word for word in words]
