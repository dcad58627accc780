"""Hashed n-grams of characters and words: what the classifiers see of a text.

Every n-gram of a text is hashed from one array of prefix sums, without a loop over characters. With codes c_0, c_1, … and an odd number B, the sums
S_j = sum_{k<j} (c_k + 1) B^k (mod 2^64) give the polynomial hash of the codes i … j-1 as (S_j - S_i) B^-i, since odd numbers have an inverse mod
2^64. SplitMix64's finaliser (Steele, Lea & Flood 2014) spreads it over all bits, and the highest `hash_bits` of them are the feature's number
(feature hashing, Weinberger et al. 2009). A feature counts once in a text; the values of a text have length one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megagpt.config.prepare import NgramsConfig

_BASE = 0x9E3779B97F4A7C15
_WORDS, _CHAIN = np.uint64(64), np.uint64(0xBF58476D1CE4E5B9)
_ADDRESS = re.compile(r"https?://\S+|@\w+")
"""Links and names of users: a classifier would learn who wrote, and where."""
_SPACE, _LINE_END, _ZERO, _NINE = 32, 10, 48, 57
_IS_WORD = np.array([chr(code).isalnum() or chr(code) == "'" for code in range(1 << 16)])
_IS_SPACE = np.array([code <= _SPACE or chr(code).isspace() for code in range(1 << 16)]) & (np.arange(1 << 16) != _LINE_END)
MAX_TERM_WORDS = 5
"""Longer terms of a word list are cut."""


@dataclass(frozen=True)
class WordList:
    """Terms that somebody has listed; only their hashes are known."""

    hashes: np.ndarray
    """[terms] of uint64, ascending."""

    @classmethod
    def of(cls, terms: Iterable[str]) -> WordList:
        """Terms without a letter or digit are left out."""
        found = (_term_hash(term) for term in terms)
        return cls(np.unique(np.array([one for one in found if one is not None], np.uint64)))

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """[n] of bool."""
        if not len(self.hashes):
            return np.zeros(len(hashes), bool)
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return self.hashes[place] == hashes


@dataclass(frozen=True)
class Features:
    """Of several texts, as entries of a sparse matrix."""

    num_texts: int
    rows: np.ndarray
    """[entries]: which text."""
    numbers: np.ndarray
    """[entries]: which feature."""
    values: np.ndarray
    """[entries] of float64."""


@dataclass(frozen=True)
class Ngrams:
    """Features of a text: `2^hash_bits` hashed ones, then two for each word list: whether a term occurs, and terms for each word."""

    config: NgramsConfig
    ignored: tuple[str, ...] = ()
    """Words that are taken out of a text before anything is looked at."""
    lists: Mapping[str, WordList] = field(default_factory=dict)

    @property
    def num_features(self) -> int:
        return (1 << self.config.hash_bits) + 2 * len(self.lists)

    @functools.cached_property
    def _ignored(self) -> WordList:
        return WordList.of(self.ignored)

    def features(self, texts: Sequence[str]) -> Features:
        """Of all texts at once, each as if it stood alone."""
        codes = normalise(texts)
        words = _words(codes)
        if self.ignored and (ignored := self._ignored.has(words.hashes)).any():
            codes = _without(codes, words.starts[ignored], words.ends[ignored])
            words = _words(codes)
        parts = [_runs(codes, words.sums, n) for n in self.config.character_sizes]
        parts += [_chained(words, n, _WORDS + np.uint64(n)) for n in range(1, self.config.max_words + 1)]
        rows, numbers = _distinct(parts, self.config.hash_bits)
        values = 1 / np.sqrt(np.maximum(np.bincount(rows, minlength=len(texts)), 1))[rows]
        found = Features(len(texts), rows, numbers, values)
        return self._with_lists(found, words) if self.lists else found

    def _with_lists(self, found: Features, words: _Words) -> Features:
        num_words = np.maximum(np.bincount(words.rows, minlength=found.num_texts), 1)
        terms = [_chained(words, n) for n in range(1, MAX_TERM_WORDS + 1)]
        rows, numbers, values = [found.rows], [found.numbers], [found.values]
        for place, one in enumerate(self.lists.values()):
            counts = sum(np.bincount(term_rows[one.has(hashes)], minlength=found.num_texts) for term_rows, hashes in terms)
            present = np.flatnonzero(counts)
            rows += [present, present]
            numbers += [np.full(len(present), (1 << self.config.hash_bits) + 2 * place + part) for part in (0, 1)]
            values += [np.ones(len(present)), counts[present] / num_words[present]]
        return Features(found.num_texts, *map(np.concatenate, (rows, numbers, values)))


@dataclass(frozen=True)
class Codes:
    """Characters of several texts, one behind the other."""

    codes: np.ndarray
    """[n] code points."""
    rows: np.ndarray
    """[n]: which text."""


def normalise(texts: Sequence[str]) -> Codes:
    """Code points in lower case, each text between two spaces; digits are 0, runs of spaces one, links and names of users are marks without a name."""
    clean = [f" {_without_names(text).lower()} " for text in texts]
    codes = np.frombuffer("".join(clean).replace("\u2019", "'").encode("utf-32-le", "surrogatepass"), np.uint32)
    rows = np.repeat(np.arange(len(clean), dtype=np.uint32), [len(text) for text in clean])
    codes = np.where((codes >= _ZERO) & (codes <= _NINE), np.uint32(_ZERO), codes)
    codes = np.where(_IS_SPACE[np.minimum(codes, 0xFFFF)], np.uint32(_SPACE), codes)
    return _single_spaces(codes, rows)


def _without_names(text: str) -> str:
    if "@" in text or "://" in text:
        return _ADDRESS.sub(lambda found: "@" if found[0][0] == "@" else "//", text)
    return text


@dataclass(frozen=True)
class _Words:
    """Runs of letters, digits and apostrophes: where they are, in which text, and their polynomial hashes."""

    sums: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    rows: np.ndarray
    hashes: np.ndarray


def _words(text: Codes) -> _Words:
    num_codes = len(text.codes)
    powers, inverses = _powers(num_codes)
    sums = np.zeros(num_codes + 1, np.uint64)
    np.cumsum((text.codes.astype(np.uint64) + np.uint64(1)) * powers[:num_codes], out=sums[1:])
    is_word = _IS_WORD[np.minimum(text.codes, 0xFFFF)]
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    return _Words(sums, starts, ends, text.rows[starts], (sums[ends] - sums[starts]) * inverses[starts])


def _runs(text: Codes, sums: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, hashes) of all n consecutive characters of one text."""
    if len(text.codes) < n:
        return np.empty(0, np.uint32), np.empty(0, np.uint64)
    _, inverses = _powers(len(text.codes))
    hashes = (sums[n:] - sums[:-n]) * inverses[: len(sums) - n]
    first, last = text.rows[: len(hashes)], text.rows[n - 1 :]
    return _inside(first, last, _mix(hashes ^ np.uint64(n)))


