"""What the duplicate phases need to know of every document, written while documents are cleaned."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megagpt.config.prepare import ExactDuplicatesConfig, NearDuplicatesConfig, StepsConfig
from megagpt.prepare.dedup.layout import Layout, first_document
from megagpt.prepare.dedup.passages import halves, normal, passages
from megagpt.prepare.dedup.signature import Signature

HASH = [("high", pa.uint64()), ("low", pa.uint64())]
DOCUMENTS = pa.schema([("doc", pa.int64()), *HASH, ("quality", pa.float64()), ("id", pa.string())])
PASSAGES = pa.schema([("doc", pa.int64()), *HASH, ("position", pa.int32()), ("fresh", pa.bool_())])
BATCH_ROWS = 32_768
"""Rows that wait for being sorted into parts, at most."""
BATCH_SIGNATURES = 1024


class Fingerprints:
    """Files of one clean task, whole under their names once this context is left without an exception.

        with Fingerprints(work, task, config.steps) as fingerprints:
            fingerprints.add(n, document.id, document.text, quality, kind)   # n = 0, 1, … in the order of the kept documents

    Memory: some thousand rows for each part, and at the end the signatures of one bucket, 60 bytes a document of the task.
    """

    def __init__(self, work: Path, task: int, config: StepsConfig):
        self.task, self.exact, self.near = task, config.exact_duplicates, config.near_duplicates
        self._compared = compares_documents(config)
        self._layout = Layout(work)
        self._first, self._next = first_document(task), 0

    def __enter__(self) -> Fingerprints:
        self._partial = self._layout.partial(f"clean_{self.task:05d}")
        folder = self._partial.__enter__()
        parts = self.exact.tasks if self.exact else 1
        self._documents = _Parts(folder, "documents", self.task, DOCUMENTS, parts) if self._compared else None
        self._passages = {kind: _Parts(folder, kind, self.task, PASSAGES, parts) for kind in passage_kinds(self.exact)}
        self._signatures = _Signatures(folder / "signatures", self.task, self.near) if self.near else None
        return self

    def add(self, n: int, id: str, text: str, quality: float, kind: str) -> None:
        """The document number `n` of the task, numbered without gaps. Of equal documents the one of the highest `quality` is kept (NaN is the
        lowest); `kind` is that of its source."""
        if n != self._next:
            raise ValueError(f"document {n} of task {self.task}: {self._next} is the next one")
        self._next += 1
        doc = self._first + n
        if self._documents is not None:
            self._documents.add(doc, *halves(normal(text)), -math.inf if math.isnan(quality) else quality, id)
        if self._passages and kind not in self.exact.exempt_kinds:
            lines = text.split("\n")
            for name, parts in self._passages.items():
                self._add_passages(doc, passages(name, lines), getattr(self.exact, name).min_characters, parts)
        if self._signatures is not None and kind not in self.near.exempt_kinds:
            self._signatures.add(n, text)

    @staticmethod
    def _add_passages(doc: int, texts: Any, min_characters: int, parts: _Parts) -> None:
        seen = set()
        for position, text in enumerate(texts):
            if len(text) >= min_characters and len(plain := normal(text)) >= min_characters:
                key = halves(plain)
                parts.add(doc, *key, position, key not in seen)
                seen.add(key)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for files in (self._documents, *self._passages.values(), self._signatures):
                if files is not None:
                    files.close(complete=kind is None)
        except BaseException as failure:
            self._partial.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._partial.__exit__(kind, error, trace)


def compares_documents(config: StepsConfig) -> bool:
    """Whether whole documents are compared."""
    return config.near_duplicates is not None or (config.exact_duplicates is not None and config.exact_duplicates.documents)


def passage_kinds(config: ExactDuplicatesConfig | None) -> list[str]:
    """Which of `paragraphs` and `lines` are looked for."""
    return [kind for kind in ("paragraphs", "lines") if config is not None and getattr(config, kind) is not None]


class _Parts:
    """Rows with a hash, each written to the file of the remainder of its hash."""

    def __init__(self, folder: Path, kind: str, task: int, schema: pa.Schema, num_parts: int):
        paths = [Layout.part_of(folder, kind, part) / f"{task:05d}.parquet" for part in range(num_parts)]
        for path in paths:
            path.parent.mkdir(parents=True)
        self._schema, self._rows = schema, []
        self._writers = [pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) for path in paths]

    def add(self, *row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = [pa.array(column, field.type) for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)]
        table = pa.table(columns, schema=self._schema)
        self._rows = []
        part = table["high"].to_numpy() % np.uint64(len(self._writers))
        for number, writer in enumerate(self._writers):
            writer.write_table(table.filter(pa.array(part == number)))

    def close(self, complete: bool) -> None:
        if complete:
            self._flush()
        for writer in self._writers:
            writer.close()


class _Signatures:
    """The files of datatrove's `MinhashDedupSignature`: for each bucket, records of `hashes` minima and the document's number, sorted."""

    def __init__(self, folder: Path, task: int, config: NearDuplicatesConfig):
        paths = [folder / f"bucket_{bucket:03d}/{task:05d}.minhash.sig" for bucket in range(config.buckets)]
        for path in paths:
            path.parent.mkdir(parents=True)
        self._signature = Signature(config)
        self._record = signature_record(config)
        self._files = [open(path, "w+b") for path in paths]
        self._numbers: list[int] = []
        self._minima: list[np.ndarray] = []

    def add(self, n: int, text: str) -> None:
        """Documents shorter than a shingle have no signature."""
        shingles = self._signature.get_shingles(text)
        if len(shingles):
            self._numbers.append(n)
            self._minima.append(self._signature.minima(shingles))
        if len(self._numbers) >= BATCH_SIGNATURES:
            self._flush()

    def _flush(self) -> None:
        if not self._numbers:
            return
        minima = np.stack(self._minima).reshape(len(self._numbers), len(self._files), -1)
        for bucket, file in enumerate(self._files):
            records = np.empty(len(minima), self._record)
            records["minima"], records["n"] = minima[:, bucket], self._numbers
            file.write(records.tobytes())
        self._numbers, self._minima = [], []

    def close(self, complete: bool) -> None:
        """Sorts the records of each file if it is to be kept."""
        if complete:
            self._flush()
        for file in self._files:
            if complete:
                file.seek(0)
                records = np.frombuffer(file.read(), self._record)
                keys = records["minima"].T[::-1]  # the last key counts most; equal ones stay in order of n
                file.seek(0)
                file.write(records[np.lexsort(keys)].view(np.uint8).data)
            file.close()


def signature_record(config: NearDuplicatesConfig) -> np.dtype:
    """One record of a signature file."""
    return np.dtype([("minima", "<u8", (config.hashes,)), ("n", "<u4")])
