"""Runs documents through datatrove steps on this machine, and writes what comes out."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from datatrove.data import Document as DatatroveDocument
from datatrove.data import DocumentsPipeline
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.disk_base import DiskWriter
from loguru import logger as datatrove_logger

from megagpt.data.records import Document, to_row
from megagpt.data.rows import to_line


class WriteDocuments(DiskWriter):
    """Writes document rows to `documents.<split>.jsonl`; an earlier step sets `metadata["split"]`."""

    type = "writer"
    name = "write documents"
    default_output_filename = "documents.${split}.jsonl"

    def __init__(self, folder: Path):
        super().__init__(str(folder), compression=None, mode="wb")

    def _default_adapter(self, document: DatatroveDocument) -> dict[str, Any]:
        return to_row(from_datatrove(document))

    def _write(self, document: dict[str, Any], file_handler: IO[bytes], filename: str) -> None:
        file_handler.write(to_line(document))


def run_steps(
    documents: Iterable[Document], steps: list[PipelineStep], folder: Path
) -> tuple[Counter[str], Counter[str]]:
    """Send documents through datatrove steps and write them to `documents.<split>.jsonl`.

    One task sees all documents in order, so that steps may compare each with those before it.

    Returns:
        (kept, dropped): number of documents by split, and by reason.
    """

    def read(data: DocumentsPipeline, rank: int, world_size: int) -> DocumentsPipeline:
        yield from map(to_datatrove, documents)

    with _quiet(), tempfile.TemporaryDirectory() as logs:
        pipeline = [read, *steps, WriteDocuments(folder)]
        statistics = LocalPipelineExecutor(pipeline, workers=1, logging_dir=logs).run()
    kept: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for step in statistics.stats:
        for label, metric in step.stats.items():
            if label.startswith("dropped_"):
                dropped[label.removeprefix("dropped_")] += metric.total
            elif label.startswith("documents."):
                kept[label.split(".")[1]] += metric.total
    return kept, dropped


def to_datatrove(document: Document) -> DatatroveDocument:
    metadata = {name: value for name, value in to_row(document).items() if name not in ("id", "text")}
    return DatatroveDocument(text=document.text, id=document.id, metadata=metadata)


def from_datatrove(document: DatatroveDocument) -> Document:
    metadata = {name: value for name, value in document.metadata.items() if name != "split"}
    return Document(id=document.id, text=document.text, **metadata)


@contextmanager
def _quiet() -> Iterator[None]:
    """datatrove logs to the terminal what `statistics.json` will say; errors reach the caller anyway."""
    datatrove_logger.disable("datatrove")
    try:
        yield
    finally:
        datatrove_logger.enable("datatrove")
