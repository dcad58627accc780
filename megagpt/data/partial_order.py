"""Answers of which only some are compared with each other: pairs (better, worse) of their places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter


def find_circle(pairs: Iterable[Sequence[int]]) -> list[int] | None:
    """Places that are each better than the next, the last one being the first again; None where the pairs are an order."""
    try:
        _sorter(pairs).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def longest_chains(pairs: Iterable[Sequence[int]]) -> dict[tuple[int, int], int]:
    """The transitive closure, in rising order: (better, worse) -> comparisons on the longest way from one to the other.

    Of an order with ranks, written as all its pairs, these are the ranks between two answers, 1 for neighbours.

    Raises:
        graphlib.CycleError: the pairs go in a circle.
    """
    better_than: dict[int, set[int]] = {}
    for better, worse in pairs:
        better_than.setdefault(worse, set()).add(better)
    chains: dict[tuple[int, int], int] = {}
    for worse in _sorter(pairs).static_order():
        for better in better_than.get(worse, ()):
            # All ways that end at `better` are known: it stands before `worse` in every topological order.
            above = [(first, length) for (first, last), length in chains.items() if last == better]
            for first, length in [(better, 0), *above]:
                chains[first, worse] = max(chains.get((first, worse), 0), length + 1)
    return dict(sorted(chains.items()))


def _sorter(pairs: Iterable[Sequence[int]]) -> TopologicalSorter:
    sorter: TopologicalSorter = TopologicalSorter()
    for better, worse in pairs:
        sorter.add(worse, better)
    return sorter
