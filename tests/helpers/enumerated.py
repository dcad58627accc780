"""All answers of two tokens to a prompt, with their rewards and their exact log-probabilities: what a known optimum is computed from."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from megagpt.model.gpt import GPT
from megagpt.tokenizer.tokenizer import Tokenizer
from tests.helpers import rewards


@dataclass(frozen=True)
class Answers:
    """All answers of at most two tokens: a stop token alone, or any other token and then any token."""

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]

    @functools.cached_property
    def stops(self) -> Tensor:
        """[V] bool."""
        stops = torch.zeros(self.tokenizer.vocab_size, dtype=torch.bool)
        stops[list(self.stop_ids)] = True
        return stops

    @functools.cached_property
    def tokens(self) -> list[list[int]]:
        """[answers], one or two ids each."""
        first, others = ((self.stops == stops).nonzero().flatten().tolist() for stops in (True, False))
        return [[a] for a in first] + [[a, b] for a in others for b in range(len(self.stops))]

    @property
    def rewards(self) -> Tensor:
        return self.rewards_by("letters")

    def rewards_by(self, judge: str) -> Tensor:
        """[answers] float64, by a function of tests/helpers/rewards.py."""
        texts = [self.tokenizer.decode(answer) for answer in self.tokens]
        return torch.tensor(getattr(rewards, judge)([""] * len(texts), texts), dtype=torch.float64)

    def logprobs(self, model: GPT, prompt: tuple[int, ...]) -> Tensor:
        """[answers] float64, in the same order."""
        size = len(self.stops)
        with torch.no_grad():
            both = model(torch.tensor([[*prompt, a] for a in range(size)]))[:, -2:, :size].double().log_softmax(-1)
        first, second = both[0, 0], both[:, 1]
        return torch.cat([first[self.stops], (first[:, None] + second)[~self.stops].flatten()])
