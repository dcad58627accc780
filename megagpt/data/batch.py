"""The batch that every stage trains on. b = rows, s = tokens in a row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class EncodedRow:
    """One sequence of n tokens, before shifting and padding: a conversation or a piece of packed text."""

    tokens: np.ndarray
    """[n] int64."""
    loss_mask: np.ndarray
    """[n] float32; 1 where this token is a training target. The first token has nothing before it and never is one."""
    segments: np.ndarray | None = None
    """[n] int64, never falling: number of the document that each token belongs to, where attention is to stay within it."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, eq=False, slots=True)
class TokenBatch:
    """Rows of one microbatch, padded on the right."""

    tokens: Tensor
    """[b, s] int64."""
    labels: Tensor
    """[b, s] int64; labels[:, t] is the token after tokens[:, t]."""
    loss_mask: Tensor
    """[b, s] float32; 1 where the label counts, 0 on padding and on tokens that are not to be learned."""
    row_ids: Tensor
    """[b] int64; number of the row in the global batch, a key of counter-based randomness (dropout)."""
    segments: Tensor | None = None
    """[b, length of the whole rows] int64; as in EncodedRow. None: every row is one document."""

    def to(self, device: torch.device | str) -> TokenBatch:
        values = (getattr(self, field.name) for field in fields(self))
        return TokenBatch(*(None if value is None else value.to(device) for value in values))


def encoded_row(tokens: Sequence[int] | np.ndarray, loss_mask: Sequence[int] | np.ndarray | None = None) -> EncodedRow:
    """A row from ids and their mask; without a mask every token is a target."""
    tokens = np.asarray(tokens, dtype=np.int64)
    mask = np.ones(len(tokens), np.float32) if loss_mask is None else np.asarray(loss_mask, dtype=np.float32)
    return EncodedRow(tokens, mask)


def fingerprint(rows: Iterable[EncodedRow]) -> str:
    """Short hash of all tokens and masks in their order: a run that is resumed must read the same."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.tokens.tobytes() + row.loss_mask.tobytes())
    return digest.hexdigest()[:16]


def collate(rows: Sequence[EncodedRow], row_ids: Sequence[int], length: int, pad_id: int) -> TokenBatch:
    """Shift and pad rows to one length.

    A row of n tokens gives n - 1 labels. It may have length + 1 tokens at most: the last one of such a row (packed
    text) is a label only.

    Args:
        rows: of at most length + 1 tokens each.
        row_ids: their numbers in the global batch.
        length: s of the batch, the same on every rank.
        pad_id: any legal id; padding is masked.

    Raises:
        ValueError: a row that is too long.
    """
    tokens = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), pad_id)
    loss_mask = torch.zeros(len(rows), length)
    segments = torch.zeros_like(tokens) if any(row.segments is not None for row in rows) else None
    for i, row in enumerate(rows):
        if len(row) > length + 1:
            raise ValueError(f"row {row_ids[i]} has {len(row)} tokens, a batch of length {length} takes {length + 1}")
        num_inputs, num_labels = min(len(row), length), max(len(row) - 1, 0)
        tokens[i, :num_inputs] = torch.from_numpy(row.tokens[:num_inputs])
        labels[i, :num_labels] = torch.from_numpy(row.tokens[1:])
        loss_mask[i, :num_labels] = torch.from_numpy(row.loss_mask[1:])
        if row.segments is not None:
            segments[i] = int(row.segments[-1])  # padding is the last document's tail
            segments[i, :num_inputs] = torch.from_numpy(row.segments[:num_inputs])
    return TokenBatch(tokens, labels, loss_mask, torch.tensor(row_ids, dtype=torch.int64), segments)
