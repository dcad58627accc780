"""A sample is spread over all documents, is the same whatever their order, and never longer than asked."""

import math
import random
from collections import Counter

import pytest

from megagpt.data.records import Document
from megagpt.data.sample import PIECE_CHARACTERS, first_documents, spread_documents
from megagpt.data.split import share


def documents(source: str, lengths: list[int]) -> list[Document]:
    return [Document(id=f"{source}/{number}", text=(f"{number} words " * length)[:length], source=source) for number, length in enumerate(lengths)]


def test_sample_is_everything_where_it_fits():
    everything = documents("a", [10, 3 * PIECE_CHARACTERS + 5, 40]) + documents("b", [PIECE_CHARACTERS, 7])
    assert list(spread_documents(everything, sum(len(one.text) for one in everything), {})) == everything


def test_sample_does_not_depend_on_the_order_and_is_not_too_long():
    everything = documents("a", [random.Random(0).randrange(1, 900) for _ in range(300)])
    chosen = list(spread_documents(everything, 20_000, {}))
    size = sum(len(one.text) for one in chosen)
    assert 20_000 - 900 < size <= 20_000
    shuffled = random.Random(1).sample(everything, len(everything))
    again = list(spread_documents(shuffled, 20_000, {}))
    assert {one.id for one in again} == {one.id for one in chosen}
    assert [one.id for one in again] == [one.id for one in shuffled if one in chosen], "in the order they came"


def test_sample_is_the_longest_beginning_of_the_order_of_draws():
    """Against sorting everything, which the heap is to save."""
    everything = documents("a", [random.Random(2).randrange(1, 900) for _ in range(200)]) + documents("b", [50] * 200)
    weights, left, expected = {"b": 3.0}, 15_000, set()
    for one in sorted(everything, key=lambda one: -math.log(1 - share(f"sample {one.source} {one.id} 0")) / weights.get(one.source, 1.0)):
        left -= len(one.text)
        if left < 0:
            break
        expected.add(one.id)
    assert {one.id for one in spread_documents(everything, 15_000, weights)} == expected


def test_sample_weights_make_sources_likelier():
    """Of many small documents a small sample takes sources in proportion to size x weight; 0 leaves one out."""
    everything = documents("a", [100] * 3000) + documents("b", [100] * 3000) + documents("c", [100] * 3000)
    counts = Counter(one.source for one in spread_documents(everything, 60_000, {"b": 3.0, "c": 0.0}))
    assert counts.total() == 600 and counts["c"] == 0
    assert abs(counts["b"] - 450) < 5 * math.sqrt(600 * 0.75 * 0.25), "five standard deviations"


def test_sample_takes_parts_of_a_book():
    book = Document(id="book", text="\n".join(f"line {number}" for number in range(40_000)), source="a")
    chosen = list(spread_documents([book], 100_000, {}))
    assert sum(len(one.text) for one in chosen) <= 100_000
    assert len(chosen) > 5, "pieces from several places"
    for one in chosen:
        assert one.text in book.text and one.text.endswith("\n") or book.text.endswith(one.text), "cut behind a line"


@pytest.mark.parametrize("text", ["x" * 3 * PIECE_CHARACTERS, "ab cd " * PIECE_CHARACTERS])
def test_sample_shorter_than_a_piece_is_cut(text):
    (one,) = spread_documents([Document(id="1", text=text)], 50, {})
    assert len(one.text) == 50 and one.text in text


def test_first_documents_reads_no_further():
    def endless():
        yield from documents("a", [30, 30])
        raise AssertionError("read past the end of the sample")

    assert [len(one.text) for one in first_documents(endless(), 40)] == [30, 10]
