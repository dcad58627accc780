"""Documents must not hold what evaluation sets ask (Brown et al. 2020, appendix C)."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from megagpt.config.load import ConfigError
from megagpt.config.prepare import DecontaminationConfig
from megagpt.prepare.evaluation_sets import find_files, read_items
from megagpt.prepare.ngram_index import NgramIndex, word_hashes, write_index
from megagpt.prepare.word_numbers import WORD
from megagpt.runtime.atomic import sha256_file, write_bytes

MOST = 10
"""Items of a set that the report names."""


class Decontamination:
    """Cut a document around the n-grams that it shares with evaluation items, or drop it as `contaminated`.

    An item is found if the document has at least `min_share` of its different n-grams. The score is the highest share of any item, found or not.
    Notes name the items: `items` (set -> their places in the set, from 0) and `cut` (characters taken out).

    GPT-3 makes a document of each piece; here they stay one document, parted by blank lines. `max_pieces` counts them before short ones go.
    """

    name = "decontamination"

    def __init__(self, config: DecontaminationConfig, work: Path):
        self._config = config
        self._index = NgramIndex.load(index_folder(work))
        self._numbers = word_hashes()

    def __call__(self, document: Document) -> str | None:
        matches = self._index.find(self._numbers(document.text))
        items, shares = self._index.shares(matches.grams)
        document.metadata["scores"][self.name] = round(float(shares.max(initial=0.0)), 4)
        items = items[shares >= self._config.min_share]
        if not len(items):
            return None
        notes = document.metadata["notes"][self.name] = {"items": self._by_set(items)}
        if self._config.action == "drop":
            return "contaminated"
        is_found = self._index.of_items(matches.grams, items)
        pieces = cut(document.text, matches.positions[is_found], matches.lengths[is_found], self._config.window)
        kept = [piece for piece in pieces if len(piece) >= self._config.min_piece]
        if not kept or len(pieces) > self._config.max_pieces:
            return "contaminated"
        text = "\n\n".join(kept)
        notes["cut"] = len(document.text) - len(text)
        document.text = text
        return None

    def _by_set(self, items: np.ndarray) -> dict[str, list[int]]:
        index, sets = self._index, self._index.sets[items]
        return {index.names[number]: (items[sets == number] - index.first_items[number]).tolist() for number in np.unique(sets).tolist()}


def cut(text: str, positions: np.ndarray, lengths: np.ndarray, window: int) -> list[str]:
    """What is left of a text without some of its n-grams and `window` characters on both sides of each, up to the edge of a word; in order,
    without the space around it, and without what is empty.

    Args:
        positions: number of each n-gram's first word, [matches].
        lengths: words of each, [matches].
    """
    starts, ends = np.array([word.span() for word in WORD.finditer(text)]).T
    pieces, begin = [], 0
    order = np.argsort(positions, kind="stable")
    for first, last in zip(positions[order].tolist(), (positions + lengths - 1)[order].tolist(), strict=True):
        pieces.append(text[begin : max(begin, _word_start(starts, ends, int(starts[first]) - window))])
        begin = max(begin, _word_end(starts, ends, int(ends[last]) + window))
    pieces.append(text[begin:])
    return [piece.strip() for piece in pieces if piece.strip()]


def _word_start(starts: np.ndarray, ends: np.ndarray, place: int) -> int:
    """The place, or the beginning of the word around it."""
    word = int(np.searchsorted(ends, place, "right"))
    return max(min(place, int(starts[word])), 0)


def _word_end(starts: np.ndarray, ends: np.ndarray, place: int) -> int:
    """The place, or the end of the word around it."""
    word = int(np.searchsorted(starts, place, "left")) - 1
    return max(place, int(ends[word]))


# ---------------------------------------------------------------- the index, once for each run


def index_folder(work: Path) -> Path:
    return work / "evaluation_index"


def build_index(config: DecontaminationConfig, work: Path) -> Path:
    """Index the evaluation sets, unless the folder has that of the same settings and files.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: an evaluation set that cannot be read.
    """
    names = [evaluation.name for evaluation in config.sets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"steps.decontamination.sets: two are called {twice[0]}")
    if config.min_words > config.n:
        raise ConfigError(f"steps.decontamination.min_words = {config.min_words}: must be at most n = {config.n}")
    for evaluation in config.sets:
        try:
            re.compile(evaluation.ignore or "")
        except re.error as error:
            raise ConfigError(f"steps.decontamination.sets: ignore = {evaluation.ignore!r} of {evaluation.name}: {error}") from error
    files = [(evaluation, path) for evaluation in config.sets for path in find_files(evaluation)]
    inputs = [[*evaluation.model_dump(include={"name", "columns", "ignore"}).values(), str(path), sha256_file(path)] for evaluation, path in files]
    # max_documents too: marks of common n-grams belong to it.
    key = hashlib.sha256(json.dumps([config.n, config.min_words, config.max_documents, inputs]).encode()).hexdigest()
    folder = index_folder(work)
    if not (folder / "index.json").exists() or json.loads((folder / "index.json").read_text(encoding="utf-8"))["key"] != key:
        items = (item for evaluation, path in files for item in read_items(evaluation, path))
        write_index(folder, names, items, config.n, config.min_words, key)
    return folder


def count_documents(index: NgramIndex, texts: Iterable[str]) -> np.ndarray:
    """Documents that each n-gram of the index is in, for `max_documents`; [grams], uint32. Counts of tasks add up."""
    numbers = word_hashes()
    counts = np.zeros(len(index.grams), np.uint32)
    for text in texts:
        counts[np.unique(index.find(numbers(text), also_common=True).grams)] += 1
    return counts


def mark_common(config: DecontaminationConfig, work: Path, counts: Iterable[np.ndarray]) -> int:
    """Let the steps ignore n-grams that are in more than `max_documents` documents; returns how many these are.

    Args:
        counts: of all tasks, each [grams].
    """
    assert config.max_documents is not None
    common = sum(count.astype(np.uint64) for count in counts) > config.max_documents
    content = io.BytesIO()
    np.save(content, common, allow_pickle=False)
    write_bytes(index_folder(work) / "common.npy", content.getvalue())
    return int(common.sum())


# ---------------------------------------------------------------- what the report shows


def touched(work: Path, notes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sets, and what of them the documents held.

    Args:
        notes: of this step, one for each document that has them.

    Returns:
        For each set `set`, `items`, `too_short` (items that cannot be searched for), `touched` (items that were found), `documents` (that held
        any), and `most` (the ten items that most documents held: file, line, documents).
    """
    index = NgramIndex.load(index_folder(work))
    documents = np.zeros(len(index.names), np.int64)
    found = np.zeros(len(index.sizes), np.int64)
    for note in notes:
        for name, places in note["items"].items():
            number = index.names.index(name)
            documents[number] += 1
            found[index.first_items[number] + np.array(places)] += 1
    rows = []
    for number, facts in enumerate(index.facts["sets"]):
        of_set = index.first_items[number] + np.arange(facts["items"])
        most = [int(item) for item in of_set[np.argsort(-found[of_set], kind="stable")][:MOST] if found[item]]
        rows.append(
            {"set": facts["name"], "items": facts["items"], "too_short": facts["too_short"]}
            | {"touched": int(np.count_nonzero(found[of_set])), "documents": int(documents[number])}
            | {"most": [_place(index, item) | {"documents": int(found[item])} for item in most]}
        )
    return rows


def _place(index: NgramIndex, item: int) -> dict[str, Any]:
    file, line = index.places[item].tolist()
    return {"file": index.facts["files"][file], "line": line}
