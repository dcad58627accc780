"""From logits to tokens: temperature, top-k, top-p; pure functions, randomness from counters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megagpt.kernels.sample import sample
from megagpt.runtime.errors import Foreseen
from megagpt.runtime.random import uniform


class SampleError(Foreseen, RuntimeError):
    """A model whose output is no distribution."""

    exit_code = 1


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


def choose(logits: Tensor, sampling: Sampling, prompt_ids: np.ndarray, sample_numbers: np.ndarray, positions: np.ndarray) -> tuple[Tensor, Tensor]:
    """One token for each row.

    The random number of a row depends on (seed, prompt id, sample number, position) alone, so a sample is the same in any
    batch, order and layout; the token is found by inverting the cumulative distribution.

    Args:
        logits: [b, V] over the true vocabulary.
        prompt_ids, sample_numbers, positions: [b] counters.

    Returns:
        tokens [b] int64, and log softmax(logits / temperature) of each, float32 (untruncated; greedy counts as temperature 1).

    Raises:
        SampleError: a row holds NaN or infinity.
    """
    draws = torch.from_numpy(uniform(sampling.seed, prompt_ids, sample_numbers, positions)).to(logits.device)
    tokens, logprobs = sample(logits, draws, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    if bool((tokens < 0).any()):
        raise SampleError("a row of logits holds NaN or infinity: there is nothing to sample from; the weights are broken")
    return tokens, logprobs
