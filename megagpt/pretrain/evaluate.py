"""What the loss on held-out text means: perplexity, bits per byte, and the unigram yardstick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megagpt.data.batch import EncodedRow
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextSize:
    """Of held-out rows, counted once a run."""

    num_tokens: int
    """That the loss counts."""
    num_bytes: int
    """Of the UTF-8 text that these tokens spell."""

    @classmethod
    def of(cls, rows: Sequence[EncodedRow], tokenizer: Tokenizer) -> TextSize:
        targets = [_targets(row) for row in rows]
        num_bytes = sum(len(tokenizer.decode(tokens).encode("utf-8", errors="replace")) for tokens in targets)
        return cls(sum(map(len, targets)), num_bytes)

    def describe(self, loss: float) -> dict[str, float]:
        """The loss on these rows in units that do not depend on the tokenizer.

        Returns:
            eval_loss (nats a token), perplexity, and bits_per_byte.
        """
        bits_per_byte = loss * self.num_tokens / self.num_bytes / math.log(2)
        return {"eval_loss": loss, "perplexity": math.exp(min(loss, 50.0)), "bits_per_byte": bits_per_byte}


def unigram_cross_entropy(train: Iterable[EncodedRow], rows: Sequence[EncodedRow], vocab_size: int) -> float:
    """Cross-entropy of held-out targets under the training tokens' frequencies (add-one smoothed); nats a token."""
    counts = np.ones(vocab_size)
    for row in train:
        counts += np.bincount(_targets(row), minlength=vocab_size)
    logs = np.log(counts / counts.sum())
    return float(-np.mean(np.concatenate([logs[_targets(row)] for row in rows])))


def _targets(row: EncodedRow) -> np.ndarray:
    """Tokens that the loss counts."""
    return row.tokens[1:][row.loss_mask[1:] > 0]
