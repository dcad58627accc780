"""Parquet files of one task: written row by row with bounded memory, the same bytes for the same rows, whole under their name or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
from pyarrow import parquet

GROUP_ROWS = 1000
"""Rows of a row group at most."""
GROUP_CHARACTERS = 16_000_000
"""Text of a row group at most, about."""

KEPT = pa.schema([
    ("n", pa.int64()), ("row", pa.int64()), ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("kind", pa.string()),
    ("url", pa.string()), ("licence", pa.string()), ("date", pa.string()), ("meta", pa.string()), ("scores", pa.string()), ("notes", pa.string()),
    ("weight", pa.float64()),
])  # fmt: skip
"""Documents between the phases; n counts the kept ones of a task, row all that it has seen; meta, scores and notes are JSON."""
DOCUMENTS = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("url", pa.string()), ("licence", pa.string()), ("date", pa.string()),
    ("meta", pa.string()), ("weight", pa.float64()),
])  # fmt: skip
"""What comes out: the document record, and how often it should be seen (1.0: as often as its source says)."""
LEDGER = pa.schema([
    ("id", pa.string()), ("source", pa.string()), ("url", pa.string()), ("task", pa.int64()), ("row", pa.int64()),
    ("kept", pa.bool_()), ("split", pa.string()), ("step", pa.string()), ("reason", pa.string()), ("cluster", pa.string()), ("kept_instead", pa.string()),
    ("scores", pa.map_(pa.string(), pa.float64())), ("notes", pa.string()), ("weight", pa.float64()),
    ("characters_before", pa.int64()), ("characters_after", pa.int64()), ("tokens_before", pa.int64()), ("tokens_after", pa.int64()),
    ("excerpt", pa.string()),
])  # fmt: skip
"""A row for every document that was seen."""
PROBLEMS = pa.schema([("source", pa.string()), ("path", pa.string()), ("position", pa.string()), ("reason", pa.string())])


class Table:
    """A file that is being written; use as a context. An exception leaves nothing behind."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def __enter__(self) -> Table:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = parquet.ParquetWriter(self._unfinished, self._schema, compression="zstd", compression_level=3)
        return self

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._characters += len(row.get("text") or "")
        if len(self._rows) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows, self._characters = [], 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                _sync(self._unfinished)
                os.replace(self._unfinished, self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_table(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows in order, a row group in memory at a time."""
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns).to_pylist()


def num_rows(path: Path) -> int:
    """Of a whole file."""
    return parquet.read_metadata(path).num_rows


def to_json(value: Any) -> str:
    """Of a column that holds JSON: the same text for the same value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def task_file(folder: Path, task: int) -> Path:
    """`00007.parquet`"""
    return folder / f"{task:05d}.parquet"
