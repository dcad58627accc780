"""Sorting, joining and grouping in a bounded amount of memory: DuckDB, which goes to disk beyond it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

ROW_GROUP = 16_384
"""Rows; a multiple of DuckDB's vectors. Small, so that the part of one task in a sorted file is read without the rest."""


class Database:
    """Tables of one task, in a folder that is gone afterwards.

    DuckDB keeps its limit if a query has one step that holds rows back (a join, a group, a sort): with several at the same time each finds the
    memory taken by the others, and the query fails where it should go to disk. So tables are made one such step after the other.
    """

    def __init__(self, folder: Path, memory_gib: float):
        settings = {
            "threads": 1,  # tasks are what runs in parallel
            "memory_limit": f"{int(memory_gib * 1024)}MiB",
            "temp_directory": str(folder / "spill"),
            "preserve_insertion_order": False,  # where order matters, the query says so; keeping it costs memory
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        self.connection = duckdb.connect(folder / "tables.duckdb", config=settings)

    def table(self, name: str, query: str) -> None:
        """Makes or replaces a table."""
        self.connection.execute(f"CREATE OR REPLACE TABLE {name} AS {query}")

    def view(self, name: str, query: str) -> None:
        """A name for a query."""
        self.connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    def write(self, query: str, path: Path) -> None:
        """The rows of a query as a parquet file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection.execute(f"COPY ({query}) TO {_quoted(path)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})")

    def count(self, query: str) -> int:
        """The number of its rows."""
        return self.connection.sql(f"SELECT count(*) FROM ({query})").fetchall()[0][0]


@contextmanager
def database(folder: Path, memory_gib: float) -> Iterator[Database]:
    """Tables beside this folder, where nothing is left of them."""
    scratch = folder.with_name(f"{folder.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    tables = Database(scratch, memory_gib)
    try:
        yield tables
    finally:
        tables.connection.close()
        shutil.rmtree(scratch, ignore_errors=True)


def files(folder: Path, pattern: str = "*.parquet") -> str:
    """The rows of the parquet files of a folder whose names fit the pattern, as SQL wants them."""
    literal = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(folder))
    return f"read_parquet({_quoted(f'{literal}/{pattern}')})"


def _quoted(text: object) -> str:
    """A string constant in SQL."""
    return "'" + str(text).replace("'", "''") + "'"
