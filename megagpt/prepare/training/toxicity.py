"""`megagpt data train-toxicity`: a classifier from labelled texts, and whom it is unfair to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from megagpt.config.prepare import FairnessConfig, TrainToxicityConfig
from megagpt.data.split import share
from megagpt.prepare.classifier import save_classifier
from megagpt.prepare.ngrams import Ngrams, WordList
from megagpt.prepare.training import slices as slices_
from megagpt.prepare.training.fit import Fitted, features_of, fit, progress, to_classifier
from megagpt.prepare.training.measure import rate, separation, threshold_at
from megagpt.prepare.training.texts import Labelled, Read, read_labelled, read_word_list
from megagpt.runtime import atomic

REPORT = "report.json"
CLASSES = ("not toxic", "toxic")
AS_LABELLED, MITIGATED = "labels as they are", "mitigated"
EXCERPT = 280
THRESHOLDS = (0.5, 0.8, 0.9)
"""For the report; the last two are those of the step, unless it is told others."""
MAX_WINDOWS = 10
"""A labelled text is learned from as a whole, up to so many windows."""


@dataclass(frozen=True)
class Texts:
    """[T] texts with labels, parts and slices."""

    texts: list[str]
    names: np.ndarray
    """[T] labels as the rows have them."""
    labels: np.ndarray
    """[T] of 0 and 1."""
    folds: np.ndarray
    """[T] of 0 … folds - 1; copies of a text are in one fold. Fold 0 is held out."""
    keys: np.ndarray
    """[T], for the choice of those that calibrate."""
    slices: dict[str, np.ndarray]
    """Name -> [T] of bool."""

    @property
    def held_out(self) -> np.ndarray:
        return self.folds == 0


@dataclass(frozen=True)
class Variant:
    """One way of training, its result, and what it says of texts that it did not learn from."""

    ngrams: Ngrams
    fitted: Fitted
    """On all folds but 0."""
    probabilities: np.ndarray
    """[T], each from a classifier that did not learn from the text's fold."""


def train_toxicity(config: TrainToxicityConfig, folder: Path) -> dict[str, Any]:
    """Train, measure on held-out texts and by slice, and write classifier and report.json. The same files give the same bytes.

    False positives of slices are counted over all folds, each text judged by a classifier that did not learn from its fold: one fold alone has too
    few harmless texts of a slice. They are measured against the labels, whose own bias they therefore cannot show; the scores of sentences that are
    harmless whoever speaks and is spoken of do not depend on labels.

    Returns:
        The content of report.json.

    Raises:
        DataError: a malformed row, or a class without texts.
    """
    read = Read()
    rows = read_labelled(config, read)
    lists = {one.name: WordList.of(read_word_list(one)) for one in config.word_lists}
    texts = _texts(rows, config)
    print(f"[train-toxicity] {len(rows):,} texts, {int(texts.labels.sum()):,} of them toxic; training", flush=True)
    plain = _train(texts, lists, None, config)
    variants = {AS_LABELLED: plain}
    if config.fairness is not None:
        variants[MITIGATED] = _train(texts, lists, config.fairness, config)
    shipped = list(variants)[-1]
    final = variants[shipped]
    measured = {name: _measure(texts, variant, config) for name, variant in variants.items()}
    labels = dict(sorted(Counter(texts.names.tolist()).items()))
    report = {
        "purpose": "toxicity", "classes": CLASSES, "prior": config.prior, "labels": labels, "report_rate": config.report_rate,
        "word_lists": {name: len(one.hashes) for name, one in lists.items()}, "shipped": shipped, "held_out": measured[shipped]["held_out"],
        "variants": measured, "failures": [_failures(texts, final, label, config.num_failures) for label in (0, 1)],
        "left_out": dict(sorted(read.left_out.items())),
    }  # fmt: skip
    facts = {
        "files": dict(sorted(read.files.items())), "texts": len(rows), "labels": labels, "toxic": config.toxic, "not_toxic": config.not_toxic,
        "held_out_roc_auc": report["held_out"]["roc_auc"], "fairness": config.fairness.model_dump() if config.fairness else None,
        "inverse_regularisation": config.inverse_regularisation, "prior": config.prior,
    }  # fmt: skip
    save_classifier(to_classifier(final.fitted, "toxicity", final.ngrams, config, facts), folder)
    atomic.write_json(folder / REPORT, atomic.without_nan(report))
    return report


def _texts(rows: list[Labelled], config: TrainToxicityConfig) -> Texts:
    texts = [row.text[: MAX_WINDOWS * config.windows.characters] for row in rows]
    return Texts(
        texts=texts,
        names=np.array([row.label for row in rows]),
        labels=np.array([int(row.label in config.toxic) for row in rows]),
        folds=np.array([int(share(f"fold {row.key}") * config.folds) for row in rows]),
        keys=np.array([share(f"calibration {row.key}") for row in rows]),
        slices=slices_.slices_of(texts),
    )


