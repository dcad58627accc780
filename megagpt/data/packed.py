"""Token files cut into rows of equal length for pre-training."""

from __future__ import annotations

import struct
from pathlib import Path

from megatron.core.datasets.indexed_dataset import IndexedDataset

from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.errors import DataError, require_file


class PackedDataset:
    """Rows of sequence_length + 1 tokens over the stream of all documents, each ended by the end-of-text id.

    Row i is tokens i * sequence_length to (i + 1) * sequence_length, both included: its last token is the next row's
    first, so that each token but the stream's first is a label once. What is left at the end (less than a row) is not
    used. Rows are the same in every epoch; their order is `order.step_rows`.

    Megatron-core's IndexedDataset reads the files. Its GPTDataset is not used, for three reasons: its order depends on
    the length of the run (samples of all epochs are shuffled together), while ours is a function of (seed, epoch); it
    writes an index cache beside the data; and it reads that cache with `allow_pickle`.
    """

    def __init__(self, prefix: str | Path, sequence_length: int):
        """
        Args:
            prefix: path of the pair without `.bin` and `.idx`.
            sequence_length: tokens that a row feeds to the model.

        Raises:
            DataError: a file that is missing, empty or damaged, or less than one row of text.
        """
        self.sequence_length = sequence_length
        self._files = _open(Path(prefix))
        self._dtype = self._files.index.dtype
        self.num_tokens = int(self._files.sequence_lengths.sum(dtype="int64"))
        if len(self) < 1:
            raise DataError(prefix, f"{self.num_tokens} tokens are less than one row of {sequence_length} + 1")

    def __len__(self) -> int:
        return (self.num_tokens - 1) // self.sequence_length

    def __getitem__(self, row: int) -> EncodedRow:
        """Row `row`: tokens [sequence_length + 1], all of them targets."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        offset = row * self.sequence_length * self._dtype().itemsize
        return encoded_row(self._files.bin_reader.read(self._dtype, self.sequence_length + 1, offset))


_HEADER = struct.Struct("<9sQBQQ")
"""Start of an `.idx` file: magic, version, code of the ids' type, number of sequences, number of document bounds."""
_MAGIC = b"MMIDIDX\x00\x00"


def _open(prefix: Path) -> IndexedDataset:
    """Megatron's reader, after the checks for which it would only assert."""
    bin_path, idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    require_file(idx_path)
    require_file(bin_path)
    with open(idx_path, "rb") as file:
        start = file.read(_HEADER.size)
    if not start.startswith(_MAGIC) or len(start) < _HEADER.size:
        raise DataError(idx_path, "damaged: this is no Megatron index")
    _, _, _, num_sequences, num_bounds = _HEADER.unpack(start)
    # For each sequence its length (4 bytes) and place (8), for each bound the number of its sequence (8).
    _require_size(idx_path, _HEADER.size + 12 * num_sequences + 8 * num_bounds)
    files = IndexedDataset(str(prefix))
    _require_size(bin_path, int(files.sequence_lengths.sum(dtype="int64")) * files.index.dtype().itemsize)
    return files


def _require_size(path: Path, size: int) -> None:
    if path.stat().st_size != size:
        raise DataError(path, f"damaged: {path.stat().st_size} bytes, its index says {size}")
