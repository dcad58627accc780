"""`megagpt data run`: a source to the cleaned records that the later stages read."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from megagpt.config.schema import DataConfig
from megagpt.data.clean import DropRepeated, DropShort, HoldOut, RepairText
from megagpt.data.corpus import Corpus, folder_corpus, python_docs_corpus
from megagpt.data.errors import DataError
from megagpt.data.executor import run_steps
from megagpt.data.python_docs import SOURCE as PYTHON_DOCS
from megagpt.data.records import to_row
from megagpt.data.repair import repair_row
from megagpt.data.rows import write_rows
from megagpt.data.split import Split
from megagpt.runtime.atomic import sha256_file, write_json

STATISTICS = "statistics.json"


def run_data(config: DataConfig, output_folder: str | Path) -> dict[str, Any]:
    """Make the records of a source: `<kind>.<train|valid>.jsonl` for documents, demonstrations, rankings and prompts.

    Documents are repaired (line endings, control characters), dropped if short or repeated, and split by a hash of
    their id; the other kinds are split by question. The result depends on the source and the config alone. Files are
    written apart and renamed when all are whole; `statistics.json` comes last.

    Returns:
        The content of `statistics.json`: for each kind the records in `train` and `valid` and those `dropped`, by
        reason; for each file its bytes and SHA-256.

    Raises:
        DataError: a source that cannot be used.
    """
    output_folder = Path(output_folder)
    corpus = python_docs_corpus(config) if config.source == PYTHON_DOCS else folder_corpus(config)
    output_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=output_folder) as unfinished:
        folder = Path(unfinished)
        statistics: dict[str, Any] = {"source": config.source, "documents": _write_documents(corpus, config, folder)}
        for kind in ("demonstrations", "rankings", "prompts"):
            statistics[kind] = _write_split(folder, kind, getattr(corpus, kind), corpus.dropped[kind])
        files = sorted(folder.iterdir())
        statistics["files"] = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_file(file)} for file in files}
        (output_folder / STATISTICS).unlink(missing_ok=True)
        for file in files:
            os.replace(file, output_folder / file.name)
    write_json(output_folder / STATISTICS, statistics)
    return statistics


def _write_documents(corpus: Corpus, config: DataConfig, folder: Path) -> dict[str, Any]:
    steps = [RepairText(), DropShort(config.min_characters), DropRepeated(), HoldOut(config.valid_fraction)]
    kept, dropped = run_steps(itertools.islice(corpus.documents(), config.max_documents), steps, folder)
    if not (kept["train"] and kept["valid"]):
        reasons = "".join(f", {count} dropped as {reason}" for reason, count in dropped.items())
        raise DataError(config.source, f"needs 2 documents at least, {kept.total()} are left{reasons}")
    return {"train": kept["train"], "valid": kept["valid"], "dropped": dict(corpus.dropped["documents"] + dropped)}


def _write_split(folder: Path, kind: str, split: Split, dropped: Counter[str]) -> dict[str, Any]:
    counts = {}
    for side in split._fields:
        rows = (repair_row(to_row(record)) for record in getattr(split, side))
        counts[side] = write_rows(folder / f"{kind}.{side}.jsonl", rows)
    return counts | {"dropped": dict(dropped)}
