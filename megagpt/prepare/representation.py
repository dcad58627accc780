"""How often groups of people are named, among which words, and whose documents cleaning drops.

Filters may drop documents about some groups more than others (Dodge et al. 2021, section 5, measured it for C4), and words near a group's name
carry what a model learns of it (Brown et al. 2020, section 6.2). All counts are integers, so that they add up to the same whatever the order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megagpt.config.prepare import RepresentationConfig, Target
from megagpt.prepare.identity_terms import TermFinder, read_terms
from megagpt.prepare.sentiment import SCALE, read_lexicon, read_negations, valences

Counts = dict[str, Any]
"""Source -> `documents`, `words`, `terms` (category/group/term -> columns), `groups` (category/group -> columns), and where documents are to be
re-weighted `together` (category/group -> category/group -> A of reweighting.py, in millionths); what is 0 is left out."""

COLUMNS = ("documents", "occurrences", "positive", "negative", "valence", "weighted")
"""Documents that have it; times it occurs; words of positive and of negative valence around it, and the sum of their valences, in thousandths;
occurrences by the weights of their documents, in thousandths."""
WEIGHT_SCALE = 1000
TOGETHER_SCALE = 1_000_000


class Representation:
    """Counts of one task. A word near two occurrences counts for both; words of identity terms themselves have no valence."""

    def __init__(self, config: RepresentationConfig):
        terms = read_terms(config.terms)
        lexicon, negations = read_lexicon(), read_negations()
        self._window = config.window
        self._finder = TermFinder(terms, [*lexicon, *negations])
        self._lexicon = np.zeros(len(self._finder.vocabulary) + 1, np.int64)
        self._lexicon[[self._finder.vocabulary[word] for word in lexicon]] = list(lexicon.values())
        self._is_negation = self._finder.mask(negations)
        self._groups = list(dict.fromkeys(term.group_key for term in terms))
        self._group_of = np.array([self._groups.index(term.group_key) for term in terms])
        targets = config.reweighting.targets if config.reweighting else {}
        self._targeted = [
            np.array([place for place, group in enumerate(self._groups) if is_target(group, category, target)], np.int64)
            for category, target in sorted(targets.items())
        ]
        """Of each category with targets, the places of its groups that have one."""
        self._sources: dict[str, _Sums] = {}

    def add(self, source: str, text: str, weight: float = 1.0) -> None:
        """Count one document.

        Args:
            weight: for `weighted`; counts to three decimals.
        """
        numbers = self._finder.numbers(text)
        sums = self._sources.setdefault(source, _Sums.zero(len(self._finder.terms), len(self._groups)))
        sums.documents += 1
        sums.words += len(numbers)
        found = self._finder.find(numbers)
        if not len(found):
            return
        terms, begins, ends = found.T
        rows = np.zeros((len(found), len(COLUMNS)), np.int64)
        rows[:, 1] = 1
        rows[:, 2:5] = self._around(numbers, begins, ends)
        rows[:, 5] = round(weight * WEIGHT_SCALE)
        np.add.at(sums.terms, terms, rows)
        sums.terms[np.unique(terms), 0] += 1
        mentions = np.bincount(self._group_of[terms], minlength=len(self._groups))
        sums.group_documents += mentions > 0
        for targeted in self._targeted:
            named = targeted[mentions[targeted] > 0]
            total = max(mentions[named].sum(), 1)
            sums.together[np.ix_(named, named)] += (TOGETHER_SCALE * np.outer(mentions[named], mentions[named]) + total // 2) // total

    def _around(self, numbers: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Positive and negative words and the sum of valences in the window around each term; [found, 3]."""
        values = valences(self._lexicon[numbers], self._is_negation[numbers])
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            values[begin:end] = 0
        running = np.zeros((len(values) + 1, 3), np.int64)
        np.cumsum(np.stack([values > 0, values < 0, values], axis=1), axis=0, out=running[1:])
        return running[np.minimum(ends + self._window, len(values))] - running[np.maximum(begins - self._window, 0)]

    def counts(self) -> Counts:
        """As JSON has it; those of several tasks become one by `merge`."""
        return merge([{source: self._counts_of(sums) for source, sums in self._sources.items()}])

    def _counts_of(self, sums: _Sums) -> dict[str, Any]:
        groups = np.zeros((len(self._groups), len(COLUMNS)), np.int64)
        np.add.at(groups, self._group_of, sums.terms)
        groups[:, 0] = sums.group_documents
        together = {self._groups[place]: sums.together[place] for place in np.flatnonzero(sums.together.any(axis=1))}
        return {
            "documents": sums.documents,
            "words": sums.words,
            "terms": _named([term.key for term in self._finder.terms], sums.terms),
            "groups": _named(self._groups, groups),
            "together": {group: {self._groups[place]: int(row[place]) for place in np.flatnonzero(row)} for group, row in together.items()},
        }


