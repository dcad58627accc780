"""The phase behind all others: what became of each source, in numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.clean import BROKEN
from megagpt.prepare.dedup.database import below, quoted
from megagpt.prepare.finish import FILES
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.representation_counts import AFTER, BEFORE, DROPPED, WEIGHED, read_counts, read_headings
from megagpt.prepare.shards import read_plan
from megagpt.prepare.steps.build import CLEAN, FINISH
from megagpt.prepare.steps.decontamination import touched
from megagpt.runtime import atomic

STATISTICS = "statistics.json"
"""Written last: where it lies with the key of a plan, everything of this plan is done."""


REPRESENTATION, CONTAMINATION = "representation.json", "contamination.json"
"""Counts of identity terms before, after and dropped by step, with their settings; what of the evaluation sets was found."""


class Summary(TaskStep):
    name = "summary"

    def __init__(self, config: PrepareConfig, work: Path, folder: Path) -> None:
        super().__init__()
        self.config, self.work, self.folder = config, work, folder

    def run_task(self, task: int, num_tasks: int) -> None:
        plan = read_plan(self.work)
        with database(self.config) as connection:
            _gather_problems(connection, self.work / BROKEN, self.folder / "problems.parquet")
            statistics = statistics_of(connection, self.folder, [source.name for source in self.config.sources])
            contamination = _contamination(connection, self.config, self.work, self.folder)
        if self.config.steps.representation is not None:
            atomic.write_json(self.folder / REPRESENTATION, _representation(self.work, self.config))
        if contamination is not None:
            atomic.write_json(self.folder / CONTAMINATION, contamination)
        files = (json.loads(path.read_text(encoding="utf-8")) for path in (self.work / FILES).glob("*.json"))
        statistics["files"] = dict(sorted((name, facts) for described in files for name, facts in described.items()))
        atomic.write_json(self.folder / STATISTICS, {"key": plan["key"], **statistics})


def summary_phase(config: PrepareConfig, work: Path, folder: Path) -> Phase:
    return Phase("summary", 1, Summary(config, work, folder))


def database(config: PrepareConfig | None = None) -> duckdb.DuckDBPyConnection:
    """In memory up to `executor.memory_gib`; nothing is fetched, nothing loaded from elsewhere."""
    connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False, "autoload_known_extensions": False})
    if config is not None:
        connection.execute(f"SET memory_limit = '{config.executor.memory_gib}GiB'")
    return connection


def statistics_of(connection: duckdb.DuckDBPyConnection, folder: Path, names: list[str]) -> dict[str, Any]:
    """Documents and characters of each source, seen and kept; documents dropped by step and reason; problems by source.

    `names`: of the sources; one that gave no document is told with zeros.
    """
    ledger = ledger_files(folder)
    by_source = connection.execute(
        """SELECT source, count(*), count(*) FILTER (kept), count(*) FILTER (split = 'valid'), sum(characters_before), sum(characters_after),
        sum(tokens_before), sum(tokens_after) FROM read_parquet(?) GROUP BY source ORDER BY source""", [ledger],
    ).fetchall()  # fmt: skip
    dropped = connection.execute(
        "SELECT source, step, reason, count(*) FROM read_parquet(?) WHERE NOT kept GROUP BY ALL ORDER BY source, step, reason", [ledger]
    ).fetchall()
    problems = dict(connection.execute("SELECT source, count(*) FROM read_parquet(?) GROUP BY source", [below(folder, "problems.parquet")]).fetchall())
    sources: dict[str, Any] = {
        source: {
            "seen": seen, "kept": kept, "valid": valid, "characters_before": int(before), "characters_after": int(after),
            **({} if tokens is None else {"tokens_before": int(tokens), "tokens_after": int(tokens_after)}), "problems": problems.get(source, 0), "dropped": {},
        }
        for source, seen, kept, valid, before, after, tokens, tokens_after in by_source
    }  # fmt: skip
    for source, step, reason, count in dropped:
        sources[source]["dropped"].setdefault(step, {})[reason] = count
    for source in sorted(set(names) - sources.keys()):
        nothing = {"seen": 0, "kept": 0, "valid": 0, "characters_before": 0, "characters_after": 0}
        sources[source] = {**nothing, "problems": problems.get(source, 0), "dropped": {}}
    return {"sources": sources}


def _representation(work: Path, config: PrepareConfig) -> dict[str, Any]:
    dropped = {**read_headings(work / DROPPED[0]), **read_headings(work / DROPPED[1])}
    ordered = {step: dropped[step] for step in ("reader", *CLEAN, "duplicates", *FINISH) if step in dropped}
    counts = {BEFORE: read_counts(work / BEFORE), AFTER: read_counts(work / AFTER), "dropped": ordered}
    weighed = {WEIGHED: read_counts(work / WEIGHED)} if (work / WEIGHED).exists() else {}
    return {"settings": config.steps.representation.model_dump(mode="json"), **counts, **weighed}


def _contamination(connection: duckdb.DuckDBPyConnection, config: PrepareConfig, work: Path, folder: Path) -> list[dict[str, Any]] | None:
    if config.steps.decontamination is None:
        return None
    result = connection.execute(
        """SELECT json_extract(notes, '$.decontamination') FROM read_parquet(?) WHERE json_exists(notes, '$.decontamination')
        ORDER BY task, row""", [ledger_files(folder)],
    )  # fmt: skip
    return touched(work, (json.loads(notes) for rows in iter(lambda: result.fetchmany(1000), []) for (notes,) in rows))


def ledger_files(folder: Path) -> str:
    """Pattern of a stage's ledger."""
    return below(folder / "ledger", "*.parquet")


def _gather_problems(connection: duckdb.DuckDBPyConnection, tasks: Path, path: Path) -> None:
    """One file of all tasks, in their order."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    source = f"read_parquet({quoted(below(tasks, '*.parquet'))}, filename = true, file_row_number = true)"
    connection.execute(
        f"COPY (SELECT source, path, position, reason FROM {source} ORDER BY filename, file_row_number) TO {quoted(unfinished)} (FORMAT parquet)"
    )
    unfinished.replace(path)
