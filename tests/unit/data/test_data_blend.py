"""Weights to sources: the pattern that repeats, and what each source gives to a run."""

from collections import Counter

import numpy as np
import pytest

from megagpt.data.blend import BLOCK, Blend

WEIGHTS = [3.0, 1.0, 2.5, 0.001]


def test_blend_numbers_each_sources_rows_without_gap_across_blocks():
    blend, seen = Blend(WEIGHTS), Counter()
    for row in range(BLOCK - 1000, BLOCK + 1000):
        source, number = blend.place(row)
        assert number == seen.setdefault(source, number)
        seen[source] += 1
    assert blend.counts(BLOCK + 1000) == [seen.get(source, blend.counts(BLOCK)[source]) for source in range(len(WEIGHTS))]


def test_blend_starts_every_source_at_its_first_row():
    blend = Blend(WEIGHTS)
    places = [blend.place(row) for row in range(2000)]
    for source, count in enumerate(blend.counts(2000)):
        assert [number for found, number in places if found == source] == list(range(count))


def test_blend_follows_the_weights_on_every_stretch():
    blend, shares = Blend(WEIGHTS), np.array(WEIGHTS) / sum(WEIGHTS)
    for num_rows in (10, 777, BLOCK, 3 * BLOCK + 12_345):
        assert sum(blend.counts(num_rows)) == num_rows
        rounded = 1 + num_rows / BLOCK  # a row, and what the pattern rounds in every block
        assert np.abs(blend.counts(num_rows) - num_rows * shares).max() <= rounded


def test_blend_takes_weights_by_their_ratios():
    assert Blend([1, 2]).counts(999) == Blend([1e-300, 2e-300]).counts(999) == Blend([8e307, 1.6e308]).counts(999) == [333, 666]


def test_blend_of_one_is_that_one():
    assert [Blend([0.1]).place(row) for row in (0, 5, BLOCK, 10**12)] == [(0, 0), (0, 5), (0, BLOCK), (0, 10**12)]


def test_blend_refuses_a_share_below_one_row_of_the_pattern():
    Blend([BLOCK - 1, 1])
    with pytest.raises(ValueError, match="weight 1e-06 is 1.0e-06 of all weights; the smallest share is 1 / 65,536"):
        Blend([1, 1e-6])
