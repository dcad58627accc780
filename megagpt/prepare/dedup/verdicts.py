"""What the duplicate phases say of every document of a task."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from megagpt.config.prepare import ExactDuplicatesConfig, StepsConfig
from megagpt.prepare.dedup.fingerprints import compares_documents, passage_kinds
from megagpt.prepare.dedup.layout import Layout, first_document
from megagpt.prepare.dedup.passages import normal, without

BATCH_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one document."""

    reason: str | None = None
    """`duplicate_document`, `near_duplicate`; None: it stays."""
    cluster: str | None = None
    """The id of the first document of its cluster; None where it has no duplicate."""
    kept: str | None = None
    """The id of the document that is kept instead of it."""
    jaccard: float | None = None
    """Similarity to that one, where the two were compared: members of a cluster may be tied by a chain of others."""
    paragraphs: tuple[int, ...] = ()
    """Numbers of the paragraphs that are cut."""
    lines: tuple[int, ...] = ()
    """Numbers of the lines that are cut."""


class Verdicts:
    """The verdicts of one task, read along with its documents: some thousand rows of each file are in memory.

        verdicts = Verdicts(work, task, config.steps)
        verdict = verdicts.of(n)   # n = 0, 1, …, rising
    """

    def __init__(self, work: Path, task: int, config: StepsConfig):
        layout, self.task = Layout(work), task
        clusters = _rows(layout.verdicts, task, ["doc", "reason", "cluster", "kept", "jaccard"]) if compares_documents(config) else iter(())
        self._clusters, self._cuts = _Following(clusters), {}
        for kind in passage_kinds(config.exact_duplicates):
            parts = [_rows(path, task, ["doc", "position"]) for path in sorted(layout.cuts.glob(f"{kind}_*.parquet"))]
            self._cuts[kind] = _Following(heapq.merge(*parts))
        self._last = -1

    def of(self, n: int) -> Verdict:
        """Of the document number `n` of the task; numbers must rise."""
        if n <= self._last:
            raise ValueError(f"verdict of document {n} of task {self.task} asked for after that of {self._last}: they are read in order")
        self._last, doc = n, first_document(self.task) + n
        clusters = self._clusters.of(doc)
        cuts = {kind: tuple(position for (position,) in rows.of(doc)) for kind, rows in self._cuts.items()}
        return Verdict(*(clusters[0] if clusters else ()), **cuts)


def cut(text: str, verdict: Verdict) -> str:
    """The text without the paragraphs and lines that other documents have before it."""
    return without(text, frozenset(verdict.paragraphs), frozenset(verdict.lines)) if verdict.paragraphs or verdict.lines else text


def reason_after_cut(text: str, verdict: Verdict, config: ExactDuplicatesConfig | None) -> str | None:
    """`duplicate_paragraphs` where too little is left of a text that was cut, or nothing."""
    if config is None or not (verdict.paragraphs or verdict.lines):
        return None
    return "duplicate_paragraphs" if len(normal(text)) < max(config.min_characters_left, 1) else None


class _Following:
    """Rows (document, …) in order of documents, of which those of one document after the other are asked for."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]):
        self._rows = rows
        self._next = next(rows, None)

    def of(self, doc: int) -> list[tuple[Any, ...]]:
        found = []
        while self._next is not None and self._next[0] <= doc:
            if self._next[0] == doc:
                found.append(self._next[1:])
            self._next = next(self._rows, None)
        return found


def _rows(path: Path, task: int, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of one task in a file that is sorted by document."""
    least, end = first_document(task), first_document(task + 1)
    with pq.ParquetFile(path) as file:
        place = file.schema_arrow.get_field_index("doc")
        for group in range(file.num_row_groups):
            statistics = file.metadata.row_group(group).column(place).statistics
            if statistics is not None and statistics.has_min_max and (statistics.max < least or statistics.min >= end):
                continue
            for batch in file.iter_batches(BATCH_ROWS, [group], columns):
                for row in zip(*(batch[name].to_pylist() for name in columns), strict=True):
                    if least <= row[0] < end:
                        yield row
