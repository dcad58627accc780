"""The cache's attention against softmax(q k^T / sqrt(d)) v written out for each token over its whole text."""

import pytest
import torch

from megagpt.model.key_value_cache import KeyValueCache
from tests.helpers.tolerance import FLOAT64_ABSOLUTE

LAYERS, ROWS, LENGTH, SIZE = range(3, 5), 5, 9, 4
SCALE = 0.37


class Texts:
    """Keys and values of every row's text so far, and what a new token finds there."""

    def __init__(self, groups: int, heads: int) -> None:
        self.groups, self.heads, self.random = groups, heads, torch.Generator().manual_seed(7)
        self.rows: dict[int, torch.Tensor] = {}  # [places, groups, 2, d]

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def attended(self, row: int, query: torch.Tensor, position: int) -> torch.Tensor:
        """query [heads, d] at a position -> [heads, d]."""
        keys, values = self.rows[row][: position + 1].repeat_interleave(self.heads // self.groups, dim=1).unbind(dim=2)
        weights = (torch.einsum("hd,phd->hp", query, keys) * SCALE).softmax(dim=-1)
        return torch.einsum("hp,phd->hd", weights, values)


def one_pass(cache: KeyValueCache, texts: Texts, going_on: list[int], prompts: list[tuple[int, int]]) -> None:
    positions = [len(texts.rows[row]) for row in going_on]
    cache.expect(going_on, positions, prompts)
    where = [*zip(going_on, positions), *((row, place) for row, length in prompts for place in range(length))]
    query, pairs = texts.draw(len(where), texts.heads, SIZE), texts.draw(len(where), texts.groups, 2, SIZE)
    for row, _ in prompts:
        texts.rows[row] = texts.draw(0, texts.groups, 2, SIZE)
    for (row, _), pair in zip(where, pairs):
        texts.rows[row] = torch.cat([texts.rows[row], pair[None]])
    expected = torch.stack([texts.attended(row, q, place) for (row, place), q in zip(where, query)])
    found = cache.attend(LAYERS[-1], query.unflatten(1, (texts.groups, -1)), pairs, SCALE)
    torch.testing.assert_close(found.flatten(1, 2), expected, rtol=0, atol=FLOAT64_ABSOLUTE)


@pytest.mark.parametrize(("groups", "heads"), [(1, 1), (3, 3), (2, 6)], ids=["one", "multi-head", "grouped"])
def test_key_value_cache_attends_to_each_rows_text(groups, heads):
    cache, texts = KeyValueCache(LAYERS, ROWS, LENGTH, groups=groups, size=SIZE, dtype=torch.float64), Texts(groups, heads)
    one_pass(cache, texts, [], [(0, 4), (1, 4), (2, 2), (3, 1)])
    one_pass(cache, texts, [0, 1, 2, 3], [])
    one_pass(cache, texts, [0, 1], [])  # the same position in all rows
    one_pass(cache, texts, [0, 2, 3], [(4, 5), (1, 3)])  # rows that start lie among those that go on
    one_pass(cache, texts, [1, 3], [(0, 2)])
    one_pass(cache, texts, [0, 1, 2, 3, 4], [])


def test_key_value_cache_copies_the_beginning_of_a_row():
    cache, texts = KeyValueCache(LAYERS, ROWS, LENGTH, groups=2, size=SIZE, dtype=torch.float64), Texts(2, 2)
    one_pass(cache, texts, [], [(0, 4)])
    cache.copy(0, [1, 3], 3)
    texts.rows |= {1: texts.rows[0][:3], 3: texts.rows[0][:3]}
    one_pass(cache, texts, [0, 1, 3], [])


def test_key_value_cache_size():
    cache = KeyValueCache(LAYERS, ROWS, LENGTH, groups=2, size=SIZE, dtype=torch.bfloat16)
    assert cache.num_bytes == 2 * len(LAYERS) * ROWS * LENGTH * 2 * SIZE * 2  # keys and values, two bytes a number
