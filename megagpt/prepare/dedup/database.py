"""Sorting, joining and grouping in a bounded amount of memory: DuckDB, which goes to disk beyond it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import duckdb

ROW_GROUP = 16_384
"""Rows; a multiple of DuckDB's vectors. Small, so that the part of one task in a sorted file is read without the rest."""
MOST_PARTS = 4**6
"""Into which a query is cut, before it is given up."""


Part = Callable[[str, str], str]
"""What stands for a table in a query that is made part by part: `part("edges", "u")` are its rows with some of the hashes of column `u`."""

Queries = list[tuple[str, Callable[[Part], str]]]
"""Tables by name, to be made in this order."""


class Database:
    """Tables of one task, in memory and beyond its limit in a folder that is gone afterwards.

    DuckDB sorts any amount of rows within its limit of memory. Its hash tables (joins, groups) should go to disk at the limit too, but now and then
    ask for more than is left, and the query fails. It is then made in four times as many parts of its keys, one after the other: the rows are
    the same, and their order counts nowhere before the last query sorts them. For the same reason a query has one such step only.
    """

    num_parts = 1
    """In which queries are made; never fewer than one of them needed."""

    def __init__(self, folder: Path, memory_gib: float):
        settings = {
            "threads": 1,  # tasks are what runs in parallel
            "memory_limit": f"{int(memory_gib * 1024)}MiB",
            "temp_directory": str(folder),
            "preserve_insertion_order": False,  # where order matters, the query says so; keeping it costs memory
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        self.connection = duckdb.connect(config=settings)

    def table(self, name: str, query: Callable[[Part], str]) -> None:
        """Makes or replaces a table of the rows of `query(part)` over all parts. Every table in the query with a key comes from `part`."""
        while True:
            try:
                for number in range(self.num_parts):
                    start = f"INSERT INTO {name}" if number else f"CREATE OR REPLACE TABLE {name} AS"
                    self.connection.execute(f"{start} {query(partial(_part, self.num_parts, number))}")
                return
            except duckdb.OutOfMemoryException:
                if self.num_parts >= MOST_PARTS:
                    raise
                self.num_parts *= 4

    def make(self, queries: Queries) -> None:
        """Makes or replaces several tables."""
        for name, query in queries:
            self.table(name, query)

    def view(self, name: str, query: str) -> None:
        """A name for a query."""
        self.connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    def write(self, query: str, path: Path) -> None:
        """The rows of a query as a parquet file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.connection.execute(f"COPY ({query}) TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP})")

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


def _part(num_parts: int, number: int, table: str, column: str) -> str:
    return table if num_parts == 1 else f"(FROM {table} WHERE hash({column}) % {num_parts} = {number}) AS {table}"


def files(folder: Path, pattern: str = "*.parquet") -> str:
    """The rows of the parquet files of a folder whose names fit the pattern, as SQL wants them."""
    return f"read_parquet({quoted(below(folder, pattern))})"


def below(folder: Path, pattern: str) -> str:
    """The pattern of files of a folder, whatever signs the folder's own name has."""
    literal = "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(folder))
    return f"{literal}/{pattern}"


def quoted(text: object) -> str:
    """A string constant in SQL."""
    return "'" + str(text).replace("'", "''") + "'"
