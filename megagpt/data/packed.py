"""Token files cut into rows of equal length for pre-training."""

from __future__ import annotations

import numpy as np

from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.errors import DataError
from megagpt.data.indexed import TokenFile


class PackedRows:
    """Rows of sequence_length + 1 tokens over the stream of some documents, each ended by the end-of-text id.

    Row i is tokens i * sequence_length to (i + 1) * sequence_length of the stream, both included: its last token is the
    next row's first, so that each token but the stream's first is a label once. What is left at the end (less than a row)
    is not used. Rows are the same in every epoch; their order is `order.py`.

    Megatron-core's IndexedDataset reads the files. Its GPTDataset is not used, for three reasons: its order depends on
    the length of the run (samples of all epochs are shuffled together), while ours is a function of (seed, epoch); it
    writes an index cache beside the data; and it reads that cache with `allow_pickle`.

    Args:
        documents: consecutive ones of the file.
        sequence_length: tokens that a row feeds to the model.
        reset_at_documents: rows say which document each token belongs to, and the first token of a document is no target.

    Raises:
        DataError: less than one row of text.
    """

    def __init__(self, file: TokenFile, documents: range, sequence_length: int, reset_at_documents: bool = False) -> None:
        self.file, self.documents, self.sequence_length, self.reset_at_documents = file, documents, sequence_length, reset_at_documents
        self._start = file.document_start(documents.start)
        self.num_tokens = file.document_start(documents.stop) - self._start
        if self.num_tokens <= sequence_length:
            part = "" if len(documents) == file.num_documents else f" in documents {documents.start} to {documents.stop} of {file.num_documents}"
            raise DataError(file.prefix, f"{self.num_tokens} tokens{part} are less than one row of {sequence_length} + 1")

    def __len__(self) -> int:
        return (self.num_tokens - 1) // self.sequence_length

    def __getitem__(self, row: int) -> EncodedRow:
        """Row `row`: tokens [sequence_length + 1]; all of them are targets, but for first tokens where documents are told apart."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        start, count = self._start + row * self.sequence_length, self.sequence_length + 1
        tokens = self.file.read(start, count)
        if not self.reset_at_documents:
            return encoded_row(tokens)
        begins = self.file.documents_within(start, start + count) - start
        loss_mask = np.ones(count, np.float32)
        loss_mask[begins] = 0
        return EncodedRow(tokens, loss_mask, np.searchsorted(begins, np.arange(count), side="right"))
