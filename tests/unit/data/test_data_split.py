"""Splits and orders are functions of keys and counters alone."""

import random

import numpy as np
import pytest

from megagpt.data.order import epoch_order, rows_at, step_rows
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


def test_epoch_order_is_a_fixed_permutation():
    order = epoch_order(1234, 0, 8)
    assert sorted(order) == list(range(8))
    assert order.tolist() == [7, 3, 0, 1, 4, 2, 5, 6]  # the same on every machine and in every version
    assert not np.array_equal(order, epoch_order(1234, 1, 8))
    assert not np.array_equal(order, epoch_order(1235, 0, 8))
    assert sorted(epoch_order(-1, 0, 8)) == list(range(8))


def test_epoch_order_cannot_be_changed_by_its_users():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(1, 0, 4)[0] = 1


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


def test_order_of_steps_of_different_sizes_is_the_order_of_the_rows():
    whole = rows_at(5, range(28), 14)
    assert [row for cut in (range(3), range(3, 17), range(17, 28)) for row in rows_at(5, cut, 14)] == whole
    assert whole == [row for step in range(7) for row in step_rows(5, step, 4, 14)]
