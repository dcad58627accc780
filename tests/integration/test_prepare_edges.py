"""Data preparation at its edges: columns, names, sources and settings that real corpora have now and then."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pyarrow import parquet

from megagpt.cli.main import main
from tests.helpers.prepare_corpus import article, write_config


def write_rows(path: Path, *rows: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prepare(folder: Path, sources: list[dict], steps: dict, root: Path | None = None) -> int:
    config = {"stage": "prepare", "run": {"name": "r", "root": str(root or folder / "runs")}, "sources": sources, "steps": steps, "executor": {"workers": 1}}
    return main(["data", "run", "--config", str(write_config(folder / "prepare.yaml", config))]) or 0


def ledger(folder: Path, root: Path | None = None) -> dict[str, dict]:
    files = sorted(((root or folder / "runs") / "r/prepare/ledger").iterdir())
    return {row["id"]: row for file in files for row in parquet.ParquetFile(file).read().to_pylist()}


def statistics(folder: Path) -> dict:
    return json.loads((folder / "runs/r/prepare/statistics.json").read_text())["sources"]


def rows_of(name: str, *files: str, **more) -> dict:
    return {"name": name, "kind": "rows", "files": list(files), **more}


def articles(count: int) -> list[str]:
    source = random.Random(5)
    return [article(source) for _ in range(count)]


def test_prepare_edges_a_column_called_drop_is_the_rows_own(tmp_path):
    one, two, three = articles(3)
    files = write_rows(tmp_path / "a.jsonl", {"text": one, "drop": False}, {"text": two, "drop": "mine"}, {"text": three, "meta": {"drop": 3}})
    assert prepare(tmp_path, [rows_of("a", files)], {}) == 0
    assert [row["kept"] for row in ledger(tmp_path).values()] == [True] * 3


def test_prepare_edges_a_run_folder_may_have_any_name(tmp_path):
    """Quotation marks and signs of patterns, which databases and globs would read otherwise."""
    root, (text, other) = tmp_path / "it's [a-z]* run?", articles(2)
    files = write_rows(tmp_path / "a.jsonl", {"text": text}, {"text": text}, {"text": other}, {})
    steps = {"exact_duplicates": {"tasks": 1}, "near_duplicates": {"tasks": 1, "buckets": 1}}
    assert prepare(tmp_path, [rows_of("a", files)], steps, root) == 0
    assert [row["kept"] for row in ledger(tmp_path, root).values()] == [True, False, True]
    assert main(["data", "report", "--run", str(root / "r")]) in (0, None)
    assert main(["data", "why", "a/a.jsonl#2", "--run", str(root / "r")]) in (0, None)
    page = (root / "r/prepare/data.html").read_text()
    assert "duplicate_document" in page and "no text" in page
