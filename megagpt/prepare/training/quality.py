"""`megagpt data train-quality`: reference text against raw crawl."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from megagpt.config.prepare import TrainQualityConfig
from megagpt.data.errors import DataError
from megagpt.data.records import Document
from megagpt.data.split import held_out_keys, share
from megagpt.prepare.classifier import cut, save_classifier
from megagpt.prepare.ngrams import Ngrams
from megagpt.prepare.training.fit import Fitted, features_of, fit, progress, to_classifier
from megagpt.prepare.training.measure import separation
from megagpt.prepare.training.texts import Read, host, read_sources
from megagpt.runtime import atomic

REPORT = "report.json"
RAW, REFERENCE = 0, 1
CLASSES = ("raw crawl", "reference")
EXCERPT = 400


@dataclass(frozen=True)
class Windows:
    """All windows of all documents, and the documents' facts; D documents, W windows."""

    documents: list[Document]
    sources: np.ndarray
    """[D] names."""
    labels: np.ndarray
    """[D] of RAW and REFERENCE."""
    held_out: np.ndarray
    """[D] of bool."""
    owner: np.ndarray
    """[W] places of documents."""
    texts: list[str]
    """[W]."""
    features: csr_matrix
    """[W, num_features]."""

    def fit(self, documents: np.ndarray, config: TrainQualityConfig) -> Fitted:
        """On windows of these documents ([D] of bool). In the calibration documents count alike, whatever their length; in training by the root of
        their windows: a book says more than a page, but not so much more as it is longer."""
        inside = documents[self.owner]
        owner = self.owner[inside]
        keys = np.array([share(f"calibration {document.id}") for document in self.documents])[owner]
        count = np.bincount(self.owner)[owner].astype(np.float64)
        return fit(self.features[inside], self.labels[owner], keys, config, count**-0.5, 1 / count)

    def scores(self, fitted: Fitted) -> np.ndarray:
        """[D], means over windows."""
        return np.bincount(self.owner, fitted.probabilities(self.features)) / np.bincount(self.owner)


def train_quality(config: TrainQualityConfig, folder: Path) -> dict[str, Any]:
    """Train, measure on held-out documents, and write classifier and report.json. The same files give the same bytes.

    All windows of a document are on one side of the split. What the figures cannot show: pages of one site share their menus and stand on both sides,
    which flatters a crawl of few sites (the report counts them); and each source differs from the others in topic as well as in quality, which is why
    the report says how well a source is judged that the classifier has never seen.

    Returns:
        The content of report.json.

    Raises:
        DataError: a source without a usable document, or one document only in a class.
    """
    read = Read()
    print("[train-quality] reading", flush=True)
    found = read_sources([*config.reference, *config.raw], read)
    for line in read.problems:
        print(f"[train-quality] given up: {line}", flush=True)
    windows = _windows(found, config)
    print(f"[train-quality] {len(windows.texts):,} windows of {len(windows.documents):,} documents; training", flush=True)
    fitted = windows.fit(~windows.held_out, config)
    scores = windows.scores(fitted)
    report = {
        "purpose": "quality", "classes": CLASSES, "prior": config.prior,
        "held_out": separation(windows.labels[windows.held_out], scores[windows.held_out], config.prior),
        "sources": _sources(windows, scores, config),
        "length_alone": _auc_of_length(windows),
        "failures": [_failures(windows, fitted, scores, label, config.num_failures) for label in (RAW, REFERENCE)],
        "left_out": dict(sorted(read.left_out.items())), "problems": read.problems,
    }  # fmt: skip
    facts = {
        "sources": {name: {"label": CLASSES[_label(name, config)], "documents": len(documents)} for name, documents in found.items()},
        "files": dict(sorted(read.files.items())), "held_out_roc_auc": report["held_out"]["roc_auc"],
        "inverse_regularisation": config.inverse_regularisation, "prior": config.prior,
    }  # fmt: skip
    save_classifier(to_classifier(fitted, "quality", Ngrams(config.ngrams), config, facts), folder)
    atomic.write_json(folder / REPORT, atomic.without_nan(report))
    return report


def _label(source: str, config: TrainQualityConfig) -> int:
    return REFERENCE if source in {one.name for one in config.reference} else RAW


