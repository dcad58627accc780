"""Gopher's repetition rules (Rae et al. 2021, A1.1 and table A1), with the verdicts and reasons of datatrove's `GopherRepetitionFilter`.

n-grams cost most of it, so bounds from above come first; the few documents beyond one are counted word by word.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates

from megagpt.config.prepare import GopherRepetitionConfig
from megagpt.prepare.rules.broken import Broken, share
from megagpt.prepare.words import SPACELESS_LANGUAGES, TextView

_PARAGRAPH = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio (Knuth, The Art of Computer Programming 6.4)."""


def judge(view: TextView, rules: GopherRepetitionConfig, language: str, scores: dict[str, float]) -> Broken | None:
    """The first rule that is broken. Adds `duplicate_lines` and `duplicate_paragraphs`, shares of the characters, to the scores.

    In languages without spaces, whose words are characters here, n words are 2n of them.
    """
    paragraphs = _PARAGRAPH.split(view.text.strip()) if "\n\n" in view.text else []
    lines = _LINES.split(view.text)
    return (
        _pieces("para", "duplicate_paragraphs", paragraphs, view, rules.max_duplicate_paragraphs, rules.max_duplicate_paragraph_characters, scores)
        or _pieces("line", "duplicate_lines", lines, view, rules.max_duplicate_lines, rules.max_duplicate_line_characters, scores)
        or _ngrams(view, rules, 2 if language in SPACELESS_LANGUAGES else 1)
    )


def _pieces(
    kind: str, score: str, pieces: list[str], view: TextView, max_number: float | None, max_characters: float | None, scores: dict[str, float]
) -> Broken | None:
    """Pieces that were there before: their share in number, then in characters of the text."""
    number, characters = count_duplicates(pieces)
    scores[score] = in_characters = share(characters, len(view.text))
    in_number = share(number, len(pieces))
    if max_number is not None and in_number > max_number:
        return Broken(f"dup_{kind}_frac", in_number, max_number)
    if max_characters is not None and in_characters > max_characters:
        return Broken(f"dup_{kind}_char_frac", in_characters, max_characters)
    return None


def count_duplicates(pieces: list[str]) -> tuple[int, int]:
    """Number and characters of the pieces that are repetitions of an earlier one."""
    return (0, 0) if len(set(pieces)) == len(pieces) else find_duplicates(pieces)


def _ngrams(view: TextView, rules: GopherRepetitionConfig, scale: int) -> Broken | None:
    """`scale`: how many of our words one of the rules' is."""
    words, size = view.words, len(view.text)
    bounds = NgramBounds(words)
    most = bounds.most_frequent(2)
    for n, bound in rules.max_top_ngram.items():
        length, limit = n * scale, bound * size
        # No n-gram is more frequent than the two words that it begins with.
        if (length == 1 or most * bounds.longest(length) > limit) and bounds.largest(length) > limit:
            if (found := share(top_ngram(words, length), size)) > bound:
                return Broken(f"top_{n}_gram", found, bound)
    duplicates = rules.max_duplicate_ngrams
    if duplicates and bounds.repeated(min(duplicates) * scale) > min(duplicates.values()) * size:
        for n, bound in duplicates.items():
            if (found := share(find_all_duplicate(words, n * scale), size)) > bound:
                return Broken(f"duplicated_{n}_n_grams", found, bound)
    return None


def top_ngram(words: list[str], n: int) -> int:
    """Characters of the most frequent n-gram (of several the first), a space between its words, times its number."""
    counts = Counter(zip(*(words[first:] for first in range(n))))
    number = max(counts.values(), default=0)
    top = next((ngram for ngram, count in counts.items() if count == number), ())
    return number * (sum(map(len, top)) + n - 1)


class NgramBounds:
    """Bounds from above on what n-grams make up, all in characters.

    n-grams are compared by 64-bit codes, made of Python's hashes, which are others in each process: where two n-grams have the same code a bound is
    higher than it must be, and no verdict changes.
    """

    def __init__(self, words: list[str]) -> None:
        self._hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
        self._lengths = np.fromiter(map(len, words), dtype=np.int64, count=len(words))
        self._ends = np.concatenate(([0], np.cumsum(self._lengths)))

    def longest(self, n: int) -> int:
        """Of the longest n-gram, a space between its words."""
        return int((self._ends[n:] - self._ends[:-n]).max(initial=0)) + n - 1

    def most_frequent(self, n: int) -> int:
        """How often the most frequent n-gram is there; this is a number."""
        codes = np.sort(self._codes(n))
        firsts = np.concatenate(([0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [len(codes)]))
        return int(np.diff(firsts).max())

    def largest(self, n: int) -> int:
        """Of one n-gram with all its repetitions, a space between words: at least what the most frequent one makes up."""
        codes = self._codes(n)
        _, first, counts = np.unique(codes, return_index=True, return_counts=True)
        return int(((self._ends[first + n] - self._ends[first] + n - 1) * counts).max(initial=0))

    def repeated(self, n: int) -> int:
        """Of all words that are part of an n-gram which stands further in front too: for any m >= n at least what m-grams that come again make up,
        since they are made of n-grams that do."""
        codes = self._codes(n)
        order = np.argsort(codes, kind="stable")
        again = order[1:][codes[order[1:]] == codes[order[:-1]]]
        covered = np.zeros(len(self._lengths), dtype=bool)
        for place in range(n):
            covered[again + place] = True
        return int(self._lengths[covered].sum())

    def _codes(self, n: int) -> np.ndarray:
        """[words - n + 1]: a polynomial of the words' hashes, modulo 2^64."""
        count = max(len(self._hashes) - n + 1, 0)
        codes = np.zeros(count, dtype=np.uint64)
        for place in range(n):
            codes = codes * _FACTOR + self._hashes[place : place + count]
        return codes
