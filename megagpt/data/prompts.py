"""Prompts for the policy to answer (`rlhf`)."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from megagpt.config.schema import PromptsConfig
from megagpt.data.errors import DataError
from megagpt.data.records import Prompt, read_prompts
from megagpt.data.split import prompt_key, share
from megagpt.tokenizer.chat import encode_chat
from megagpt.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    tokens: tuple[int, ...]
    """Ends with the token that opens the assistant's message."""
    number: int
    """0 .. 2**63 - 1, the same in every run: the prompt id in counter-based sampling."""
    record: Prompt


class PromptSets(NamedTuple):
    train: list[EncodedPrompt]
    evaluation: list[EncodedPrompt]
    """`eval_prompts` of them; no training prompt opens with the same question."""
    dropped: Counter[str]
    """Number left out, by reason."""


def load_prompts(config: PromptsConfig, tokenizer: Tokenizer) -> PromptSets:
    """Read and encode prompts, and keep those of the smallest hashes apart for evaluation.

    Raises:
        DataError: unreadable files, or not more than `eval_prompts` prompts.
    """
    dropped: Counter[str] = Counter()
    prompts: dict[int, EncodedPrompt] = {}
    for path in config.files:
        for record in read_prompts(path, dropped):
            tokens, _ = encode_chat(tokenizer, record.prompt, add_generation_prompt=True)
            prompt = EncodedPrompt(tuple(tokens), prompt_number(record.id), record)
            if len(tokens) > config.max_prompt_length:
                dropped["longer than max_prompt_length"] += 1
            elif prompt.number in prompts:
                dropped["repeated id"] += 1
            else:
                prompts[prompt.number] = prompt
    by_share = sorted(prompts.values(), key=lambda prompt: share(f"evaluation {prompt_key(prompt.record.prompt)}"))
    evaluation = by_share[: config.eval_prompts]
    questions = {prompt_key(prompt.record.prompt) for prompt in evaluation}
    train = [prompt for prompt in prompts.values() if prompt_key(prompt.record.prompt) not in questions]
    if not train:
        reasons = "".join(f", {count} dropped: {reason}" for reason, count in dropped.items())
        raise DataError(
            ", ".join(config.files),
            f"{len(prompts)} prompts, training needs more than eval_prompts {config.eval_prompts}{reasons}",
        )
    return PromptSets(train, evaluation, dropped)


def prompt_number(id: str) -> int:
    """A stable number for a prompt's id."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1
