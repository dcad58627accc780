"""One Megatron `.bin/.idx` pair: checked when it is opened, then read from disk as it is needed."""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from megagpt.data.errors import DataError, require_file

SAMPLE_PLACES, SAMPLE_TOKENS = 64, 4096
"""At how many places `check_sample` looks at ids, and how many it reads at each."""
EDGE_BYTES = 65_536
"""Bytes at both ends of each file that take part in its identity."""


class TokenFile:
    """The stream of all tokens of a pair, and where its documents begin in it.

    Args:
        prefix: path without `.bin` and `.idx`.
        vocab_size: of the tokenizer; an id outside of it is refused when it is read.

    Attributes:
        num_tokens, num_documents: in the whole file.
        dtype: of the ids on disk.

    Raises:
        DataError: a file that is missing, empty, damaged, or does not belong to the other.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix, self._vocab_size = prefix, vocab_size
        self._files = _open(prefix)
        index = self._files.index
        self.dtype = np.dtype(index.dtype)
        self._sequence_starts, self._document_sequences = index.sequence_pointers, index.document_indices
        self.num_documents = len(self._document_sequences) - 1
        self.num_tokens = int(index.sequence_lengths.sum(dtype=np.int64))

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) of the stream, as int64.

        Raises:
            DataError: an id outside the vocabulary.
        """
        ids = self._files.bin_reader.read(self.dtype.type, count, start * self.dtype.itemsize).astype(np.int64)
        outside = (ids < 0) | (ids >= self._vocab_size)
        if outside.any():
            place = int(outside.argmax())
            rule = f"token {start + place} has id {ids[place]}, the tokenizer's vocabulary is 0 to {self._vocab_size - 1}"
            raise DataError(f"{self.prefix}.bin", rule)
        return ids

    def document_start(self, document: int) -> int:
        """Place of a document's first token in the stream; that of the document behind the last one is num_tokens."""
        sequence = self._document_sequences[document]
        return int(self._sequence_starts[sequence]) // self.dtype.itemsize if sequence < len(self._files) else self.num_tokens

    def documents_within(self, start: int, stop: int) -> np.ndarray:
        """Places in [start, stop) where a document begins, in order."""
        # Not np.searchsorted: the arrays lie unaligned in the file, and it would copy them whole.
        sequences = (bisect_left(self._sequence_starts, place * self.dtype.itemsize) for place in (start, stop))
        documents = slice(*(bisect_left(self._document_sequences, sequence) for sequence in sequences))
        return self._sequence_starts[self._document_sequences[documents]] // self.dtype.itemsize

    def check_sample(self) -> int:
        """Read ids at places spread over the whole file (a small one: all), which refuses those outside the vocabulary; returns how many."""
        count = min(SAMPLE_TOKENS, self.num_tokens)
        num_places = min(SAMPLE_PLACES, -(-self.num_tokens // count))
        for start in np.linspace(0, self.num_tokens - count, num_places, dtype=np.int64):
            self.read(int(start), count)
        return min(num_places * count, self.num_tokens)

    def identity(self) -> str:
        """Hash that tells this pair from others, wherever it lies: sizes, and both ends of both files."""
        digest = hashlib.sha256()
        for path in (Path(f"{self.prefix}.bin"), Path(f"{self.prefix}.idx")):
            size = path.stat().st_size
            with open(path, "rb") as file:
                digest.update(struct.pack("<Q", size) + file.read(EDGE_BYTES))
                file.seek(max(size - EDGE_BYTES, 0))
                digest.update(file.read(EDGE_BYTES))
        return digest.hexdigest()


_HEADER = struct.Struct("<9sQBQQ")
"""Start of an `.idx` file: magic, version, code of the ids' type, number of sequences, number of document bounds."""
_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_ID_TYPES = {kind.value for kind in DType if np.issubdtype(kind.name, np.integer)}


def _open(prefix: Path) -> IndexedDataset:
    """Megatron's reader, after the checks for which it would only assert, or which it does not make."""
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    require_file(idx_path)
    require_file(bin_path)
    with open(idx_path, "rb") as file:
        start = file.read(_HEADER.size)
    if not start.startswith(_MAGIC) or len(start) < _HEADER.size:
        raise DataError(idx_path, "damaged: this is no Megatron index")
    _, version, id_type, num_sequences, num_bounds = _HEADER.unpack(start)
    if version != _VERSION or id_type not in _ID_TYPES:
        known = f"known are version {_VERSION} and types {sorted(_ID_TYPES)}"
        raise DataError(idx_path, f"damaged: version {version} with ids of type {id_type}; {known}")
    # For each sequence its length (4 bytes) and place (8), for each bound the number of its sequence (8).
    _require_size(idx_path, _HEADER.size + 12 * num_sequences + 8 * num_bounds)
    try:
        files = IndexedDataset(str(prefix))
        _check_index(files, idx_path)
    except (AssertionError, IndexError) as error:  # the reader's own, of the last document bound: not that of all sequences, or not there
        raise DataError(idx_path, _BAD_DOCUMENTS) from error
    _require_size(bin_path, int(files.index.sequence_lengths.sum(dtype=np.int64)) * files.index.dtype_size)
    return files


_BAD_DOCUMENTS = "damaged: its documents are not its sequences in order"


def _check_index(files: IndexedDataset, path: Path) -> None:
    """Sequences lie one behind the other in the `.bin` file, and each belongs to one document."""
    sizes, bounds = files.index.sequence_lengths.astype(np.int64) * files.index.dtype_size, files.index.document_indices
    if not len(sizes) or sizes.min() < 0 or not np.array_equal(files.index.sequence_pointers, np.cumsum(sizes) - sizes):
        raise DataError(path, "damaged: its sequences do not follow each other")
    if bounds[0] != 0 or bounds[-1] != len(sizes) or (np.diff(bounds) < 0).any():
        raise DataError(path, _BAD_DOCUMENTS)


def _require_size(path: Path, size: int) -> None:
    if path.stat().st_size != size:
        raise DataError(path, f"damaged: {path.stat().st_size} bytes, its index says {size}")
