"""How well a classifier tells two classes apart, as numbers that JSON has."""

from __future__ import annotations

from typing import Any

import numpy as np

CURVE_POINTS, BINS, CALIBRATION_BINS = 200, 40, 10
Z = 1.96
"""Intervals cover 95 %."""


def separation(labels: np.ndarray, probabilities: np.ndarray, prior: float) -> dict[str, Any]:
    """ROC-AUC, average precision for each class, the ROC curve, calibration and a histogram, or None where one class is missing.

    Args:
        labels: [texts] of 0 and 1.
        probabilities: [texts] of class 1.
        prior: share of class 1 that probabilities are calibrated for.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    false_positive, true_positive, _ = roc_curve(labels, probabilities)
    keep = np.unique(np.linspace(0, len(false_positive) - 1, CURVE_POINTS).astype(int))
    edges = np.linspace(0, 1, BINS + 1)
    return {
        "texts": [int((labels == label).sum()) for label in (0, 1)],
        "roc_auc": _round(roc_auc_score(labels, probabilities)),
        "average_precision": [_round(average_precision_score(1 - labels, 1 - probabilities)), _round(average_precision_score(labels, probabilities))],
        "roc": {"false_positive": _list(false_positive[keep]), "true_positive": _list(true_positive[keep])},
        "calibration": calibration(labels, probabilities, prior),
        "histogram": {"edges": _list(edges), "counts": [np.histogram(probabilities[labels == label], edges)[0].tolist() for label in (0, 1)]},
    }


def calibration(labels: np.ndarray, probabilities: np.ndarray, prior: float) -> dict[str, Any]:
    """Expected calibration error over equal bins (Guo et al. 2017), texts weighted so that class 1 has the share `prior`."""
    shares = np.array([1 - prior, prior]) / np.maximum([(labels == 0).sum(), (labels == 1).sum()], 1)
    weights = shares[labels] / shares[labels].sum()
    place = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for number in range(CALIBRATION_BINS):
        inside = place == number
        share = float(weights[inside].sum())
        if share:
            said, true = (float((weights * values)[inside].sum() / share) for values in (probabilities, labels))
            error += share * abs(said - true)
            bins.append({"said": _round(said), "true": _round(true), "share": _round(share)})
    return {"error": _round(error), "bins": bins}


def rate(flags: np.ndarray) -> dict[str, Any]:
    """Share of true ones with its 95 % interval (Wilson 1927); None without any."""
    n, k = len(flags), int(np.sum(flags))
    if not n:
        return {"texts": 0, "value": None, "interval": None}
    centre, half = (k + Z**2 / 2) / (n + Z**2), Z / (n + Z**2) * np.sqrt(k * (n - k) / n + Z**2 / 4)
    return {"texts": n, "value": _round(k / n), "interval": [_round(max(centre - half, 0)), _round(min(centre + half, 1))]}


def threshold_at(scores: np.ndarray, share: float) -> float:
    """The score that `share` of the scores are above."""
    return float(np.quantile(scores, 1 - share, method="higher"))


def _round(value: float) -> float:
    return round(float(value), 6)


def _list(values: np.ndarray) -> list[float]:
    return [_round(value) for value in values]
