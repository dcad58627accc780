"""First phase: input files -> documents that are good by themselves, and what is needed to find their duplicates."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datatrove.data import Document

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.dedup.fingerprints import Fingerprints
from megagpt.prepare.document import Problem, to_flow
from megagpt.prepare.ledger import Ledger
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.progress import bytes_read
from megagpt.prepare.readers.read import read_file
from megagpt.prepare.representation_counts import BEFORE, DROPPED, Counts
from megagpt.prepare.shards import shard_of
from megagpt.prepare.steps.build import CLEAN, build_steps
from megagpt.prepare.tables import KEPT, PROBLEMS, Table, task_file, to_json
from megagpt.prepare.timing import Times
from megagpt.prepare.token_count import token_counter

CLEANED, SEEN, BROKEN = "clean", "seen", "problems"
"""Folders in `work`: documents that go on, ledger rows of all that were seen, what could not be read."""
UNJUDGED = 1.0
"""Quality of documents of kinds that the classifier is not asked about, since they are what it calls good: of an encyclopaedia's article and its copies
in a crawl the former is kept."""


class Clean(TaskStep):
    name = "clean"

    def __init__(self, config: PrepareConfig, work: Path) -> None:
        super().__init__()
        self.config, self.work = config, work

    def run_task(self, task: int, num_tasks: int) -> None:
        config, work = self.config, self.work
        shard, steps, times, number = shard_of(config, work, task), build_steps(CLEAN, config, work), Times(), 0
        num_tokens, num_bytes, done = token_counter(config.tokenizer), sum(Path(path).stat().st_size for path, _ in shard.files), 0
        with ExitStack() as files:
            kept = files.enter_context(Table(task_file(work / CLEANED, task), KEPT))
            ledger = files.enter_context(Ledger(task_file(work / SEEN, task), task, config))
            problems = files.enter_context(Table(task_file(work / BROKEN, task), PROBLEMS))
            fingerprints = files.enter_context(Fingerprints(work, task, config.steps))
            counts = files.enter_context(Counts(work / BEFORE, task, config.steps.representation))
            drops = files.enter_context(Counts(work / DROPPED[0], task, config.steps.representation))
            for path, name in shard.files:
                size, began = Path(path).stat().st_size, bytes_read()
                for found in times.reading(read_file(Path(path), shard.source, name)):
                    self.tell(lambda done=done, began=began, size=size: (done + min(bytes_read() - began, size)) / max(num_bytes, 1))
                    if isinstance(found, Problem):
                        problems.add({"source": shard.source.name, "path": found.path, "position": found.position, "reason": found.reason})
                        continue
                    with times.noting("counts"):
                        document, before = to_flow(found, shard.source), (len(found.text), num_tokens(found.text))
                        counts.add(shard.source.name, found.text)
                    dropped = _judge(document, steps, config, times)
                    with times.noting("ledger"):
                        ledger.add(document, dropped, *before)
                    if dropped is not None:
                        drops.add(shard.source.name, found.text, heading=dropped[0])
                        continue
                    kept.add({"n": number, "row": ledger.num_rows - 1, **to_row(document)})
                    with times.noting("fingerprints"):
                        quality = document.metadata["scores"].get("quality", UNJUDGED)
                        fingerprints.add(number, document.id, document.text, quality, document.metadata["kind"])
                    number += 1
                done += size
        times.tell(self, ledger.num_rows, num_bytes)


def clean_phase(config: PrepareConfig, work: Path, sizes: Sequence[int]) -> Phase:
    return Phase("clean", len(sizes), Clean(config, work), sizes)


def _judge(document: Document, steps: list[Any], config: PrepareConfig, times: Times) -> tuple[str, str] | None:
    """(step, reason) where the document is dropped."""
    if (reason := document.metadata.get("drop")) is not None:
        return "reader", reason
    if len(document.text) > config.max_document_characters:
        return "reader", "too_long"
    return pass_through(document, steps, times)


def pass_through(document: Document, steps: list[Any], times: Times) -> tuple[str, str] | None:
    """Through steps in order, up to the one that drops it: (step, reason)."""
    for step in steps:
        began = time.perf_counter()
        reason = step(document)
        times.seconds[step.name] += time.perf_counter() - began
        if reason is not None:
            return step.name, reason
        if not document.text.strip():
            return step.name, "empty"
    return None


def to_row(document: Document) -> dict[str, Any]:
    """Of the table KEPT."""
    known = document.metadata
    texts = {name: known[name] for name in ("source", "kind", "url", "licence", "date")}
    return {"id": document.id, "text": document.text, **texts, **{name: to_json(known[name]) for name in ("meta", "scores", "notes")}, "weight": known["weight"]}


def from_row(row: dict[str, Any]) -> Document:
    """The document as it was."""
    texts = {name: row[name] for name in ("source", "kind", "url", "licence", "date")}
    found = {name: json.loads(row[name]) for name in ("meta", "scores", "notes")}
    return Document(text=row["text"], id=row["id"], metadata={**texts, **found, "weight": row["weight"]})
