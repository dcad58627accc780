"""Which task reads which files: fixed by the input and the configuration, before any task runs."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.config.prepare import PrepareConfig, SourceConfig
from megagpt.data.errors import DataError
from megagpt.prepare.readers.files import find_files
from megagpt.prepare.steps.build import step_files
from megagpt.runtime import atomic

PLAN = "plan.json"


@dataclass(frozen=True)
class Shard:
    """Input of one task: files of one source."""

    source: SourceConfig
    files: tuple[tuple[str, str], ...]
    """(path, name in the ids of its documents)"""


def plan_shards(config: PrepareConfig) -> dict[str, Any]:
    """Look at all input files: the shards, and a key that changes with the configuration, any input file's size or time, and the content of what the
    steps read (models, lists, evaluation sets).

    Small files of a source are read together until they hold `shard_mib`.

    Raises:
        DataError: a source without files, or a file or folder that may not be read.
    """
    shards: list[dict[str, Any]] = []
    facts: list[Any] = [config.model_dump(exclude={"executor", "run", "keep_work"})]
    facts += [[str(path), _content(path)] for path in step_files(config)]
    for number, source in enumerate(config.sources):
        files = find_files(source)
        base = os.path.commonpath([os.path.abspath(path.parent) for path in files])
        room = -1.0  # not even for an empty file: the shard before is another source's
        for path in files:
            status = path.stat()
            facts.append([str(path), status.st_size, status.st_mtime_ns])
            if status.st_size > room:  # does not fit into the shard before it
                shards.append({"source": number, "files": [], "bytes": 0})
                room = config.shard_mib * 2**20
            shards[-1]["files"].append([str(path), os.path.relpath(path, base)])
            shards[-1]["bytes"] += status.st_size
            room -= status.st_size
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"key": key, "shards": shards}


def _content(path: Path) -> str | None:
    """Hash of a file that a step reads; None where there is none, which the step itself will tell."""
    try:
        return atomic.sha256_file(path) if path.is_file() else None
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})") from error


def write_plan(work: Path, plan: dict[str, Any]) -> None:
    """For the tasks, and for a run that comes after this one."""
    work.mkdir(parents=True, exist_ok=True)
    atomic.write_text(work / PLAN, json.dumps(plan, indent=2) + "\n")  # ASCII: the name of a file may be bytes that are no UTF-8


def read_plan(work: Path) -> dict[str, Any] | None:
    """What was written last, if it was."""
    path = work / PLAN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def shard_of(config: PrepareConfig, work: Path, task: int) -> Shard:
    """Of a planned task."""
    found = read_plan(work)["shards"][task]
    return Shard(config.sources[found["source"]], tuple((path, name) for path, name in found["files"]))
