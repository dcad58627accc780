"""Which rows share a long one, and what is left of them in it."""

import itertools

import numpy as np
import pytest

from megagpt.data.batch import EncodedRow
from megagpt.data.order import epoch_ends, step_rows
from megagpt.data.packing import describe, fill, pack_rows

CAPACITY = 10


def fewest_rows(lengths: tuple[int, ...]) -> int:
    """By brute force: items in every order, each behind the one before it while there is room."""

    def rows_of(order) -> int:
        count, space = 0, 0
        for length in order:
            if length > space:
                count, space = count + 1, CAPACITY
            space -= length
        return count

    return min(map(rows_of, set(itertools.permutations(lengths))))


@pytest.mark.parametrize("seed", range(20))
def test_packing_holds_each_item_once_within_the_capacity_and_no_two_rows_could_be_one(seed):
    lengths = np.random.default_rng(seed).integers(1, CAPACITY + 1, 40).tolist()
    rows = fill(lengths, CAPACITY)
    assert sorted(item for row in rows for item in row) == list(range(40))
    sums = [sum(lengths[item] for item in row) for row in rows]
    assert max(sums) <= CAPACITY
    assert all(one + other > CAPACITY for one, other in itertools.combinations(sums, 2))


@pytest.mark.parametrize("seed", range(20))
def test_packing_needs_hardly_more_rows_than_brute_force(seed):
    """Best fit decreasing takes the optimum on all of these; its bound is 11/9 of it, plus 4."""
    lengths = tuple(np.random.default_rng(seed).integers(1, CAPACITY, 7).tolist())
    assert len(fill(lengths, CAPACITY)) == fewest_rows(lengths)


def test_packing_takes_the_fullest_row_in_which_an_item_fits():
    assert fill([7, 6, 3], CAPACITY) == [[0, 2], [1]]
    assert fill([3, 6, 7], CAPACITY) == [[0, 2], [1]]
    assert fill([5, 5, 5, 5, 10], CAPACITY) == [[0, 1], [2, 3], [4]]
    assert fill([], CAPACITY) == []


def test_packing_refuses_what_fits_into_no_row():
    with pytest.raises(ValueError, match="an item of length 11 does not fit into a row of 10"):
        fill([3, 11], CAPACITY)


def conversations(lengths: list[int]) -> list[EncodedRow]:
    """Tokens that are all different; the first one of each is marked as a target, which as a row's first it never is."""
    starts = np.cumsum([0, *lengths])
    return [EncodedRow(np.arange(start, start + n), np.r_[1, np.arange(n - 1) % 2].astype(np.float32)) for start, n in zip(starts, lengths)]


def test_packed_rows_hold_whole_conversations_apart_from_each_other():
    rows = conversations([4, 9, 3, 2])
    first, second = pack_rows(rows, CAPACITY)
    assert first.tokens.tolist() == [0, 1, 2, 3, 13, 14, 15, 16, 17]
    assert first.segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert first.loss_mask.tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0], "the first token of a conversation has nothing before it"
    assert second.tokens.tolist() == list(range(4, 13)) and not second.segments.any()
    assert (first.tokens.dtype, first.segments.dtype, first.loss_mask.dtype) == (np.int64, np.int64, np.float32)
    assert rows[0].loss_mask[0] == 1, "the rows themselves stay as they are"


def test_packing_says_how_full_rows_are():
    rows = conversations([4, 9, 3, 2])
    assert describe(rows, pack_rows(rows, CAPACITY), CAPACITY) == "2 rows of 10 tokens, 90.0% filled (by one conversation each: 45.0%), 2.0 conversations a row"


@pytest.mark.parametrize(("epochs", "batch", "items"), [(3, 4, 10), (2, 5, 10), (4, 16, 3), (1, 1, 1)])
def test_an_epoch_ends_with_the_step_that_reads_its_last_row(epochs, batch, items):
    ends = epoch_ends(epochs, batch, items)
    for epoch, end in enumerate(ends):
        read = [row for step in range(end) for row in step_rows(7, step, batch, items)]
        assert {item for number, item in read if number == epoch} == set(range(items))
        before = [row for step in range(end - 1) for row in step_rows(7, step, batch, items)]
        assert {item for number, item in before if number == epoch} != set(range(items))