def _train(texts: Texts, lists: dict[str, WordList], fairness: FairnessConfig | None, config: TrainToxicityConfig) -> Variant:
    ngrams = Ngrams(config.ngrams, slices_.IGNORED if fairness and fairness.ignore_identity_terms else (), lists)
    features = features_of(ngrams, texts.texts, "train-toxicity")
    probabilities, fitted = np.zeros(len(texts.texts)), {}
    for fold in progress(range(config.folds), f"train-toxicity: {MITIGATED if fairness else AS_LABELLED}", "folds"):
        fitted[fold] = _fit(texts, features, texts.folds != fold, fairness, config)
        probabilities[texts.folds == fold] = fitted[fold].probabilities(features[texts.folds == fold])
    return Variant(ngrams, fitted[0], probabilities)


def _fit(texts: Texts, features: csr_matrix, inside: np.ndarray, fairness: FairnessConfig | None, config: TrainToxicityConfig) -> Fitted:
    labels = texts.labels[inside]
    weights = np.ones(len(labels))
    if fairness is not None:
        weights = slices_.reweighing(slices_.strata_of(texts.slices)[inside], labels, fairness.reweigh)
    return fit(features[inside], labels, texts.keys[inside], config, weights, np.ones(len(labels)))


def _measure(texts: Texts, variant: Variant, config: TrainToxicityConfig) -> dict[str, Any]:
    held_out, labels, probabilities = texts.held_out, texts.labels, variant.probabilities
    threshold = threshold_at(probabilities[labels == 0], config.report_rate)
    flagged = probabilities > threshold
    by_slice = {
        name: {
            "texts": int(inside.sum()), "labelled_toxic": round(float(labels[inside].mean()), 6) if inside.any() else None,
            "false_positives": rate(flagged[inside & (labels == 0)]), "true_positives": rate(flagged[inside & (labels == 1)]),
        }
        for name, inside in {"all": np.ones(len(labels), bool), **texts.slices}.items()
    }  # fmt: skip
    known, other = (by_slice[name]["false_positives"]["value"] for name in (slices_.AAE, slices_.OTHER))
    return {
        "held_out": separation(labels[held_out], probabilities[held_out], config.prior),
        "by_label": {name: _auc_of_label(texts, probabilities, name) for name in config.toxic},
        "threshold": round(threshold, 6),
        "slices": by_slice,
        "dialect_gap": None if known is None or other is None else round(known - other, 6),
        "at_thresholds": [_at_threshold(texts, probabilities, threshold) for threshold in THRESHOLDS],
        "sentences": _sentences(variant),
    }


def _at_threshold(texts: Texts, probabilities: np.ndarray, threshold: float) -> dict[str, Any]:
    """Harmless texts of each dialect that are flagged where a score of `threshold` is enough."""
    flagged, harmless = probabilities >= threshold, texts.labels == 0
    return {"threshold": threshold, "rates": {name: rate(flagged[texts.slices[name] & harmless]) for name in (slices_.AAE, slices_.OTHER)}}


def _auc_of_label(texts: Texts, probabilities: np.ndarray, name: str) -> float | None:
    """Of one toxic label against all that is not toxic, held out."""
    from sklearn.metrics import roc_auc_score

    inside = texts.held_out & ((texts.labels == 0) | (texts.names == name))
    labels = texts.labels[inside]
    return round(float(roc_auc_score(labels, probabilities[inside])), 6) if 0 < labels.sum() < len(labels) else None


def _sentences(variant: Variant) -> dict[str, Any]:
    """Mean probability of harmless sentences: with each group named, and in two dialects."""

    def mean(sentences: list[str]) -> float:
        return round(float(variant.fitted.probabilities(features_of(variant.ngrams, sentences, "sentences")).mean()), 6)

    groups = {group: mean([sentence.format(person) for sentence in slices_.NEUTRAL_SENTENCES]) for group, person in slices_.PERSONS.items()}
    dialect, standard = (mean([pair[side] for pair in slices_.SAME_IN_BOTH]) for side in (0, 1))
    return {"groups": groups, "spread": round(max(groups.values()) - min(groups.values()), 6), "dialect": dialect, "standard": standard}


def _failures(texts: Texts, variant: Variant, label: int, most: int) -> list[dict[str, Any]]:
    """Held-out texts of a class on the wrong side, the most certain errors first."""
    wrongness = variant.probabilities if label == 0 else 1 - variant.probabilities
    candidates = np.flatnonzero(texts.held_out & (texts.labels == label) & (wrongness > 0.5))
    worst = candidates[np.argsort(-wrongness[candidates], kind="stable")][:most]
    return [
        {"source": str(texts.names[place]), "score": round(float(variant.probabilities[place]), 4), "excerpt": texts.texts[place][:EXCERPT]}
        for place in worst
    ]
