"""Writes one Megatron `.bin/.idx` pair as documents come: nothing of it is held in memory."""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_DTYPE_CODES = {"int32": 4, "uint16": 8}
_CHUNK = 1 << 20
"""Lengths that are read at a time when the index is written."""


def ids_dtype(vocab_size: int) -> np.dtype:
    """Two bytes for an id where the vocabulary allows, else four: as Megatron-core chooses."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


class TokenFileWriter:
    """Documents in passes: those of pass 0 stand first in the file, then those of pass 1, and so on, each pass in the order of its `add`s.

    A document that is to be there several times comes once in each of several passes, so that its copies are far apart.

    Args:
        prefix: path of the pair without `.bin` and `.idx`; parts of it lie beside them until `finish`.
        dtype: of the ids, `ids_dtype`.
    """

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self._prefix, self._dtype = prefix, dtype
        self._passes: list[_Pass] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray, number: int = 0) -> None:
        """Append documents to a pass.

        Args:
            ids: [num_tokens] of one or more documents, one after another.
            lengths: [num_documents] int32.
            number: of the pass; at most one more than the highest so far.
        """
        if number == len(self._passes):
            self._passes.append(_Pass(self._prefix, number))
        self._passes[number].add(ids, lengths)

    def abandon(self) -> None:
        """Close what is open after an error; the parts are of no use."""
        for one in self._passes:
            with contextlib.suppress(OSError):  # of bytes that a full disk did not take before either
                one.close()

    def finish(self) -> None:
        """Write `.bin` and `.idx`, to the last byte those of Megatron-core's IndexedDatasetBuilder.

        Layout of `.idx`: magic, version (uint64), code of the dtype (uint8), numbers n of documents and n + 1 of their bounds (uint64), then
        n lengths (int32), n places in `.bin` (int64, bytes) and n + 1 bounds (int64), which are 0 .. n.
        """
        for one in self._passes:
            one.close()
        count = sum(one.num_documents for one in self._passes)
        with open(f"{self._prefix}.idx", "wb") as index:
            index.write(_MAGIC + struct.pack("<QBQQ", _VERSION, _DTYPE_CODES[self._dtype.name], count, count + 1))
            for lengths in self._lengths():
                index.write(lengths.tobytes())
            place = 0
            for lengths in self._lengths():
                ends = place + np.cumsum(lengths, dtype=np.int64) * self._dtype.itemsize
                index.write(np.concatenate([[place], ends[:-1]]).astype(np.int64).tobytes())
                place = int(ends[-1])
            for start in range(0, count + 1, _CHUNK):
                index.write(np.arange(start, min(start + _CHUNK, count + 1), dtype=np.int64).tobytes())
        first, *others = self._passes
        with open(first.ids_path, "ab") as ids:
            for one in others:
                with open(one.ids_path, "rb") as file:
                    shutil.copyfileobj(file, ids, 1 << 20)
                one.ids_path.unlink()
        first.ids_path.rename(f"{self._prefix}.bin")
        for one in self._passes:
            one.lengths_path.unlink()

    def _lengths(self) -> Iterator[np.ndarray]:
        for one in self._passes:
            with open(one.lengths_path, "rb") as file:
                while content := file.read(4 * _CHUNK):
                    yield np.frombuffer(content, np.int32)


class _Pass:
    """Ids and lengths of one pass, each in a file of its own."""

    def __init__(self, prefix: Path, number: int) -> None:
        self.ids_path, self.lengths_path = Path(f"{prefix}.ids{number}"), Path(f"{prefix}.lengths{number}")
        self._ids, self._lengths = open(self.ids_path, "wb"), open(self.lengths_path, "wb")
        self.num_documents = 0

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        self._ids.write(ids.data)
        self._lengths.write(lengths.data)
        self.num_documents += len(lengths)

    def close(self) -> None:
        self._ids.close()
        self._lengths.close()
