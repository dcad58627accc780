"""Where the duplicate phases keep what they find out, and how its files become whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megagpt.runtime.atomic import sync

TASK_BITS = 32
"""A document is one number everywhere here: task * 2^32 + its number in the task, so that numbers are in global order."""


def first_document(task: int) -> int:
    """The number of a task's first document; those of the task lie from it to before that of the next task."""
    return task << TASK_BITS


def of_task(task: int) -> str:
    """A condition in SQL: the documents of one task."""
    return f"doc >= {first_document(task)} AND doc < {first_document(task + 1)}"


class Layout:
    """Files below `work/dedup`.

    | file | written by | content |
    |---|---|---|
    | `documents/<part>/<task>.parquet` | clean, through `Fingerprints` | document, its hash, quality and id; `part` is a remainder of the hash |
    | `paragraphs/<part>/<task>.parquet`, `lines/…` | the same | document, hash, position in it, whether the first of its kind there |
    | `signatures/bucket_<b>/<task>.minhash.sig` | the same | MinHash signatures as datatrove writes them |
    | `exact/<part>.parquet` | exact_documents | members of groups of equal documents |
    | `pairs/<task>.parquet` | near_buckets | candidates (a, b), a < b |
    | `candidates.parquet`, `wanted.parquet` | near_candidates | the same once each, sorted; the documents in them |
    | `shingles/<task>.parquet`, `.shingles`, `.index` | near_shingles | quality of those documents; their shingle sets |
    | `verified/<task>.parquet` | near_verify | candidates of at least the threshold, with their similarity |
    | `verdicts.parquet` | duplicate_clusters | all members of all clusters, the kept ones included |
    | `cuts/<paragraphs or lines>_<part>.parquet` | repeated_paragraphs, repeated_lines | positions that are cut |
    """

    def __init__(self, work: Path):
        self.root = work / "dedup"
        self.documents = self.root / "documents"
        self.signatures = self.root / "signatures"
        self.exact = self.root / "exact"
        self.pairs = self.root / "pairs"
        self.candidates = self.root / "candidates.parquet"
        self.wanted = self.root / "wanted.parquet"
        self.shingles = self.root / "shingles"
        self.verified = self.root / "verified"
        self.verdicts = self.root / "verdicts.parquet"
        self.cuts = self.root / "cuts"
        self.clean = work / "clean"

    def part(self, kind: str, part: int) -> Path:
        """The folder of one remainder of the hashes of documents, paragraphs or lines."""
        return self.part_of(self.root, kind, part)

    @staticmethod
    def part_of(root: Path, kind: str, part: int) -> Path:
        """The same below another root."""
        return root / kind / f"part_{part:03d}"

    @contextmanager
    def partial(self, task_name: str) -> Iterator[Path]:
        """An empty folder for the unfinished files of a task, gone when it is left. What lies in it at paths like those below `root` goes there
        when no exception was raised. A killed task leaves it behind, and its repetition empties it: never beside whole files, since datatrove
        takes every file of a folder for a signature file."""
        folder = self.root / "partial" / task_name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                target = self.root / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                sync(path)
                os.replace(path, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
