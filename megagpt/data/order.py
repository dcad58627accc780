"""Which rows an optimizer step reads: a pure function of seed and step. Layout, restarts and length never change it."""

from __future__ import annotations

import hashlib
import struct

ROUNDS = 6
"""Of the Feistel network; four of a random function are enough against any observer (Luby & Rackoff 1988), tiny epochs are helped by more."""


def shuffled_item(seed: int, epoch: int, num_items: int, place: int) -> int:
    """The item at one place of an epoch's order: a permutation of range(num_items) that depends on the arguments alone.

    A Feistel network permutes the numbers of 2k bits; where it leaves range(num_items) it is applied again (Black &
    Rogaway 2002, section 4). So neither memory nor time grow with the number of items, and a resume starts at once.
    """
    half = ((num_items - 1).bit_length() + 1) // 2
    mask, item = (1 << half) - 1, place
    while True:
        left, right = item >> half, item & mask
        for number in range(ROUNDS):
            # A cryptographic hash, because its words are the same on every machine and in every version.
            digest = hashlib.blake2b(struct.pack("<QQQQ", seed % 2**64, epoch, number, right), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        item = left << half | right
        if item < num_items:
            return item


def step_rows(seed: int, step: int, global_batch_size: int, num_items: int) -> list[tuple[int, int]]:
    """Rows of a step's global batch, over all replicas.

    Epochs follow each other without a gap: a batch may begin in one and end in the next, and no row is left out.

    Args:
        step: from 0.
        num_items: rows in the data set.

    Returns:
        [global_batch_size] of (epoch, item), both from 0.

    Raises:
        ValueError: an empty data set.
    """
    return [row_at(seed, position, num_items) for position in range(step * global_batch_size, (step + 1) * global_batch_size)]


def epoch_ends(epochs: int, global_batch_size: int, num_items: int) -> list[int]:
    """Steps, counted from 1, with which each epoch's last row has been read; the last one is the length of the run."""
    return [-(-epoch * num_items // global_batch_size) for epoch in range(1, epochs + 1)]


def row_at(seed: int, position: int, num_items: int) -> tuple[int, int]:
    """(epoch, item) at this position of a run, counted from 0 over all epochs; as `step_rows`, for steps of different sizes."""
    if num_items < 1:
        raise ValueError("there are no rows to read")
    epoch, place = divmod(position, num_items)
    return epoch, shuffled_item(seed, epoch, num_items, place)
