"""`megagpt data run` on raw sources: all phases, each task once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.clean import clean_phase
from megagpt.prepare.common_phrases import common_phrase_phases
from megagpt.prepare.dedup.phases import dedup_phases
from megagpt.prepare.executors import run_phases
from megagpt.prepare.finish import Place, finish_phase
from megagpt.prepare.phase import Phase
from megagpt.prepare.ranks import from_main, is_main, joined
from megagpt.prepare.reweigh import reweigh_phases
from megagpt.prepare.reweighting import check_targets
from megagpt.prepare.shards import plan_shards, read_plan, write_plan
from megagpt.prepare.steps.build import check_steps
from megagpt.prepare.steps.decontamination import build_index
from megagpt.prepare.summary import CONTAMINATION, REPRESENTATION, STATISTICS, summary_phase
from megagpt.prepare.timing import gather
from megagpt.runtime.stop_request import ending

WORK = "work"
RESULTS = ("documents", "ledger", "problems.parquet", REPRESENTATION, CONTAMINATION, STATISTICS, "data.html", "plots")


def run_prepare(config: PrepareConfig, folder: Path) -> dict[str, Any] | None:
    """Make `documents/`, `ledger/`, `problems.parquet` and `statistics.json` in the stage's folder.

    What an earlier run of the same configuration and input has done is not done again; another configuration starts anew.

    Returns:
        The content of `statistics.json`, the same on every rank of an mpirun; None where the work was only handed to a scheduler.

    Raises:
        DataError: a source without files, or a model or list that a step needs and that is not there.
        PrepareError: a task failed; the same command goes on from there.
        Stopped: by a signal, at any moment; here too.
    """
    kind = config.executor.kind
    with ending("stopped on request; the same command goes on from here"), joined(kind):
        sizes = from_main(kind, lambda: _plan(config, folder))
        if sizes and not run_phases(all_phases(config, folder, sizes), config.executor, folder / WORK):
            return None
    statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
    if is_main() and (folder / WORK / "tasks").exists():
        gather(folder, folder / WORK)
    if is_main() and not config.keep_work:
        shutil.rmtree(folder / WORK, ignore_errors=True)
    return statistics


def all_phases(config: PrepareConfig, folder: Path, sizes: Sequence[int]) -> list[Phase]:
    """In order. `sizes`: bytes of input of each shard."""
    work, result = folder / WORK, Place(folder)
    representation = config.steps.representation
    reweighs = representation is not None and representation.reweighting is not None
    finished = Place(work / "unweighed") if reweighs else result
    return [
        clean_phase(config, work, sizes), *dedup_phases(config, work, len(sizes)), *common_phrase_phases(config, work, sizes),
        finish_phase(config, work, finished, sizes), *(reweigh_phases(config, work, finished, result, sizes) if reweighs else []),
        summary_phase(config, work, folder),
    ]  # fmt: skip


def _plan(config: PrepareConfig, folder: Path) -> list[int]:
    """Plan the shards; bytes of input of each, none where all is done. What belongs to another plan goes."""
    work, plan = folder / WORK, plan_shards(config)
    before, done = read_plan(work), folder / STATISTICS
    if config.run.resume == "auto" and done.exists() and json.loads(done.read_text(encoding="utf-8"))["key"] == plan["key"]:
        return []
    if before is None or before["key"] != plan["key"] or config.run.resume == "never":
        for path in (work, *(folder / name for name in RESULTS)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_plan(work, plan)
    if config.steps.decontamination is not None:
        build_index(config.steps.decontamination, work)
    check_steps(config, work)
    if config.steps.representation is not None and config.steps.representation.reweighting is not None:
        check_targets(config.steps.representation)
    return [shard["bytes"] for shard in plan["shards"]]