@dataclass
class _Sums:
    documents: int
    words: int
    terms: np.ndarray
    """[terms, COLUMNS]"""
    group_documents: np.ndarray
    """[groups]"""
    together: np.ndarray
    """[groups, groups], millionths"""

    @classmethod
    def zero(cls, num_terms: int, num_groups: int) -> _Sums:
        return cls(0, 0, np.zeros((num_terms, len(COLUMNS)), np.int64), np.zeros(num_groups, np.int64), np.zeros((num_groups, num_groups), np.int64))


def is_target(group: str, category: str, target: Target) -> bool:
    """Whether a `category/group` is among those that the target of a category speaks of."""
    of, name = group.split("/")
    return of == category and (target == "uniform" or name in target)


def _named(names: list[str], rows: np.ndarray) -> dict[str, dict[str, int]]:
    return {name: dict(zip(COLUMNS, row.tolist(), strict=True)) for name, row in zip(names, rows, strict=True) if row[0]}


def merge(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of counts, in the order of their names, whatever the order they come in."""
    total: dict[str, Any] = {}
    for part in counts:
        for name, value in part.items():
            total[name] = merge([total.get(name, {}), value]) if isinstance(value, Mapping) else total.get(name, 0) + value
    return {name: total[name] for name in sorted(total)}


# ---------------------------------------------------------------- before and after


@dataclass(frozen=True, slots=True)
class Kept:
    """What dropping does to the documents that name a group."""

    seen: int
    share: float
    """Documents kept of those seen."""
    ratio: float | None
    """This share by that of all documents; None where none of these is kept."""
    is_flagged: bool
    """The ratio is under `min_ratio`, for `min_documents` or more: less than the four-fifths rule asks for (29 CFR 1607.4 D; there against the group
    that fares best, here against all documents)."""


@dataclass(frozen=True, slots=True)
class Row:
    """A group, or one of its terms; pairs are (before, after)."""

    category: str
    group: str
    term: str
    """Empty for the group."""
    documents: tuple[int, int]
    per_million: tuple[float, float]
    """Occurrences per million words."""
    sentiment: tuple[float | None, float | None]
    """Mean valence of the words around it that have one, from -4 to 4."""
    kept: Kept
    steps: dict[str, Kept]
    """Step -> of the documents that came to it."""


def table(
    before: Counts, after: Counts, config: RepresentationConfig, dropped: Mapping[str, Counts] | None = None, source: str | None = None
) -> list[Row]:
    """Groups, each before its terms, as they were before and after cleaning.

    Args:
        dropped: step -> counts of the documents that it dropped, in the order of the steps.
        source: of this one only; default: all together.
    """
    seen, left = _of_source(before, source), _of_source(after, source)
    drops = {step: _of_source(counts, source) for step, counts in (dropped or {}).items()}
    rows = []
    for group in seen["groups"]:
        rows.append(_row("groups", group, seen, left, drops, config))
        rows += [_row("terms", term, seen, left, drops, config) for term in seen["terms"] if term.startswith(f"{group}/")]
    return rows


def _of_source(counts: Counts, source: str | None) -> dict[str, Any]:
    none: Counts = {"documents": 0, "words": 0, "terms": {}, "groups": {}}
    return merge([none, *(counts.values() if source is None else [counts.get(source, {})])])


def _row(kind: str, key: str, seen: dict, left: dict, drops: dict[str, dict], config: RepresentationConfig) -> Row:
    def column(counts: dict, name: str) -> int:
        return counts[kind].get(key, {}).get(name, 0)

    def per_million(counts: dict) -> float:
        return 1e6 * column(counts, "occurrences") / max(counts["words"], 1)

    def sentiment(counts: dict) -> float | None:
        num_words = column(counts, "positive") + column(counts, "negative")
        return column(counts, "valence") / SCALE / num_words if num_words else None

    category, group, *term = key.split("/", 2)
    mine, all_ = column(seen, "documents"), seen["documents"]
    steps = {}
    for step, counts in drops.items():
        steps[step] = _kept(mine, mine - column(counts, "documents"), all_, all_ - counts["documents"], config)
        mine, all_ = mine - column(counts, "documents"), all_ - counts["documents"]
    documents = column(seen, "documents"), column(left, "documents")
    kept = _kept(*documents, seen["documents"], left["documents"], config)
    per_million_words, valence = (per_million(seen), per_million(left)), (sentiment(seen), sentiment(left))
    return Row(category, group, "".join(term), documents, per_million_words, valence, kept, steps)


def _kept(seen: int, left: int, all_seen: int, all_left: int, config: RepresentationConfig) -> Kept:
    share = left / max(seen, 1)
    ratio = share * all_seen / all_left if all_left else None
    return Kept(seen, share, ratio, ratio is not None and seen >= config.min_documents and ratio < config.min_ratio)
