"""From logits to tokens: temperature, top-k, top-p; pure functions, randomness from counters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megagpt.runtime.random import uniform


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    temperature 0 means greedy; top_k 0 and top_p 1 mean no truncation.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: must be 0 (greedy) or a positive number")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k}: must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: must be in (0, 1]")


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set what may not be sampled to -inf.

    Args:
        logits: [b, V], already divided by the temperature.
        top_k: keep the k largest (0: all).
        top_p: keep the smallest set whose probability reaches p (Holtzman et al. 2020, section 3.1); never empty.
    """
    if 0 < top_k < logits.size(-1):
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(dim=-1)
        before = probability.cumsum(dim=-1) - probability
        remove = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(remove, float("-inf"))
    return logits


def choose(logits: Tensor, sampling: Sampling, prompt_ids: np.ndarray, sample_numbers: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """One token for each row.

    The random number of a row depends on (seed, prompt id, sample number, position) alone, so a sample is the same in any
    batch, order and layout; the token is found by inverting the cumulative distribution.

    Args:
        logits: [b, V] over the true vocabulary.
        prompt_ids, sample_numbers, positions: [b] counters.

    Returns:
        tokens [b] int64, and log softmax(logits / temperature) of each, float32 (untruncated; greedy counts as temperature 1).
    """
    scaled = logits.double() / (sampling.temperature or 1.0)
    logprobs = scaled.log_softmax(dim=-1)
    if sampling.temperature == 0.0:
        tokens = logits.argmax(dim=-1)
    else:
        cumulative = truncated(scaled, sampling.top_k, sampling.top_p).softmax(dim=-1).cumsum(dim=-1)
        draws = torch.from_numpy(uniform(sampling.seed, prompt_ids, sample_numbers, positions)).to(logits.device)
        # Scaling by the last entry keeps rounding of the sum from pointing past the vocabulary.
        tokens = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True).squeeze(-1).clamp_(max=logits.size(-1) - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1).float()
