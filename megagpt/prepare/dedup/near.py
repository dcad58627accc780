"""Documents that are almost the same: candidates from MinHash buckets, then the exact Jaccard similarity of their shingles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megagpt.prepare.dedup.database import database, files
from megagpt.prepare.dedup.fingerprints import signature_record
from megagpt.prepare.dedup.layout import TASK_BITS, Layout, first_document, of_task
from megagpt.prepare.dedup.signature import Signature
from megagpt.prepare.dedup.task import DedupTask

BATCH_RECORDS = 1 << 16
PAIRS = pa.schema([("a", pa.int64()), ("b", pa.int64())])
VERIFIED = pa.schema([*PAIRS, ("jaccard", pa.float64())])
INDEX = np.dtype([("doc", "<i8"), ("end", "<i8")])
"""One document in a file of shingle sets: its number, and how many shingles lie before the end of its own."""
OPEN_FILES = 64
"""Files of shingle sets that a verifying task holds open."""
CACHED_SHINGLES = 1 << 22
"""Shingles that a verifying task remembers: 32 MiB. Pairs are sorted, so that a document that is in many of them is read once."""


class NearBuckets(DedupTask):
    """Candidates of one bucket, or of one range of its hashes: what datatrove's `MinhashDedupBuckets` does, in bounded memory and with any number
    of files.

    Documents with the same signature make a run, sorted by number; a run of n gives 2 n - 3 pairs at most, each document with the one before it
    (datatrove's pairs) and with the first. With the second kind a document in between that turns out to be different does not part its neighbours.
    Documents that exact deduplication drops take no part, so that a page with ten million copies is one document here.
    """

    name = "near buckets"

    def run_task(self, task: int, num_tasks: int) -> None:
        bucket, part = divmod(task, self.near.tasks_per_bucket)
        paths = sorted((self.layout.signatures / f"bucket_{bucket:03d}").glob("*.minhash.sig"))
        record = signature_record(self.near)
        least, most = self._range(paths, record, part)
        with self.layout.partial(f"pairs_{task:05d}") as folder, database(folder, self.memory_gib) as tables:
            names = [f"h{number}" for number in range(self.near.hashes)]
            schema = pa.schema([("doc", pa.int64()), *((name, pa.uint64()) for name in names)])
            reader = pa.RecordBatchReader.from_batches(schema, _signatures(paths, record, least, most, schema))
            tables.connection.register("signatures", reader)
            source = "signatures"
            if self.exact and self.exact.documents:
                tables.view("dropped", f"SELECT doc FROM {files(self.layout.exact)} WHERE doc <> kept")
                tables.connection.execute("CREATE TABLE every AS FROM signatures")
                tables.table("different", lambda part: f"FROM {part('every', 'doc')} ANTI JOIN {part('dropped', 'doc')} USING (doc)")
                source = "different"
            batches = tables.connection.sql(f"FROM {source} ORDER BY {', '.join(names)}, doc").to_arrow_reader(BATCH_RECORDS)
            path = folder / f"pairs/{task:05d}.parquet"
            path.parent.mkdir()
            with pq.ParquetWriter(path, PAIRS, compression="zstd") as writer:
                for a, b in bucket_pairs(batches):
                    writer.write_table(pa.table([a, b], schema=PAIRS))

    def _range(self, paths: list[Path], record: np.dtype, part: int) -> tuple[int, int]:
        """First hashes of this task, from `least` to before `most`: equal shares of the largest file, which has the same distribution as others."""
        num_parts, largest = self.near.tasks_per_bucket, max(paths, key=lambda path: path.stat().st_size)
        num_records = largest.stat().st_size // record.itemsize
        if not num_records:
            return 0, 1 << 64
        records = np.memmap(largest, record, "r")
        cuts = [0, *(int(records["minima"][num_records * number // num_parts, 0]) for number in range(1, num_parts)), 1 << 64]
        return cuts[part], cuts[part + 1]


def _signatures(paths: list[Path], record: np.dtype, least: int, most: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Records whose first hash is in the range, of all files."""
    for path in paths:
        size = path.stat().st_size // record.itemsize
        if not size:
            continue
        first = np.memmap(path, record, "r")["minima"][:, 0]
        start = int(np.searchsorted(first, np.uint64(least)))
        end = int(np.searchsorted(first, np.uint64(most))) if most < 1 << 64 else size
        offset = first_document(int(path.name.split(".")[0]))
        with open(path, "rb") as file:
            file.seek(start * record.itemsize)
            for begin in range(start, end, BATCH_RECORDS):
                records = np.fromfile(file, record, min(BATCH_RECORDS, end - begin))
                columns = [offset + records["n"].astype(np.int64), *(np.ascontiguousarray(column) for column in records["minima"].T)]
                yield pa.record_batch([pa.array(column) for column in columns], schema=schema)


def bucket_pairs(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (a, b), a < b, of sorted records (doc, signature): each with the one before it of the same signature, and with the first of its run."""
    last, head = np.empty((0, 0), np.uint64), np.empty(0, np.int64)  # signature [1, hashes] of the record before the batch; its run's first document
    previous = np.empty(0, np.int64)
    for batch in batches:
        doc = batch["doc"].to_numpy()
        if not len(doc):
            continue
        signatures = np.stack([column.to_numpy() for column in batch.columns[1:]], axis=1)
        carried = len(previous)
        docs = np.concatenate([previous, doc])
        rows = np.concatenate([last, signatures]) if carried else signatures
        same = np.concatenate([[False], (rows[1:] == rows[:-1]).all(axis=1)])
        firsts = docs[np.maximum.accumulate(np.where(same, 0, np.arange(len(docs))))]
        if carried:  # the run that goes on from the batch before
            firsts[: len(same) if same[1:].all() else int(np.argmin(same[1:])) + 1] = head
        before = np.flatnonzero(same)
        far = before[firsts[before] != docs[before - 1]]
        yield np.concatenate([docs[before - 1], firsts[far]]), np.concatenate([docs[before], docs[far]])
        last, previous, head = rows[-1:], docs[-1:], firsts[-1:]


class NearCandidates(DedupTask):
    """All pairs of all buckets once, and all documents in them."""

    name = "near candidates"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial("candidates") as folder, database(folder, self.memory_gib) as tables:
            tables.view("found", f"FROM {files(self.layout.pairs)}")
            tables.table("pairs", lambda part: f"SELECT DISTINCT a, b FROM {part('found', 'a')}")
            tables.write("FROM pairs ORDER BY a, b", folder / self.layout.candidates.name)
            tables.view("ends", "SELECT a AS doc FROM pairs UNION ALL SELECT b FROM pairs")
            tables.table("wanted", lambda part: f"SELECT DISTINCT doc FROM {part('ends', 'doc')}")
            tables.write("FROM wanted ORDER BY doc", folder / self.layout.wanted.name)


class NearShingles(DedupTask):
    """The shingle sets of those documents of a task that are in candidates, and their quality."""

    name = "near shingles"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial(f"shingles_{task:05d}") as folder, database(folder, self.memory_gib) as tables:
            target = folder / "shingles"
            target.mkdir()
            rows = f"SELECT doc FROM {files(self.layout.root, self.layout.wanted.name)} WHERE {of_task(task)} ORDER BY doc"
            wanted = tables.connection.sql(rows).fetchnumpy()["doc"]
            tables.connection.register("wanted", pa.table({"doc": wanted}))
            documents = files(self.layout.documents, f"*/{task:05d}.parquet")
            tables.write(f"SELECT doc, quality FROM {documents} SEMI JOIN wanted USING (doc) ORDER BY doc", target / f"{task:05d}.parquet")
            signature = Signature(self.near)
            with open(target / f"{task:05d}.shingles", "wb") as values, open(target / f"{task:05d}.index", "wb") as index:
                end = 0
                for doc, text in _texts(self.layout.clean / f"{task:05d}.parquet", task, wanted):
                    shingles = np.unique(signature.get_shingles(text))
                    end += len(shingles)
                    values.write(shingles.tobytes())
                    index.write(np.array([(doc, end)], INDEX).tobytes())


def _texts(path: Path, task: int, wanted: np.ndarray) -> Iterator[tuple[int, str]]:
    """(document, text) of the wanted documents, which are sorted; groups of rows without any are not read."""
    numbers = wanted - first_document(task)
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    start = 0
    for group in range(file.num_row_groups if len(wanted) else 0):
        end = start + file.metadata.row_group(group).num_rows
        here = set(numbers[np.searchsorted(numbers, start) : np.searchsorted(numbers, end)].tolist())
        start = end
        for batch in file.iter_batches(64, [group], ["n", "text"]) if here else ():
            for n, text in zip(batch["n"].to_pylist(), batch["text"], strict=True):
                if n in here:
                    yield first_document(task) + n, text.as_py()


class NearVerify(DedupTask):
    """A share of the candidates: those of at least the threshold, with their Jaccard similarity, shingles in both / shingles in either."""

    name = "near verify"

    def run_task(self, task: int, num_tasks: int) -> None:
        candidates = pq.ParquetFile(self.layout.candidates)
        groups = [group for group in range(candidates.num_row_groups) if group * num_tasks // candidates.num_row_groups == task]
        sets = ShingleSets(self.layout)
        with self.layout.partial(f"verified_{task:05d}") as folder:
            (folder / "verified").mkdir()
            with pq.ParquetWriter(folder / f"verified/{task:05d}.parquet", VERIFIED, compression="zstd") as writer:
                for group in groups:
                    a, b = (column.to_numpy() for column in candidates.read_row_group(group).columns)
                    found = np.array([similarity(sets, *pair, self.near.threshold) for pair in zip(a.tolist(), b.tolist(), strict=True)])
                    near = found >= self.near.threshold
                    writer.write_table(pa.table([a[near], b[near], found[near]], schema=VERIFIED))
        sets.close()


def similarity(sets: ShingleSets, a: int, b: int, threshold: float) -> float:
    """Jaccard similarity of two documents; 0 where their sizes alone keep it below the threshold, without reading them."""
    fewer, more = sorted((sets.size(a), sets.size(b)))
    return jaccard(sets.of(a), sets.of(b)) if fewer >= threshold * more else 0.0


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets, each sorted."""
    if not len(a) or not len(b):
        return 0.0
    fewer, more = (a, b) if len(a) <= len(b) else (b, a)
    both = int((more[np.minimum(np.searchsorted(more, fewer), len(more) - 1)] == fewer).sum())
    return both / (len(a) + len(b) - both)


class ShingleSets:
    """Shingle sets by document, read when they are asked for; a bounded number of files and shingles is kept."""

    def __init__(self, layout: Layout):
        self._folder = layout.shingles
        self._files: OrderedDict[int, _ShingleFile] = OrderedDict()
        self._sets: OrderedDict[int, np.ndarray] = OrderedDict()
        self._held = 0

    def size(self, doc: int) -> int:
        """Number of different shingles."""
        start, end = self._file(doc).span(doc)
        return end - start

    def of(self, doc: int) -> np.ndarray:
        """Sorted shingles, uint64."""
        if doc in self._sets:
            self._sets.move_to_end(doc)
            return self._sets[doc]
        self._sets[doc] = shingles = self._file(doc).read(doc)
        self._held += len(shingles)
        while self._held > CACHED_SHINGLES and len(self._sets) > 2:
            self._held -= len(self._sets.popitem(last=False)[1])
        return shingles

    def _file(self, doc: int) -> _ShingleFile:
        task = doc >> TASK_BITS
        if task not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[task] = _ShingleFile(self._folder, task)
        self._files.move_to_end(task)
        return self._files[task]

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _ShingleFile:
    def __init__(self, folder: Path, task: int):
        self._index = np.memmap(folder / f"{task:05d}.index", INDEX, "r")
        self._values = open(folder / f"{task:05d}.shingles", "rb")

    def span(self, doc: int) -> tuple[int, int]:
        place = int(np.searchsorted(self._index["doc"], doc))
        return int(self._index["end"][place - 1]) if place else 0, int(self._index["end"][place])

    def read(self, doc: int) -> np.ndarray:
        start, end = self.span(doc)
        self._values.seek(start * 8)
        return np.fromfile(self._values, np.uint64, end - start)

    def close(self) -> None:
        self._values.close()
