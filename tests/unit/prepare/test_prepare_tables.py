"""Files of a task: the same bytes for the same rows, whole or absent, a row group in memory at a time."""

from __future__ import annotations

import pytest
from pyarrow import parquet

from megagpt.prepare.tables import DOCUMENTS, GROUP_CHARACTERS, GROUP_ROWS, Table, read_table, task_file


def row(number: int, text: str = "text") -> dict:
    return {"id": str(number), "text": text, "source": "s", "url": "", "licence": "", "date": "", "meta": "{}", "weight": 1.0}


def test_prepare_table_is_read_as_it_was_written(tmp_path):
    path = task_file(tmp_path / "new", 3)
    rows = [row(number) for number in range(GROUP_ROWS + 1)]
    with Table(path, DOCUMENTS) as table:
        for each in rows:
            table.add(each)
        assert not path.exists()
    assert path.name == "00003.parquet" and list(read_table(path)) == rows
    assert parquet.ParquetFile(path).num_row_groups == 2
    again = tmp_path / "again.parquet"
    with Table(again, DOCUMENTS) as table:
        for each in rows:
            table.add(each)
    assert again.read_bytes() == path.read_bytes()


def test_prepare_table_of_long_texts_has_more_groups(tmp_path):
    with Table(tmp_path / "a.parquet", DOCUMENTS) as table:
        for number in range(3):
            table.add(row(number, "x" * GROUP_CHARACTERS))
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3


def test_prepare_table_of_nothing_is_a_table(tmp_path):
    with Table(tmp_path / "a.parquet", DOCUMENTS):
        pass
    assert list(read_table(tmp_path / "a.parquet")) == []


def test_prepare_table_leaves_nothing_behind_an_error(tmp_path):
    with pytest.raises(ValueError, match="cut"), Table(tmp_path / "a.parquet", DOCUMENTS) as table:
        table.add(row(1))
        raise ValueError("cut")
    assert list(tmp_path.iterdir()) == []


def test_prepare_table_replaces_what_a_killed_task_left(tmp_path):
    (tmp_path / ".a.parquet.unfinished").write_bytes(b"half")
    with Table(tmp_path / "a.parquet", DOCUMENTS) as table:
        table.add(row(1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"] and list(read_table(tmp_path / "a.parquet")) == [row(1)]
