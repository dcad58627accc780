"""Weights of documents by whom they speak of: phases behind the last one, since all documents must have been counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.finish import SPLITS, Place
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.representation_counts import AFTER, WEIGHED, Counts, read_counts
from megagpt.prepare.reweighting import Weigher, weights
from megagpt.prepare.tables import DOCUMENTS, LEDGER, Table, num_rows, read_table
from megagpt.runtime import atomic

FACTORS = "factors.json"
"""In `work`: what a mention of each group counts."""


class Factors(TaskStep):
    name = "factors"

    def __init__(self, config: PrepareConfig, work: Path) -> None:
        super().__init__()
        self.config, self.work = config, work

    def run_task(self, task: int, num_tasks: int) -> None:
        atomic.write_json(self.work / FACTORS, weights(read_counts(self.work / AFTER), self.config.steps.representation))


class Reweigh(TaskStep):
    """Copies what the finish phase left, with other weights."""

    name = "reweigh"

    def __init__(self, config: PrepareConfig, work: Path, before: Place, after: Place) -> None:
        super().__init__()
        self.config, self.work, self.before, self.after = config, work, before, after

    def run_task(self, task: int, num_tasks: int) -> None:
        settings = self.config.steps.representation
        weigher = Weigher(settings, json.loads((self.work / FACTORS).read_text(encoding="utf-8")))
        old = {split: read_table(self.before.documents(split, task)) for split in SPLITS}
        with ExitStack() as files:
            new = {split: files.enter_context(Table(self.after.documents(split, task), DOCUMENTS)) for split in SPLITS}
            ledger = files.enter_context(Table(self.after.ledger(task), LEDGER))
            counts = files.enter_context(Counts(self.work / WEIGHED, task, settings))
            total = num_rows(self.before.ledger(task))
            for number, row in enumerate(read_table(self.before.ledger(task))):
                self.tell(lambda number=number: number / total)
                if row["kept"]:
                    document = next(old[row["split"]])
                    row["weight"] = document["weight"] = document["weight"] * weigher.weight_of(document["text"])
                    counts.add(document["source"], document["text"], document["weight"])
                    new[row["split"]].add(document)
                ledger.add(row)
        self.after.describe(self.work, task)


def reweigh_phases(config: PrepareConfig, work: Path, before: Place, after: Place, sizes: Sequence[int]) -> list[Phase]:
    """Sum up the counts, then weigh the documents of each task."""
    return [Phase("factors", 1, Factors(config, work)), Phase("reweigh", len(sizes), Reweigh(config, work, before, after), sizes)]
