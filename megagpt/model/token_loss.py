"""Masked next-token loss over the global number of valid tokens; shared by pre-training and SFT."""

from __future__ import annotations

from torch import Tensor

from megagpt.kernels.token_logprob import TokenStatistics, token_logprob, token_statistics
from megagpt.model.gpt import GPT


def response_logprobs(model: GPT, logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each label under softmax(logits / temperature).

    Args:
        logits: [b, s, padded vocabulary / tp], this rank's shard.
        labels: [b, s] global token ids.

    Returns:
        [b, s] float32, equal on all tensor-parallel ranks.
    """
    return token_logprob(
        logits, labels, tp_group=model.groups.collection.tp, vocab_size=model.shape.vocab_size, temperature=temperature
    )


def response_statistics(model: GPT, logits: Tensor, labels: Tensor, temperature: float = 1.0) -> TokenStatistics:
    """`response_logprobs` with the entropy of each distribution, [b, s] float32 in nats, from the same reading of the logits."""
    return token_statistics(
        logits, labels, entropy=True, tp_group=model.groups.collection.tp, vocab_size=model.shape.vocab_size, temperature=temperature
    )


def token_nll(model: GPT, logits: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum over valid tokens of -log p(label); scalar. The caller divides by the global number of valid tokens."""
    return -(response_logprobs(model, logits, labels) * loss_mask).sum()