def _chained(words: _Words, n: int, salt: np.uint64 | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows, hashes) of all n consecutive words of one text."""
    hashes = words.hashes[: max(len(words.hashes) - n + 1, 0)]
    for k in range(1, n):
        hashes = _mix(hashes * _CHAIN + words.hashes[k : k + len(hashes)])
    first, last = words.rows[: len(hashes)], words.rows[n - 1 :]
    return _inside(first, last, hashes if salt is None else _mix(hashes ^ salt))


def _inside(first: np.ndarray, last: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those that begin and end in the same text."""
    if not len(first) or first[0] == last[-1]:
        return first, hashes
    inside = first == last
    return first[inside], hashes[inside]


def _distinct(parts: list[tuple[np.ndarray, np.ndarray]], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, numbers) in ascending order, each pair once; the number is the highest bits of a hash."""
    rows = np.concatenate([np.empty(0, np.uint32), *(rows for rows, _ in parts)])
    numbers = (np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in parts)]) >> np.uint64(64 - bits)).astype(np.uint32)
    if not len(rows) or (int(rows.max()) + 1) << bits <= 1 << 32:  # sorted in half the time
        pairs = np.sort((rows << np.uint32(bits)) | numbers)
    else:
        pairs = np.sort((rows.astype(np.uint64) << np.uint64(bits)) | numbers)
    is_new = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=is_new[1:])
    pairs = pairs[is_new].astype(np.int64)
    return pairs >> bits, pairs & ((1 << bits) - 1)


def _term_hash(term: str) -> int | None:
    words = _words(normalise([term]))
    n = min(len(words.hashes), MAX_TERM_WORDS)
    return int(_chained(words, n)[1][0]) if n else None


def _without(text: Codes, starts: np.ndarray, ends: np.ndarray) -> Codes:
    marks = np.zeros(len(text.codes) + 1, np.int64)
    marks[starts] += 1
    marks[ends] -= 1
    stay = np.cumsum(marks[:-1]) == 0
    return _single_spaces(text.codes[stay], text.rows[stay])


def _single_spaces(codes: np.ndarray, rows: np.ndarray) -> Codes:
    repeated = np.zeros(len(codes), bool)
    repeated[1:] = (codes[1:] == _SPACE) & (codes[:-1] == _SPACE) & (rows[1:] == rows[:-1])
    return Codes(codes[~repeated], rows[~repeated])


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse, mod 2^64; at least `size` of each."""
    return _table(1 << max(size.bit_length(), 14))


@functools.lru_cache(maxsize=8)
def _table(size: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.cumprod(np.array([1] + [base] * (size - 1), np.uint64), dtype=np.uint64) for base in (_BASE, pow(_BASE, -1, 1 << 64)))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, in the array that it is given."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
