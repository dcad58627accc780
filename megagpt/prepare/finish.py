"""Last phase over all documents: duplicates go, then what is costly or must see the text as it will be; what remains is the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document

from megagpt.config.prepare import PrepareConfig
from megagpt.data.split import share
from megagpt.prepare.clean import CLEANED, SEEN, from_row, pass_through
from megagpt.prepare.dedup.verdicts import Verdict, Verdicts, cut, reason_after_cut
from megagpt.prepare.ledger import Ledger, read_ledger
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.representation_counts import AFTER, DROPPED, Counts
from megagpt.prepare.steps.build import FINISH, build_steps
from megagpt.prepare.tables import DOCUMENTS, Table, num_rows, read_table, task_file, to_json
from megagpt.prepare.timing import Times
from megagpt.runtime import atomic

SPLITS = ("train", "valid")
FILES = "files"
"""Folder in `work`: what `Place.describe` writes."""


@dataclass(frozen=True)
class Place:
    """Where documents and ledgers of finished tasks lie."""

    folder: Path

    def documents(self, split: str, task: int) -> Path:
        return self.folder / "documents" / f"{split}-{task:05d}.parquet"

    def ledger(self, task: int) -> Path:
        return task_file(self.folder / "ledger", task)

    def describe(self, work: Path, task: int) -> None:
        """Bytes and SHA-256 of a task's documents, for the summary, which would take days to read a large result again."""
        paths = [self.documents(split, task) for split in SPLITS]
        facts = {path.name: {"bytes": path.stat().st_size, "sha256": atomic.sha256_file(path)} for path in paths}
        (work / FILES).mkdir(parents=True, exist_ok=True)
        atomic.write_json(work / FILES / f"{task:05d}.json", facts)


class Finish(TaskStep):
    """Writes the documents of each split, and what became of all that were seen."""

    name = "finish"

    def __init__(self, config: PrepareConfig, work: Path, place: Place) -> None:
        super().__init__()
        self.config, self.work, self.place = config, work, place

    def run_task(self, task: int, num_tasks: int) -> None:
        config, work = self.config, self.work
        steps, kept, times, num_bytes = build_steps(FINISH, config, work), read_table(task_file(work / CLEANED, task)), Times(), 0
        with ExitStack() as files:
            verdicts = Verdicts(work, task, config.steps)
            counts = files.enter_context(Counts(work / AFTER, task, config.steps.representation))
            drops = files.enter_context(Counts(work / DROPPED[1], task, config.steps.representation))
            ledger = files.enter_context(Ledger(self.place.ledger(task), task, config))
            documents = {split: files.enter_context(Table(self.place.documents(split, task), DOCUMENTS)) for split in SPLITS}
            total = num_rows(task_file(work / SEEN, task))
            for seen in read_ledger(task_file(work / SEEN, task)):
                self.tell(lambda: ledger.num_rows / total)
                if not seen["kept"]:
                    ledger.copy(seen)
                    continue
                row = next(kept)
                num_bytes += len(row["text"])
                document, verdict = from_row(row), verdicts.of(row["n"])
                reason = _without_duplicates(document, verdict, config)
                dropped = ("duplicates", reason) if reason is not None else pass_through(document, steps, times)
                split = None
                if dropped is not None:
                    drops.add(row["source"], row["text"], heading=dropped[0])
                else:
                    with times.noting("counts"):
                        counts.add(document.metadata["source"], document.text)
                    split = "valid" if share(document.id) < config.valid_fraction else "train"
                    documents[split].add(_result(document))
                before = seen["characters_before"], seen["tokens_before"]
                with times.noting("ledger"):
                    ledger.add(document, dropped, *before, split=split, cluster=verdict.cluster, kept_instead=verdict.kept)
        self.place.describe(work, task)
        times.tell(self, ledger.num_rows, num_bytes)


def _without_duplicates(document: Document, verdict: Verdict, config: PrepareConfig) -> str | None:
    """Cut out what other documents have before it; the reason where the whole document goes."""
    notes = {"jaccard": verdict.jaccard, "paragraphs": len(verdict.paragraphs), "lines": len(verdict.lines)}
    if any(notes.values()):
        document.metadata["notes"]["duplicates"] = {name: value for name, value in notes.items() if value}
    document.text = cut(document.text, verdict)
    return verdict.reason or reason_after_cut(document.text, verdict, config.steps.exact_duplicates)


def _result(document: Document) -> dict[str, Any]:
    """Of the table DOCUMENTS; `meta` says the language too, where it was identified."""
    known, notes = document.metadata, document.metadata["notes"]
    meta = known["meta"] | ({"language": notes["language"]} if "language" in notes else {})
    texts = {name: known[name] for name in ("source", "url", "licence", "date")}
    return {"id": document.id, "text": document.text, **texts, "meta": to_json(meta), "weight": known["weight"]}


def finish_phase(config: PrepareConfig, work: Path, place: Place, sizes: Sequence[int]) -> Phase:
    return Phase("finish", len(sizes), Finish(config, work, place), sizes)
