"""Splits and orders are functions of keys and counters alone."""

import random

import numpy as np
import pytest

from megagpt.data.order import row_at, shuffled_item, step_rows
from megagpt.data.split import held_out_keys, prompt_key, share, split_by

KEYS = [f"key {i}" for i in range(2000)]


def test_share_is_stable_and_uniform():
    assert share("megagpt") == share("megagpt")
    numbers = [share(key) for key in KEYS]
    assert 0 <= min(numbers) < 0.01 < 0.99 < max(numbers) < 1
    assert abs(np.mean(numbers) - 0.5) < 0.02


def test_held_out_share_does_not_depend_on_order_or_company():
    held_out = held_out_keys(KEYS, 0.1, "data")
    assert 150 < len(held_out) < 250
    shuffled = random.sample(KEYS, len(KEYS))
    assert held_out_keys(shuffled + shuffled, 0.1, "data") == held_out
    assert held_out_keys(KEYS[:1000], 0.1, "data") == held_out & set(KEYS[:1000])


def test_salts_make_independent_splits():
    left = set(KEYS) - held_out_keys(KEYS, 0.1, "data")
    assert 0.05 < len(held_out_keys(left, 0.1, "stage")) / len(left) < 0.15


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty(fraction):
    assert 1 <= len(held_out_keys(["a", "b", "c"], fraction, "data")) <= 2


def test_one_question_cannot_be_split():
    with pytest.raises(ValueError, match="1 different prompts"):
        held_out_keys(["a", "a"], 0.5, "data")


def test_split_by_keeps_the_order():
    assert split_by([3, 1, 2, 1], str, {"1"}) == ([3, 2], [1, 1])


def test_prompt_key_is_the_first_question():
    system, question = {"role": "system", "content": "S"}, {"role": "user", "content": " Why\n not? "}
    answer, other = {"role": "assistant", "content": "A"}, {"role": "user", "content": "else"}
    assert prompt_key([system, question, answer, other]) == prompt_key([{"role": "user", "content": "why not?"}])
    assert prompt_key([other]) != prompt_key([question])


@pytest.mark.parametrize("num_items", [1, 2, 3, 8, 14, 1000])
def test_shuffled_item_makes_a_permutation_of_every_size(num_items):
    assert sorted(shuffled_item(1234, 0, num_items, place) for place in range(num_items)) == list(range(num_items))


def test_shuffled_item_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [shuffled_item(seed, epoch, 8, place) for place in range(8)]

    assert order(1234, 0) == [2, 6, 1, 4, 3, 0, 5, 7]  # the same on every machine and in every version
    assert len({tuple(order(seed, epoch)) for seed in (-1, 1234, 1235) for epoch in (0, 1)}) == 6


def test_shuffled_item_comes_to_every_place_equally_often():
    places = np.zeros((5, 5))
    for seed in range(1000):
        for place in range(5):
            places[place, shuffled_item(seed, 0, 5, place)] += 1
    assert abs(places - 200).max() < 5 * np.sqrt(1000 * 0.2 * 0.8), "five standard deviations"


def test_shuffled_item_of_a_huge_epoch_needs_no_list_of_it():
    items = {shuffled_item(7, 3, 10**15, place) for place in range(100)}
    assert len(items) == 100 and max(items) > 9 * 10**14


def test_steps_read_every_row_once_an_epoch_across_its_ends():
    rows = [row for step in range(7) for row in step_rows(5, step, 4, 14)]  # 28 rows: two epochs of 14
    assert [epoch for epoch, _ in rows] == [0] * 14 + [1] * 14
    for epoch in (0, 1):
        assert sorted(item for e, item in rows if e == epoch) == list(range(14))


def test_steps_wrap_around_small_data_sets():
    assert [epoch for epoch, _ in step_rows(5, 0, 8, 3)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        step_rows(5, 0, 8, 0)


def test_row_at_is_the_order_of_the_steps():
    assert [row_at(5, position, 14) for position in range(28)] == [row for step in range(7) for row in step_rows(5, step, 4, 14)]
