"""A Python function that scores answers, instead of the reward model or added to it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config.load import ConfigError
from megagpt.rlhf.experience import Rollout
from megagpt.runtime.errors import Foreseen
from megagpt.runtime.log import is_main_rank, say_here
from megagpt.tokenizer.special import END
from megagpt.tokenizer.tokenizer import Tokenizer

ScoreFunction = Callable[[list[str], list[str]], Sequence[float]]
"""(prompts, answers), text without special tokens -> a number for each."""


class RewardError(Foreseen, RuntimeError):
    """A response has no usable reward."""

    exit_code = 1


def load_reward_function(name: str) -> ScoreFunction:
    """The function that `module:function` names; the module must be on Python's path.

    Raises:
        ConfigError: it cannot be imported, is not there, or cannot be called.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # whatever a user's module does while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"reward_function = {name}: {module_name} cannot be imported ({reason}); PYTHONPATH must name its folder") from error
    if not callable(function):
        raise ConfigError(f"reward_function = {name}: {module_name} has no function {function_name}")
    return function


@dataclass(frozen=True)
class RewardFunction:
    """Scores whole rollouts; asked on rank 0 alone, so that it may be slow, or random, or talk to a server."""

    name: str
    function: ScoreFunction
    tokenizer: Tokenizer

    def __call__(self, rollout: Rollout) -> Tensor:
        """[n] float32, on every rank; all ranks of the job call this.

        Raises:
            RewardError: on every rank; the function failed, or did not return a number for each answer.
        """
        packed = torch.zeros(1 + rollout.tokens.size(0), dtype=torch.float64, device=rollout.tokens.device)
        if is_main_rank():
            scores = self._ask(*texts(rollout, self.tokenizer))
            if scores is not None:
                packed[0], packed[1:] = 1, torch.tensor(scores, dtype=torch.float64)
        dist.broadcast(packed, 0)
        if not packed[0]:
            raise RewardError(f"reward_function = {self.name}: failed on rank 0; the line above says how")
        return packed[1:].float()

    def _ask(self, prompts: list[str], answers: list[str]) -> list[float] | None:
        """None where it failed, with a line that says why: an exception here would leave the other ranks waiting."""
        try:
            scores = [float(score) for score in self.function(prompts, answers)]
        except Exception as error:  # the user's code
            say_here(f"reward_function = {self.name}: {type(error).__name__}: {error}; the first prompt was {prompts[0]!r}")
            return None
        if len(scores) != len(answers):
            say_here(f"reward_function = {self.name}: returned {len(scores)} numbers for {len(answers)} answers; the first prompt was {prompts[0]!r}")
            return None
        return scores


def prompt_text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """A prompt without special tokens, its messages apart by a blank line; what opens the answer is left out."""
    end, messages = tokenizer.special_ids[END], [[]]
    for token in tokens:
        messages[-1].append(token)
        if token == end:
            messages.append([])
    return "\n\n".join(tokenizer.decode(message) for message in messages[:-1])


def texts(rollout: Rollout, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Prompts and answers of a rollout, without special tokens."""
    rows = zip(rollout.tokens.tolist(), rollout.prompt_lengths.tolist(), rollout.lengths.tolist())
    pairs = [(prompt_text(tokens[:begin], tokenizer), tokenizer.decode(tokens[begin:end])) for tokens, begin, end in rows]
    return [prompt for prompt, _ in pairs], [answer for _, answer in pairs]


def require_finite(scores: Tensor, rollout: Rollout, tokenizer: Tokenizer) -> None:
    """Raises RewardError, the same on every rank, with the first prompt whose answer has no finite score."""
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        prompts, answers = texts(rollout, tokenizer)
        value = float(scores[bad[0]])
        shown = "not a number" if math.isnan(value) else f"{value:+g}"
        raise RewardError(f"reward: {shown} for the answer {answers[bad[0]]!r} to {prompts[bad[0]]!r} ({len(bad)} of {scores.numel()} are not finite)")
