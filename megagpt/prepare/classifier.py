"""A linear classifier of texts: what it scores, and how it lies on disk.

A folder holds `classifier.json` (what it is for, its features, windows and calibration, facts of its training) and `classifier.safetensors` (weights,
hashes of word lists). Training it is `megagpt/prepare/training/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from megagpt.config.prepare import NgramsConfig, WindowsConfig
from megagpt.prepare.errors import PrepareError
from megagpt.prepare.ngrams import Ngrams, WordList
from megagpt.runtime import atomic

FORMAT = 1
FACTS, WEIGHTS = "classifier.json", "classifier.safetensors"
MAX_FACTS_BYTES, MAX_WEIGHTS_BYTES = 4 << 20, 1 << 28
DIGITS = 6
"""Scores are rounded: sums in another order, on another processor, differ far behind that."""


class ClassifierError(PrepareError):
    """A classifier that cannot be used: file, and what is wrong with it."""

    exit_code = 2


@dataclass(frozen=True)
class Classifier:
    purpose: str
    """`quality` or `toxicity`."""
    ngrams: Ngrams
    windows: WindowsConfig
    weights: np.ndarray
    """[num_features] of float32."""
    intercept: float
    scale: float
    offset: float
    """A window's probability is sigmoid(scale x logit + offset) (Platt 1999)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on, and how well it did."""

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """[texts] of float64, each text taken whole."""
        found = self.ngrams.features(texts)
        return np.bincount(found.rows, self.weights[found.numbers] * found.values, minlength=found.num_texts) + self.intercept

    def probabilities(self, text: str) -> np.ndarray:
        """[windows] of float64."""
        return sigmoid(self.scale * self.logits(cut(text, self.windows)) + self.offset).round(DIGITS)

    def score(self, text: str) -> float:
        """Mean probability of its windows."""
        return round(float(self.probabilities(text).mean()), DIGITS)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x)))


def cut(text: str, windows: WindowsConfig, most: int | None = None) -> list[str]:
    """At most `most` (default: that of `windows`) parts of a text. A short text is cut into as many equal parts as are needed for all of it; of a long one
    the first, the last and what lies between in equal steps."""
    most, length = most or windows.most, windows.characters
    needed = -(-len(text) // length)
    if needed <= 1:
        return [text]
    if needed <= most:
        edges = [len(text) * number // needed for number in range(needed + 1)]
        return [text[begin:end] for begin, end in zip(edges, edges[1:])]
    steps = max(most - 1, 1)
    return [text[begin : begin + length] for begin in ((len(text) - length) * number // steps for number in range(most))]


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write both files, the weights first; each is whole or absent."""
    tensors = {"weights": classifier.weights.astype(np.float32)}
    tensors |= {f"list.{name}": one.hashes.view(np.int64) for name, one in classifier.ngrams.lists.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    atomic.write_bytes(folder / WEIGHTS, save(tensors))
    facts = {
        "format": FORMAT, "purpose": classifier.purpose, "ngrams": classifier.ngrams.config.model_dump(), "windows": classifier.windows.model_dump(),
        "ignored": list(classifier.ngrams.ignored), "lists": list(classifier.ngrams.lists), "intercept": classifier.intercept,
        "scale": classifier.scale, "offset": classifier.offset, "weights_sha256": atomic.sha256_file(folder / WEIGHTS), "facts": dict(classifier.facts),
    }  # fmt: skip
    atomic.write_json(folder / FACTS, facts)


def load_classifier(folder: str | Path, purpose: str) -> Classifier:
    """Read a classifier for a purpose.

    Raises:
        ClassifierError: a file that is missing, too large, damaged or of another format; weights that do not fit the features; another purpose.
    """
    path = Path(folder) / FACTS
    try:
        known = json.loads(_read(path, MAX_FACTS_BYTES, purpose))
        if not isinstance(known, dict) or known.get("format") != FORMAT:
            raise ClassifierError(f"{path}: format {known.get('format') if isinstance(known, dict) else None!r}, this version reads {FORMAT}")
        if known["purpose"] != purpose:
            raise ClassifierError(f"{path}: a classifier of {known['purpose']}, not of {purpose}; `megagpt data train-{purpose}` makes one")
        names = [str(name) for name in known["lists"]]
        config, windows = (kind.model_validate_json(json.dumps(known[key])) for kind, key in ((NgramsConfig, "ngrams"), (WindowsConfig, "windows")))
        numbers = [float(known[name]) for name in ("intercept", "scale", "offset")]
        ignored, facts, digest = tuple(map(str, known["ignored"])), dict(known["facts"]), known["weights_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        wrong = f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise ClassifierError(f"{path}: damaged ({wrong})") from error
    tensors = _tensors(path.with_name(WEIGHTS), digest, purpose)
    if missing := [name for name in ("weights", *(f"list.{name}" for name in names)) if name not in tensors]:
        raise ClassifierError(f"{path.with_name(WEIGHTS)}: tensor {missing[0]!r} is missing")
    ngrams = Ngrams(config, ignored, {name: WordList(np.sort(tensors[f"list.{name}"].view(np.uint64))) for name in names})
    weights = tensors["weights"]
    if weights.shape != (ngrams.num_features,) or weights.dtype != np.float32:
        raise ClassifierError(f"{path.with_name(WEIGHTS)}: weights are {weights.dtype} {list(weights.shape)}, the features need float32 [{ngrams.num_features}]")
    if not (np.isfinite(weights).all() and np.isfinite(numbers).all()):
        raise ClassifierError(f"{path.with_name(WEIGHTS)}: not all weights are finite")
    return Classifier(purpose, ngrams, windows, weights, *numbers, facts)


def _tensors(path: Path, digest: str, purpose: str) -> dict[str, np.ndarray]:
    content = _read(path, MAX_WEIGHTS_BYTES, purpose)
    if atomic.sha256_file(path) != digest:
        raise ClassifierError(f"{path}: not the file that {FACTS} was written with (SHA-256)")
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise ClassifierError(f"{path}: damaged ({error})") from error


def _read(path: Path, limit: int, purpose: str) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise ClassifierError(f"{path}: more than {limit >> 20} MiB; no classifier of megagpt")
        return path.read_bytes()
    except OSError as error:
        raise ClassifierError(f"{path}: {error.strerror}; `megagpt data train-{purpose}` writes it") from error
