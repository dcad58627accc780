"""Phases in front of decontamination: which n-grams of evaluation items stand in so many documents that they say nothing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.clean import CLEANED
from megagpt.prepare.dedup.verdicts import Verdicts, cut
from megagpt.prepare.ngram_index import NgramIndex
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.steps.decontamination import count_documents, index_folder, mark_common
from megagpt.prepare.tables import read_table, task_file
from megagpt.runtime import atomic

COUNTS = "evaluation_counts"


class CountPhrases(TaskStep):
    """Copies that duplicate steps drop do not count: they would make a phrase common that is left in one document."""

    name = "count phrases"

    def __init__(self, config: PrepareConfig, work: Path) -> None:
        super().__init__()
        self.config, self.work = config, work

    def run_task(self, task: int, num_tasks: int) -> None:
        verdicts, rows = Verdicts(self.work, task, self.config.steps), read_table(task_file(self.work / CLEANED, task), ["n", "text"])
        texts = (cut(row["text"], verdict) for row in rows if (verdict := verdicts.of(row["n"])).reason is None)
        content = io.BytesIO()
        np.save(content, count_documents(NgramIndex.load(index_folder(self.work)), texts), allow_pickle=False)
        (self.work / COUNTS).mkdir(exist_ok=True)
        atomic.write_bytes(self.work / COUNTS / f"{task:05d}.npy", content.getvalue())


class MarkPhrases(TaskStep):
    name = "mark phrases"

    def __init__(self, config: PrepareConfig, work: Path) -> None:
        super().__init__()
        self.config, self.work = config, work

    def run_task(self, task: int, num_tasks: int) -> None:
        counts = (np.load(path, allow_pickle=False) for path in sorted((self.work / COUNTS).glob("*.npy")))
        mark_common(self.config.steps.decontamination, self.work, counts)


def common_phrase_phases(config: PrepareConfig, work: Path, sizes: Sequence[int]) -> list[Phase]:
    """None where no limit is set."""
    settings = config.steps.decontamination
    if settings is None or settings.max_documents is None:
        return []
    return [Phase("count_phrases", len(sizes), CountPhrases(config, work), sizes), Phase("mark_phrases", 1, MarkPhrases(config, work))]
