"""The slot table against a cache that remembers tokens: every row finds its own text there, and no step computes what nobody needs."""

import random

import pytest

from megagpt.generation.slots import SlotTable


class TokenCache:
    """What a key/value cache would hold, as the tokens themselves: position -> token for each slot."""

    def __init__(self, num_slots: int) -> None:
        self.held: list[dict[int, int]] = [{} for _ in range(num_slots)]
        self.copied = 0

    def copy(self, slot: int, others: list[int], length: int) -> None:
        for other in others:
            self.held[other] |= {position: self.held[slot][position] for position in range(length)}
            self.copied += length


def decode_all(prompts: list[list[int]], lengths: list[int], size: int) -> tuple[list[list[int]], list]:
    """Run rows of these response lengths through the table. Token k of row r's response is 1000 (r + 1) + k; returns all responses and steps."""
    cache = TokenCache(size)
    table, responses, steps = SlotTable(prompts, size, cache.copy), [[] for _ in prompts], []
    while (step := table.next_step()) is not None:
        steps.append(step)
        slots = [*step.going_on, *(slot for slot, length in step.prompts for _ in range(length))]
        assert len(slots) == len(step.tokens) == len(step.positions)
        for slot, token, position in zip(slots, step.tokens, step.positions):
            cache.held[slot][position] = token
        for slot, others, length in step.shares:
            cache.copy(slot, others, length)
        for slot, (row, last) in enumerate(zip(table.rows, step.last, strict=True)):
            text = prompts[row] + responses[row]
            assert [cache.held[slot].get(position) for position in range(len(text))] == text, "the cache holds the row's text so far"
            assert step.positions[last] == len(text) - 1 and step.tokens[last] == text[-1], "its output says what comes next"
        live = sum(len(response) < length for response, length in zip(responses, lengths))
        assert len(table.rows) == len(set(table.rows)) == min(size, live), "every slot works as long as there is something to do"
        for row in table.rows:
            responses[row].append(1000 * (row + 1) + len(responses[row]))
        table.advance([responses[row][-1] for row in table.rows], [len(responses[row]) == lengths[row] for row in table.rows])
    assert table.rows == []
    return responses, steps


@pytest.mark.parametrize("seed", range(40))
def test_slot_table_gives_each_row_its_own_text(seed):
    draw = random.Random(seed)
    distinct = [[draw.randrange(100) for _ in range(draw.randint(1, 6))] for _ in range(draw.randint(1, 5))]
    prompts = [draw.choice(distinct) for _ in range(draw.randint(1, 14))]
    lengths = [draw.randint(1, 7) for _ in prompts]
    responses, _ = decode_all(prompts, lengths, draw.randint(1, 6))
    assert responses == [[1000 * (row + 1) + k for k in range(length)] for row, length in enumerate(lengths)]


def test_slot_table_computes_no_token_twice():
    prompts, lengths = [[1, 2, 3], [4], [5, 6], [7, 8, 9]], [3, 1, 4, 2]
    for size in (1, 2, 4):
        _, steps = decode_all(prompts, lengths, size)
        assert sum(len(step.tokens) for step in steps) == sum(map(len, prompts)) + sum(length - 1 for length in lengths), "a response's last token is never read"


def test_slot_table_computes_a_shared_prompt_once():
    prompts = [[1, 2, 3, 4]] * 6
    for size in (2, 3, 6):
        _, steps = decode_all(prompts, [2, 5, 3, 1, 4, 2], size)
        assert [step.prompts for step in steps if step.prompts] == [[(0, 4)]], "later samples find it in some slot"


def test_slot_table_takes_the_longest_prompts_first_and_samples_together():
    prompts = [[1], [2, 2], [3, 3, 3], [2, 2], [4], [1]]
    table = SlotTable(prompts, 6, lambda *_: None)
    table.next_step()
    assert table.rows == [2, 1, 3, 0, 5, 4]
