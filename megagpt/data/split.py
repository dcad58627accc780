"""Which records are held out. Decided by a hash of a key, so that neither order, number nor machine changes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from megagpt.tokenizer.chat import Message

Item = TypeVar("Item")


class Split(NamedTuple):
    train: list
    valid: list


def share(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key, and looks random."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64


def prompt_key(messages: Sequence[Message]) -> str:
    """Key of a conversation: its first user message, without regard to case and spacing.

    Conversations that open with the same question are then on the same side of every split, however they go on.
    """
    first = next((message for message in messages if message["role"] == "user"), messages[0])
    return " ".join(first["content"].casefold().split())


def split_by(items: Sequence[Item], key: Callable[[Item], str], valid_fraction: float) -> Split:
    """Hold out about `valid_fraction` of the keys, at least one of them, never all.

    Raises:
        ValueError: fewer than two different keys.
    """
    shares = [share(key(item)) for item in items]
    distinct = sorted(set(shares))
    if len(distinct) < 2:
        raise ValueError(f"{len(items)} records with {len(distinct)} different prompts cannot be split in two")
    limit = min(max(valid_fraction, distinct[0]), distinct[-2])
    return Split(
        [item for item, number in zip(items, shares, strict=True) if number > limit],
        [item for item, number in zip(items, shares, strict=True) if number <= limit],
    )
