"""Files to JSON rows, and rows to files: JSONL, JSON arrays, gzip, parquet, plain text."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megagpt.data.errors import DataError, require_file

MAX_LINE_BYTES = 64 << 20
"""Longest JSONL line; a longer one means that the file is not JSONL."""
PARQUET_BYTES = 4 << 20
"""Unpacked rows of a parquet file in memory at a time; a group of rows may hold gigabytes."""

PARQUET_BUFFER = 1 << 20
"""Bytes that are read at a time of each column; Arrow would read whole groups. A page is held as a whole: its writer decides how large it is."""

ROW_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
"""Files of rows; any other file is plain text."""


def is_text_file(path: Path) -> bool:
    """Whether a file is one plain text (`.txt`, `.py`, `.txt.gz`, …) and not a list of rows."""
    return not path.name.endswith(ROW_SUFFIXES)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a JSONL, JSON (one array) or parquet file, `.gz` allowed.

    Yields:
        (line, row): line from 1 (in an array or parquet file: the row's number); row as JSON has it. Blank lines are
        skipped.

    Raises:
        DataError: missing, empty or damaged file, malformed JSON, invalid UTF-8, a line over MAX_LINE_BYTES.
    """
    require_file(path)
    if is_text_file(path):
        raise DataError(path, f"unknown kind of file, expected one of {', '.join(ROW_SUFFIXES)}")
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.name.removesuffix(".gz").endswith(".json"):
        rows = _array_rows(path)
    else:
        rows = _jsonl_rows(path)
    empty = True
    for numbered in rows:
        empty = False
        yield numbered
    if empty and path.suffix != ".parquet":  # of the parts that many tasks write some have nothing to hold
        raise DataError(path, "the file holds no rows")


def read_text(path: Path) -> str:
    """The whole of a plain text file, `.gz` allowed.

    Raises:
        DataError: missing, empty or damaged file, invalid UTF-8.
    """
    require_file(path)
    with _open(path) as file:
        content = file.read()
    return _decode(content, path)


class BadJson(ValueError):
    """Text that is no JSON value, or none that can be read. The message is one line."""

    def __init__(self, rule: str, line: int = 0):
        super().__init__(rule)
        self.line = line
        """Where in the text, from 0."""


def parse_json(text: str) -> Any:
    """Raises BadJson."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadJson(f"malformed JSON: {error.msg} (column {error.colno})", error.lineno - 1) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise BadJson(f"JSON that cannot be read: {error}") from error


def to_line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSONL. What JSON has no form for (dates in parquet files) becomes text."""
    return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSONL under another name and rename it when it is whole.

    Returns:
        Number of rows.
    """
    unfinished = path.with_name(f".{path.name}.tmp{os.getpid()}")
    count = 0
    try:
        with open(unfinished, "wb") as file:
            for row in rows:
                file.write(to_line(row))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Any]]:
    with _open(path) as file:
        line_number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            line_number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(path, f"a line over {MAX_LINE_BYTES >> 20} MiB, is this JSONL?", line_number)
            text = _decode(line, path, line_number).strip()
            if text:
                yield line_number, _parse(text, path, line_number)


def _array_rows(path: Path) -> Iterator[tuple[int, Any]]:
    rows = _parse(read_text(path), path, 1)
    if not isinstance(rows, list):
        raise DataError(path, f"a .json file must hold one array of rows, found {type(rows).__name__}")
    yield from enumerate(rows, 1)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet

    row_number = 0
    try:
        with parquet.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_rows_in_memory(file.metadata.row_group(group)), row_groups=[group]):
                    for row in batch.to_pylist():
                        row_number += 1
                        yield row_number, row
    except (ArrowException, OSError) as error:
        raise DataError(path, f"damaged parquet file: {str(error).splitlines()[0]}", row_number + 1) from error


def _rows_in_memory(row_group: Any) -> int:
    """Rows that are read at a time: as many as fit into PARQUET_BYTES by the mean of their group."""
    return max(1, min(row_group.num_rows, PARQUET_BYTES * row_group.num_rows // max(1, row_group.total_byte_size)))


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return parse_json(text)
    except BadJson as error:
        raise DataError(path, str(error), first_line + error.line) from error


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked; damage met while reading becomes a DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(path, f"damaged gzip file: {error}") from error


def _decode(content: bytes, path: Path, line: int | None = None) -> str:
    try:
        return content.decode("utf-8-sig" if line in (None, 1) else "utf-8")
    except UnicodeDecodeError as error:
        line = line or content.count(b"\n", 0, error.start) + 1
        raise DataError(path, f"invalid UTF-8: {error.reason} (byte {error.start})", line) from error