def _windows(found: dict[str, list[Document]], config: TrainQualityConfig) -> Windows:
    documents = [document for source in found.values() for document in source]
    sources = np.array([name for name, source in found.items() for _ in source])
    labels = np.array([_label(name, config) for name in sources])
    held_out = np.zeros(len(documents), bool)
    for name, source in found.items():
        if len(source) > 1:
            keys = held_out_keys((document.id for document in source), 1 / config.folds, "classifier")
            held_out[sources == name] = [document.id in keys for document in source]
    for label in (RAW, REFERENCE):
        if not (held_out & (labels == label)).any():
            names = ", ".join(dict.fromkeys(sources[labels == label]))
            raise DataError(names, f"{CLASSES[label]}: each source is one document, and none can be held out; give one of them several")
    parts = [cut(document.text, config.windows, config.max_windows_per_document) for document in documents]
    texts = [text for part in parts for text in part]
    owner = np.repeat(np.arange(len(documents)), [len(part) for part in parts])
    return Windows(documents, sources, labels, held_out, owner, texts, features_of(Ngrams(config.ngrams), texts, "train-quality"))


def _sources(windows: Windows, scores: np.ndarray, config: TrainQualityConfig) -> dict[str, Any]:
    """For each source: AUC of its held-out documents against those of the other class, and the same for a classifier that never saw the source."""
    figures = {}
    for name in progress(list(dict.fromkeys(windows.sources.tolist())), "train-quality: each source unseen", "sources"):
        inside = windows.sources == name
        label = int(windows.labels[inside][0])
        others = windows.held_out & (windows.labels != label)
        hosts = {host(document) for document, one in zip(windows.documents, inside) if one}
        figures[name] = {
            "label": CLASSES[label], "documents": int(inside.sum()), "held_out": int((inside & windows.held_out).sum()),
            "windows": int(inside[windows.owner].sum()), "sites": len(hosts) if hosts != {""} else None,
            "mean_score": _mean(scores[inside & windows.held_out]), "roc_auc": _auc(scores, label, inside & windows.held_out, others),
            "unseen_roc_auc": _unseen(windows, inside, label, others, config),
        }  # fmt: skip
    return figures


def _unseen(windows: Windows, inside: np.ndarray, label: int, others: np.ndarray, config: TrainQualityConfig) -> float | None:
    training = ~windows.held_out & ~inside
    if not (training & (windows.labels == label)).any():
        return None
    return _auc(windows.scores(windows.fit(training, config)), label, inside, others)


def _auc(scores: np.ndarray, label: int, inside: np.ndarray, others: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    if not inside.any():
        return None
    labels = np.concatenate([np.full(inside.sum(), label), np.full(others.sum(), 1 - label)])
    return round(float(roc_auc_score(labels, np.concatenate([scores[inside], scores[others]]))), 6)


def _auc_of_length(windows: Windows) -> float:
    """What the length of a document alone tells, either way round: a floor."""
    lengths = np.array([len(document.text) for document in windows.documents], np.float64)
    held_out = windows.held_out
    auc = _auc(lengths, REFERENCE, held_out & (windows.labels == REFERENCE), held_out & (windows.labels == RAW))
    return round(max(auc, 1 - auc), 6)


def _failures(windows: Windows, fitted: Fitted, scores: np.ndarray, label: int, most: int) -> list[dict[str, Any]]:
    """Held-out documents of a class on the wrong side, the most certain errors first, with the part that was scored worst."""
    wrongness = scores if label == RAW else 1 - scores
    candidates = np.flatnonzero(windows.held_out & (windows.labels == label) & (wrongness > 0.5))
    worst = candidates[np.argsort(-wrongness[candidates], kind="stable")][:most]
    probabilities = fitted.probabilities(windows.features)
    found = []
    for place in worst:
        own = np.flatnonzero(windows.owner == place)
        sign = 1 if label == RAW else -1
        text, score = windows.texts[own[np.argmax(sign * probabilities[own])]], round(float(scores[place]), 4)
        found.append({"source": str(windows.sources[place]), "id": windows.documents[place].id, "score": score, "excerpt": text[:EXCERPT]})
    return found


def _mean(values: np.ndarray) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
