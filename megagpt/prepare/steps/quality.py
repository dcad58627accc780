"""Documents that do not read like reference text are dropped."""

from __future__ import annotations

from datatrove.data import Document

from megagpt.config.prepare import QualityConfig
from megagpt.data.split import share
from megagpt.prepare.classifier import load_classifier


class Quality:
    """Puts `quality` (0 to 1) into the scores of documents of the chosen kinds; reason: `low_quality`."""

    name = "quality"

    def __init__(self, config: QualityConfig) -> None:
        self.config, self.kinds = config, frozenset(config.kinds)
        self.classifier = load_classifier(config.classifier, "quality")

    def __call__(self, document: Document) -> str | None:
        if document.metadata["kind"] not in self.kinds:
            return None
        score = self.classifier.score(document.text)
        document.metadata["scores"]["quality"] = score
        return None if self._keeps(score, document.id) else "low_quality"

    def _keeps(self, score: float, id: str) -> bool:
        if self.config.keep == "threshold":
            return score >= self.config.threshold
        return lomax(share(f"quality {self.config.seed} {id}"), self.config.alpha) > 1 - score


def lomax(uniform: float, alpha: float) -> float:
    """A draw from what `numpy.random.pareto` draws from, P(X > x) = (1 + x)^-alpha, out of a uniform one in [0, 1)."""
    return (1 - uniform) ** (-1 / alpha) - 1
