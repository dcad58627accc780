"""Hashed n-grams of characters and words: what the classifiers see of a text.

Every n-gram of a text is hashed from one array of prefix sums, without a loop over characters. With codes c_0, c_1, … and an odd number B, the sums
S_j = sum_{k<j} (c_k + 1) B^k (mod 2^64) give the polynomial hash of the codes i … j-1 as (S_j - S_i) B^-i, since odd numbers have an inverse mod
2^64. SplitMix64's finaliser (Steele, Lea & Flood 2014) spreads it over all bits, and the highest `hash_bits` of them are the feature's number
(feature hashing, Weinberger et al. 2009). A feature counts once in a text; the values of a text have length one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
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

    def features(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """([n] ascending numbers of features, [n] values in float64)."""
        codes = normalise(text)
        sums, words = _word_hashes(codes)
        if self.ignored and (ignored := self._ignored.has(words.hashes)).any():
            codes = _without(codes, words.starts[ignored], words.ends[ignored])
            sums, words = _word_hashes(codes)
        hashes = [_mix(_runs(sums, n) ^ np.uint64(n)) for n in self.config.character_sizes if len(codes) >= n]
        hashes += [_mix(_chained(words.hashes, n) ^ (_WORDS + np.uint64(n))) for n in range(1, self.config.max_words + 1)]
        numbers = _distinct(np.concatenate([np.empty(0, np.uint64), *hashes]) >> np.uint64(64 - self.config.hash_bits))
        values = np.full(len(numbers), 1 / np.sqrt(max(len(numbers), 1)))
        if self.lists:
            more = self._list_features(words.hashes)
            numbers = np.concatenate([numbers, (1 << self.config.hash_bits) + np.flatnonzero(more)])
            values = np.concatenate([values, more[more > 0]])
        return numbers, values

    def _list_features(self, words: np.ndarray) -> np.ndarray:
        """[2 x lists]."""
        terms = [_chained(words, n) for n in range(1, MAX_TERM_WORDS + 1)]
        counts = np.array([sum(int(one.has(term).sum()) for term in terms) for one in self.lists.values()], np.float64)
        return np.stack([counts > 0, counts / max(len(words), 1)], axis=1).ravel()


def normalise(text: str) -> np.ndarray:
    """[n] code points in lower case, between two spaces; digits are 0, runs of spaces one, links and names of users are marks without a name."""
    text = _ADDRESS.sub(lambda found: "@" if found[0][0] == "@" else "//", text) if "@" in text or "://" in text else text
    codes = np.frombuffer(f" {text.lower()} ".replace("\u2019", "'").encode("utf-32-le", "surrogatepass"), np.uint32)
    codes = np.where((codes >= _ZERO) & (codes <= _NINE), np.uint32(_ZERO), codes)
    codes = np.where(_IS_SPACE[np.minimum(codes, 0xFFFF)], np.uint32(_SPACE), codes)
    return _single_spaces(codes)


@dataclass(frozen=True)
class _Words:
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray


def _word_hashes(codes: np.ndarray) -> tuple[np.ndarray, _Words]:
    """([n + 1] prefix sums, words: runs of letters, digits and apostrophes)."""
    powers, _ = _powers(1 << int(len(codes)).bit_length())
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes.astype(np.uint64) + np.uint64(1)) * powers[: len(codes)], out=sums[1:])
    is_word = _IS_WORD[np.minimum(codes, 0xFFFF)]
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    return sums, _Words(starts, ends, _polynomial(sums, starts, ends))


def _polynomial(sums: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    _, inverses = _powers(1 << int(len(sums) - 1).bit_length())
    return (sums[ends] - sums[starts]) * inverses[starts]


def _runs(sums: np.ndarray, n: int) -> np.ndarray:
    """Polynomial hashes of all n consecutive characters."""
    _, inverses = _powers(1 << int(len(sums) - 1).bit_length())
    return (sums[n:] - sums[:-n]) * inverses[: len(sums) - n]


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Ascending, each once; below 2^32."""
    numbers = np.sort(numbers.astype(np.uint32)).astype(np.int64)
    is_new = np.ones(len(numbers), bool)
    np.not_equal(numbers[1:], numbers[:-1], out=is_new[1:])
    return numbers[is_new]


def _chained(words: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all n consecutive words, from those of single ones."""
    found = words[: max(len(words) - n + 1, 0)]
    for k in range(1, n):
        found = _mix(found * _CHAIN + words[k : k + len(found)])
    return found


def _term_hash(term: str) -> int | None:
    _, words = _word_hashes(normalise(term))
    hashes = words.hashes[:MAX_TERM_WORDS]
    return int(_chained(hashes, len(hashes))[0]) if len(hashes) else None


def _without(codes: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    marks = np.zeros(len(codes) + 1, np.int64)
    marks[starts] += 1
    marks[ends] -= 1
    return _single_spaces(codes[np.cumsum(marks[:-1]) == 0])


def _single_spaces(codes: np.ndarray) -> np.ndarray:
    is_space = codes == _SPACE
    return codes[~(is_space & np.concatenate([[False], is_space[:-1]]))]


@functools.lru_cache(maxsize=4)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """([size] powers of the base, [size] of its inverse), mod 2^64."""
    return tuple(np.cumprod(np.array([1] + [base] * (size - 1), np.uint64), dtype=np.uint64) for base in (_BASE, pow(_BASE, -1, 1 << 64)))


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, in the array that it is given."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
