"""Names of a configuration and the files that stand behind them."""

from pathlib import Path

import pytest

from megagpt.data.errors import DataError
from megagpt.data.files import find_files


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.parquet", "deep/er/c.jsonl.gz", "deep/d.txt", "notes.md", ".hidden.jsonl", "_temporary/e.jsonl", ".unfinished-x/f.jsonl"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(found, folder):
    return [path.relative_to(folder).as_posix() for path in found]


def test_files_of_a_folder_are_those_that_hold_documents(folder):
    (folder / "data/deep/loop").symlink_to(folder / "data")
    (folder / "data/link.jsonl").symlink_to(folder / "data/b.jsonl")
    assert names(find_files([str(folder / "data")]), folder) == ["data/a.parquet", "data/b.jsonl", "data/deep/d.txt", "data/deep/er/c.jsonl.gz", "data/link.jsonl"]


def test_files_of_a_pattern_are_sorted_and_names_keep_their_order(folder):
    found = find_files(["data/**/*.jsonl*", "data/notes.md", "data/a.parquet", "data/a.parquet"], [folder])
    assert names(found, folder) == [
        "data/_temporary/e.jsonl", "data/b.jsonl", "data/deep/er/c.jsonl.gz", "data/notes.md", "data/a.parquet", "data/a.parquet",
    ], "as a shell finds them"  # fmt: skip


def test_files_are_looked_for_in_one_root_after_the_other(folder, monkeypatch):
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    Path("b.jsonl").write_text("x")
    assert find_files(["b.jsonl", "*.parquet", "deep"], (Path(), folder / "data")) == [
        Path("b.jsonl"), folder / "data/a.parquet", folder / "data/deep/d.txt", folder / "data/deep/er/c.jsonl.gz",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/a.parqet", r"a.parqet: no such file; did you mean a.parquet\?"),
        ("data/*.csv", r"data/\*.csv: no file matches this pattern"),
        ("empty", "empty: no documents in this folder; it may hold .jsonl, "),
        ("zero.jsonl", "zero.jsonl: the file is empty"),
    ],
)
def test_files_that_are_not_there_are_refused(folder, name, message):
    (folder / "empty").mkdir()
    (folder / "zero.jsonl").touch()
    with pytest.raises(DataError, match=message):
        find_files([name], [folder])
