"""Which records are held out. Decided by a hash of a key, so that neither order, number nor machine changes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from megagpt.tokenizer.chat import Message

Item = TypeVar("Item")


class Split(NamedTuple, Generic[Item]):
    train: list[Item]
    valid: list[Item]


def share(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key, and looks random."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def prompt_key(messages: Sequence[Message]) -> str:
    """Key of a conversation: its first user message, without regard to case and spacing.

    Conversations that open with the same question are then on the same side of every split, however they go on.
    """
    first = next((message for message in messages if message["role"] == "user"), messages[0])
    return " ".join(first["content"].casefold().split())


def held_out_keys(keys: Iterable[str], valid_fraction: float, salt: str) -> set[str]:
    """About `valid_fraction` of the different keys: those of the smallest hashes; at least one, never all.

    Args:
        salt: enters the hash. Two splits of one salt hold out the same keys, so what one split left needs another salt
            to be split again.

    Raises:
        ValueError: fewer than two different keys.
    """
    shares = {key: share(f"{salt} {key}") for key in keys}
    by_share = sorted(shares, key=shares.__getitem__)
    if len(by_share) < 2:
        raise ValueError(f"{len(by_share)} different prompts cannot be split into training and held-out ones")
    wanted = sum(number < valid_fraction for number in shares.values())
    return set(by_share[: min(max(wanted, 1), len(by_share) - 1)])


def split_by(items: Iterable[Item], key: Callable[[Item], str], held_out: Collection[str]) -> Split[Item]:
    """Items whose key is held out to `valid`, the others to `train`; order stays."""
    split: Split[Item] = Split([], [])
    for item in items:
        (split.valid if key(item) in held_out else split.train).append(item)
    return split
