"""Sorting, joining and grouping in a bounded amount of memory: DuckDB, which goes to disk beyond it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

ROW_GROUP = 16_384
"""Rows; a multiple of DuckDB's vectors. Small, so that the part of one task in a sorted file is read without the rest."""


@contextmanager
def database(folder: Path, memory_gib: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database without a file; what does not fit into memory goes to `folder`. One thread: tasks are what runs in parallel."""
    settings = {
        "threads": 1,
        "memory_limit": f"{int(memory_gib * 1024)}MiB",
        "temp_directory": str(folder / "spill"),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    connection = duckdb.connect(config=settings)
    try:
        yield connection
    finally:
        connection.close()


def files(folder: Path, pattern: str = "*.parquet") -> str:
    """The rows of the parquet files of a folder whose names fit the pattern, as SQL wants them."""
    literal = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(folder))
    return f"read_parquet({quoted(f'{literal}/{pattern}')})"


def quoted(text: object) -> str:
    """A string constant in SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def write(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """The rows of a query as a parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection.execute(f"COPY ({query}) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})")
