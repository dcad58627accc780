"""Gopher's repetition rules (Rae et al. 2021, A1.1 and table A1), with the verdicts and reasons of datatrove's `GopherRepetitionFilter`.

n-grams cost most of it, so an upper bound comes first and what no document below the bound can break is not counted: an n-gram is no more frequent
than its first two words, and n words that were there before are made of shorter ones that were.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate, find_duplicates

from megagpt.config.prepare import GopherRepetitionConfig
from megagpt.prepare.rules.broken import Broken, share
from megagpt.prepare.words import TextView

_PARAGRAPH = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


def judge(view: TextView, rules: GopherRepetitionConfig, scores: dict[str, float]) -> Broken | None:
    """The first rule that is broken. Adds `duplicate_lines` and `duplicate_paragraphs`, shares of the characters, to the scores."""
    paragraphs = _PARAGRAPH.split(view.text.strip()) if "\n\n" in view.text else []
    lines = _LINES.split(view.text)
    return (
        _pieces("para", "duplicate_paragraphs", paragraphs, view, rules.max_duplicate_paragraphs, rules.max_duplicate_paragraph_characters, scores)
        or _pieces("line", "duplicate_lines", lines, view, rules.max_duplicate_lines, rules.max_duplicate_line_characters, scores)
        or _top_ngrams(view, rules.max_top_ngram)
        or _duplicate_ngrams(view, rules.max_duplicate_ngrams)
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


def _top_ngrams(view: TextView, bounds: dict[int, float]) -> Broken | None:
    """Characters of the most frequent n-gram (of several the first), a space between its words, times its number."""
    if not bounds or not view.bigrams:
        return None
    longest, most = max(map(len, view.words)), max(view.bigrams.values())
    for n, bound in bounds.items():
        if n > 2 and most * (n * longest + n - 1) <= bound * len(view.text):
            continue
        counts: Counter[Sequence[str]] = view.bigrams if n == 2 else Counter(_ngrams(view.words, n))  # type: ignore[assignment]
        if not counts:
            continue
        number = max(counts.values())
        top = next(ngram for ngram, count in counts.items() if count == number)
        found = share(number * (sum(map(len, top)) + n - 1), len(view.text))
        if found > bound:
            return Broken(f"top_{n}_gram", found, bound)
    return None


def _duplicate_ngrams(view: TextView, bounds: dict[int, float]) -> Broken | None:
    """Characters of n-grams that were there before, none of them counted twice."""
    if not bounds or repeated_characters(view.words, min(bounds)) <= min(bounds.values()) * len(view.text):
        return None
    for n, bound in bounds.items():
        found = share(find_all_duplicate(view.words, n), len(view.text))
        if found > bound:
            return Broken(f"duplicated_{n}_n_grams", found, bound)
    return None


def repeated_characters(words: list[str], n: int) -> int:
    """Characters of all words that are part of an n-gram which stands further in front too: for any m >= n at least the characters of the m-grams
    that come again."""
    ngrams = list(_ngrams(words, n))
    if len(set(ngrams)) == len(ngrams):
        return 0
    seen, total, covered = set(), 0, 0
    for start, ngram in enumerate(ngrams):
        if ngram in seen:
            total += sum(map(len, words[max(start, covered) : start + n]))
            covered = start + n
        else:
            seen.add(ngram)
    return total


def _ngrams(words: list[str], n: int) -> zip[tuple[str, ...]]:
    return zip(*(words[first:] for first in range(n)))
