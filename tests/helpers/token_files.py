"""Megatron token files of known ids, written by Megatron's own builder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

EOS = 1


def write_token_files(prefix: Path, documents: Sequence[Sequence[int]], dtype: type = np.uint16) -> Path:
    """Each document as it is; those that are to end with end-of-text bring it."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(document, [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def numbered_documents(lengths: Sequence[int], first_id: int = 10) -> list[list[int]]:
    """Documents of these lengths whose ids count up from first_id, but for the end-of-text at the end of each."""
    documents = []
    for length in lengths:
        documents.append([*range(first_id, first_id + length - 1), EOS])
        first_id += length - 1
    return documents
