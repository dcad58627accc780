"""Continuous batching: which row of a batch stands in which slot of the cache, step after step (Yu et al. 2022, "Orca", section 3).

A slot whose row has ended takes a waiting prompt before the next step, so each step computes tokens that are wanted and no
others. No tensors here: every rank of a replica keeps the same table, since all know the sampled tokens.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Slot:
    """A row that runs, and where it stands."""

    row: int
    """Its place in the batch."""
    prompt: int
    """Number of its prompt among the distinct ones; its keys and values stay in the slot, also after the row has ended."""
    position: int
    """Of its last token so far, whose output says the next."""
    token: int
    """This token, if earlier ones are in the cache."""
    ended: bool = False


@dataclass
class Step:
    """The tokens of one pass, packed: first one for each row that goes on, then whole prompts."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    going_on: list[int] = field(default_factory=list)
    """Slot of each of the first tokens."""
    prompts: list[tuple[int, int]] = field(default_factory=list)
    """(slot, number of tokens)"""
    last: list[int] = field(default_factory=list)
    """Place among the tokens of each slot's last one; samples that start together share their prompt's."""
    shares: list[tuple[int, list[int], int]] = field(default_factory=list)
    """(slot, other slots, number of tokens): what the others take from its cache after the pass."""


class SlotTable:
    """Rows that wait, and rows that run in slots 0, 1, …, without a gap.

    Rows wait by falling length of their prompts, the samples of a prompt one behind the other. The longest come first, so that
    what does not fit into memory fails at once; prompts of about one length run at the same time, so that none of them
    is attended to as far as a much longer one.

    Args:
        prompts: token ids of each row.
        size: number of slots.
        copy: (slot, other slots, number of tokens): copies what the cache holds.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], size: int, copy: Callable[[int, Sequence[int], int], None]) -> None:
        numbers: dict[tuple[int, ...], int] = {}
        self._prompts, self._size, self._copy = prompts, size, copy
        self._number = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        self._count = Counter(self._number)
        self._waiting = deque(sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), self._number[row])))
        self._slots: list[Slot] = []

    @property
    def rows(self) -> list[int]:
        """The row in each slot."""
        return [slot.row for slot in self._slots]

    @property
    def positions(self) -> list[int]:
        """Of each slot's last token."""
        return [slot.position for slot in self._slots]

    def next_step(self) -> Step | None:
        """Put waiting rows into free slots, close the gaps that remain, and say what to compute; None when all rows have ended."""
        filling = self._fill()
        self._close_gaps()
        if not self._slots:
            return None
        step = Step()
        for number, slot in enumerate(self._slots):
            if number not in filling:
                step.going_on.append(number)
                step.tokens.append(slot.token)
                step.positions.append(slot.position)
        starts: dict[int, int] = {}
        for number, others in sorted(filling.items(), key=lambda item: -self._slots[item[0]].position):
            if others is None:
                continue
            prompt = self._prompts[self._slots[number].row]
            step.tokens += prompt
            step.positions += range(len(prompt))
            step.prompts.append((number, len(prompt)))
            starts |= dict.fromkeys((number, *others), len(step.tokens) - 1)
            if others:
                step.shares.append((number, others, len(prompt)))
        places = iter(range(len(step.going_on)))
        step.last = [starts[number] if number in starts else next(places) for number in range(len(self._slots))]
        return step

    def advance(self, tokens: Sequence[int], ended: Sequence[bool]) -> None:
        """Each slot's row got its next token."""
        for slot, token, end in zip(self._slots, tokens, ended, strict=True):
            slot.position, slot.token, slot.ended = slot.position + 1, token, end

    def _fill(self) -> dict[int, list[int] | None]:
        """Slots whose prompt is computed in this step -> slots that share it; and these slots -> None."""
        filling: dict[int, list[int] | None] = {}
        free = [number for number, slot in enumerate(self._slots) if slot.ended]
        free += range(len(self._slots), min(self._size, len(self._slots) + len(self._waiting)))
        for number in free[: len(self._waiting)]:
            row = self._waiting.popleft()
            prompt, where = self._prompts[row], self._number[row]
            holder = self._holder(where, number)
            new = Slot(row, where, len(prompt) - 1, prompt[-1])
            if holder in filling:
                filling[holder].append(number)
                filling[number] = None
            elif holder is None:
                filling[number] = []
            elif holder != number:
                self._copy(holder, [number], len(prompt) - 1)
            self._slots[number : number + 1] = [new]
        return filling

    def _holder(self, prompt: int, number: int) -> int | None:
        """The first slot that has this prompt in the cache or gets it in this step, but slot `number` itself rather than another."""
        candidates = (number, *range(len(self._slots))) if self._count[prompt] > 1 else ()
        return next((other for other in candidates if other < len(self._slots) and self._slots[other].prompt == prompt), None)

    def _close_gaps(self) -> None:
        """Rows move down into slots that nobody waits for."""
        number = 0
        while number < len(self._slots):
            if not self._slots[number].ended:
                number += 1
                continue
            last = self._slots.pop()
            if number < len(self._slots):
                if not last.ended:
                    self._copy(len(self._slots), [number], last.position)
                self._slots[number] = last
