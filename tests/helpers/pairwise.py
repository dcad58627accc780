"""A small set of cases in which every two values of different factors meet at least once, where they may (all-pairs testing)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def pairwise_cases(factors: Mapping[str, Sequence[Any]], legal: Callable[[dict[str, Any]], bool], seed: int = 0) -> list[dict[str, Any]]:
    """Greedy: each new case is the best of all legal combinations that can be sampled; the same list for the same arguments."""
    names = list(factors)
    every = [dict(zip(names, values)) for values in itertools.product(*factors.values())]
    random.Random(seed).shuffle(every)
    candidates = [(case, pairs_of(case, names)) for case in every if legal(case)]
    missing = set().union(*(pairs for _, pairs in candidates))
    cases = []
    while missing:
        case, pairs = max(candidates, key=lambda candidate: len(candidate[1] & missing))
        missing -= pairs
        cases.append(case)
    return cases


def pairs_of(case: dict[str, Any], names: Sequence[str]) -> frozenset[tuple]:
    """((factor, value), (factor, value)) of every two factors."""
    return frozenset(((a, str(case[a])), (b, str(case[b]))) for a, b in itertools.combinations(names, 2))
