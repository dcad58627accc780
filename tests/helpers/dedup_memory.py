"""Fingerprints of a corpus of any size without its texts, and one phase over them: `python -m tests.helpers.dedup_memory FOLDER PHASE` prints the
peak memory of the process in MiB."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig, RepeatedLinesConfig
from megagpt.prepare.dedup.fingerprints import DOCUMENTS, PASSAGES, signature_record
from megagpt.prepare.dedup.layout import Layout, first_document
from megagpt.prepare.dedup.near import PAIRS, VERIFIED
from megagpt.prepare.dedup.phases import dedup_phases
from tests.helpers.dedup import prepare_config

TASKS = 4
QUALITIES = pa.schema([("doc", pa.int64()), ("quality", pa.float64())])
MEMORY_GIB = 1 / 8
EXACT = ExactDuplicatesConfig(tasks=1, lines=RepeatedLinesConfig(min_documents=2))
CONFIG = prepare_config(EXACT, NearDuplicatesConfig(buckets=1, hashes=7, tasks=1), memory_gib=MEMORY_GIB)


def make(work: Path, num_documents: int) -> None:
    """Of the documents a quarter repeat the one before; half are tied to it in chains of twenty, and all have a line that one other has."""
    make_signatures(work, num_documents)
    layout, generator, each = Layout(work), np.random.default_rng(0), num_documents // TASKS
    for task in range(TASKS):
        doc = first_document(task) + np.arange(each)
        name = f"{task:05d}.parquet"
        high = repeating(generator, 0.25, generator.integers(0, 1 << 64, each, np.uint64))
        ids = pa.array([f"document {number}" for number in doc.tolist()])
        save(layout.part("documents", 0) / name, DOCUMENTS, doc, high, high, generator.random(each), ids)
        lines = generator.integers(0, num_documents // 2, each).astype(np.uint64)
        save(layout.part("lines", 0) / name, PASSAGES, doc, lines, lines, np.zeros(each, np.int32), np.ones(each, bool))
        save(layout.shingles / name, QUALITIES, doc, generator.random(each))
        tied = np.flatnonzero((np.arange(each) % 40 > 0) & (np.arange(each) % 40 < 20))
        save(layout.verified / name, VERIFIED, doc[tied - 1], doc[tied], np.full(len(tied), 0.9))
        save(layout.pairs / name, PAIRS, doc[tied - 1], doc[tied])


def make_signatures(work: Path, num_documents: int) -> None:
    """Of one bucket; a tenth repeat the one before. And no equal documents."""
    layout, generator, each = Layout(work), np.random.default_rng(1), num_documents // TASKS
    save(layout.exact / "00000.parquet", pa.schema([("doc", pa.int64()), ("kept", pa.int64()), ("first", pa.int64())]), [], [], [])
    for task in range(TASKS):
        records = np.empty(each, signature_record(CONFIG.steps.near_duplicates))
        records["minima"] = repeating(generator, 0.1, generator.integers(0, 1 << 61, (each, 7), np.uint64))
        records["n"] = np.arange(each)
        path = layout.signatures / f"bucket_000/{task:05d}.minhash.sig"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(records[np.lexsort(records["minima"].T[::-1])].tobytes())


def repeating(generator: np.random.Generator, share: float, rows: np.ndarray) -> np.ndarray:
    """Some of the rows replaced by the one before."""
    return rows[np.maximum(np.arange(len(rows)) - (generator.random(len(rows)) < share), 0)]


def save(path: Path, schema: pa.Schema, *columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(list(columns), schema=schema), path, row_group_size=30_000)


def main(work: Path, name: str) -> None:
    phase = next(phase for phase in dedup_phases(CONFIG, work, TASKS) if phase.name == name)
    for task in range(phase.num_tasks):
        phase.step.run_task(task, phase.num_tasks)
    print(peak_mib())


def peak_mib() -> float:
    """The most that this process had resident; `ru_maxrss` counts what the parent had when it was started, too."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
