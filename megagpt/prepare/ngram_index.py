"""N-grams of evaluation items: built once into files, which all tasks of a machine read through one shared mapping.

An n-gram's hash is c B^n + Σ_j w_j B^(n-1-j) mod 2^64 of its words' hashes w_j, so that the hashes at all places of a text are n products of
arrays, and those of every shorter length come by the way. B is odd and the w_j are random 64-bit numbers: two different n-grams meet with a
probability of about 2^-64.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megagpt.prepare.evaluation_sets import Item
from megagpt.prepare.word_numbers import WordNumbers
from megagpt.runtime.atomic import sync, write_json

BASE = np.uint64(0x9E3779B97F4A7C15)
START = np.uint64(0xD1B54A32D192ED03)
SIEVE_PLACES_PER_GRAM = 16
"""At most one place in so many of the sieve is taken, which lets pass as small a part of the n-grams that are not in the index; bytes."""


def hash_word(word: str) -> int:
    """Lower case and without apostrophes: what is left of a word when case and punctuation are not looked at."""
    return xxhash.xxh3_64_intdigest(word.lower().replace("'", "").replace("’", "").encode("utf-8", "surrogatepass"))


def word_hashes() -> WordNumbers:
    return WordNumbers(hash_word, np.uint64)


def gram_hashes(words: np.ndarray, lengths: Iterable[int]) -> Iterable[tuple[int, np.ndarray]]:
    """Hashes of all n-grams of a text.

    Args:
        words: hashes, [words], uint64.
        lengths: values of n, ascending.

    Yields:
        (n, hashes): [words - n + 1], of the n-gram that begins at each word; only where there is one.
    """
    hashes = np.full(len(words), START)
    done = 0
    for length in lengths:
        for added in range(done, min(length, len(words))):
            hashes = hashes[: len(words) - added] * BASE + words[added:]
        if length > len(words):
            return
        yield length, hashes
        done = length


@dataclass(frozen=True)
class Matches:
    """N-grams of one text that items have too."""

    positions: np.ndarray
    """First word; [matches]."""
    lengths: np.ndarray
    """Words; [matches]."""
    grams: np.ndarray
    """Places in the index; [matches]."""


@dataclass(frozen=True)
class NgramIndex:
    """What is written by `write_index`."""

    facts: dict[str, Any]
    """`lengths`: values of n, ascending. `sets`: name, items, too_short (items without an n-gram), grams. `files`: paths."""
    grams: np.ndarray
    """Hashes, ascending, all different; [grams], uint64."""
    offsets: np.ndarray
    """Items of gram g: `items[offsets[g] : offsets[g + 1]]`; [grams + 1]."""
    items: np.ndarray
    """[pairs of gram and item], uint32."""
    sizes: np.ndarray
    """Different n-grams of each item; [items]."""
    sets: np.ndarray
    """Which set an item is of; [items]."""
    places: np.ndarray
    """File and line of each item; [items, 2]."""
    sieve: np.ndarray
    """Whether any hash begins with these bits; [power of two], bool."""
    common: np.ndarray
    """N-grams that too many documents share; [grams], bool."""

    ARRAYS = ("grams", "offsets", "items", "sizes", "sets", "places", "sieve", "common")

    @classmethod
    def load(cls, folder: Path) -> NgramIndex:
        facts = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        # asarray: numpy's own class of mapped arrays costs microseconds wherever one is indexed.
        return cls(facts, **{name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in cls.ARRAYS})

    @cached_property
    def _shift(self) -> np.uint64:
        return _shift_of(len(self.sieve))

    @cached_property
    def names(self) -> list[str]:
        """Of the sets."""
        return [facts["name"] for facts in self.facts["sets"]]

    @cached_property
    def first_items(self) -> np.ndarray:
        """Number of each set's first item; [sets]. Items of a set follow each other."""
        return np.searchsorted(self.sets, np.arange(len(self.names)))

    def find(self, words: np.ndarray, also_common: bool = False) -> Matches:
        """N-grams of a text (hashes of its words, [words]) that are in the index, without common ones unless they are asked for."""
        by_length = list(gram_hashes(words, self.facts["lengths"]))
        if not by_length:
            return Matches(*(np.zeros(0, np.int64) for _ in range(3)))
        hashes = np.concatenate([hashes for _, hashes in by_length])
        places = np.flatnonzero(self.sieve[hashes >> self._shift])
        grams = np.minimum(np.searchsorted(self.grams, hashes[places]), len(self.grams) - 1)
        is_found = (self.grams[grams] == hashes[places]) & (also_common | ~self.common[grams])
        places, grams = places[is_found], grams[is_found]
        ends = np.cumsum([len(hashes) for _, hashes in by_length])
        part = np.searchsorted(ends, places, "right")
        begins = np.append(0, ends[:-1])
        return Matches(places - begins[part], np.array([length for length, _ in by_length])[part], grams)

    def shares(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Items that have any of these n-grams, ascending, and the share of each one's different n-grams that is among them; [items touched]."""
        if not len(grams):
            return np.zeros(0, np.uint32), np.zeros(0)
        items, counts = np.unique(self._items_of(np.unique(grams)), return_counts=True)
        return items, counts / self.sizes[items]

    def of_items(self, grams: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each n-gram is of one of these items (ascending); [grams], bool."""
        found = {gram: bool(np.isin(self._items_of([gram]), items).any()) for gram in np.unique(grams).tolist()}
        return np.array([found[gram] for gram in grams.tolist()], bool)

    def _items_of(self, grams: Iterable[int]) -> np.ndarray:
        return np.concatenate([self.items[self.offsets[gram] : self.offsets[gram + 1]] for gram in grams] or [self.items[:0]])


def write_index(folder: Path, sets: list[str], items: Iterable[Item], n: int, min_words: int, key: str) -> None:
    """Index the items: the n-grams of each text; a text under n words as a whole, if it has min_words; shorter ones not at all.

    Held in memory: about 80 bytes an n-gram of the evaluation sets. The folder appears when it is whole.
    """
    numbers = word_hashes()
    hashes: list[np.ndarray] = []
    lengths: set[int] = set()
    files: dict[str, int] = {}
    places, set_of = [], []
    for item in items:
        texts = [_item_grams(numbers(text), n, min_words) for text in item.texts]
        lengths.update(length for length, _ in texts if length)
        hashes.append(np.unique(np.concatenate([grams for _, grams in texts] or [np.zeros(0, np.uint64)])))
        places.append((files.setdefault(item.path, len(files)), item.line))
        set_of.append(sets.index(item.set))
    sizes = np.array([len(grams) for grams in hashes], np.uint32)
    pairs = np.concatenate(hashes or [np.zeros(0, np.uint64)])
    order = np.argsort(pairs, kind="stable")
    grams, starts = np.unique(pairs[order], return_index=True)
    sieve = np.zeros(1 << max(len(grams) * SIEVE_PLACES_PER_GRAM - 1, 255).bit_length(), bool)
    sieve[grams >> _shift_of(len(sieve))] = True
    arrays = {
        "grams": grams,
        "offsets": np.append(starts, len(pairs)).astype(np.int64),
        "items": np.repeat(np.arange(len(sizes), dtype=np.uint32), sizes)[order],
        "sizes": sizes,
        "sets": np.array(set_of, np.uint16),
        "places": np.array(places, np.uint32).reshape(-1, 2),
        "sieve": sieve,
        "common": np.zeros(len(grams), bool),
    }
    facts = {
        "key": key,
        "lengths": sorted(lengths),
        "sets": [_set_facts(name, arrays["sets"] == number, sizes) for number, name in enumerate(sets)],
        "files": list(files),
    }
    unfinished = folder.with_name(f".{folder.name}.tmp{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
            sync(unfinished / f"{name}.npy")
        write_json(unfinished / "index.json", facts)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _item_grams(words: np.ndarray, n: int, min_words: int) -> tuple[int, np.ndarray]:
    """n, or the words of a shorter text, and hashes; (0, none) where there are too few words."""
    length = min(n, len(words))
    if length < min_words:
        return 0, np.zeros(0, np.uint64)
    [(length, hashes)] = gram_hashes(words, [length])
    return length, hashes


def _set_facts(name: str, is_in: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    return {"name": name, "items": int(is_in.sum()), "too_short": int((sizes[is_in] == 0).sum()), "grams": int(sizes[is_in].sum())}


def _shift_of(size: int) -> np.uint64:
    """From 64-bit hashes to places of a table of this size, a power of two."""
    return np.uint64(64 - (size.bit_length() - 1))
