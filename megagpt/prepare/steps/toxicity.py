"""Toxic documents are dropped, or seen less often."""

from __future__ import annotations

from datatrove.data import Document

from megagpt.config.prepare import ToxicityConfig, ToxicityRule
from megagpt.prepare.classifier import DIGITS, load_classifier


class Toxicity:
    """Puts `toxicity` (mean of the windows) and `toxicity_max` (worst window), 0 to 1, into the scores; reason: `toxic`."""

    name = "toxicity"

    def __init__(self, config: ToxicityConfig) -> None:
        self.config = config
        self.classifier = load_classifier(config.classifier, "toxicity")

    def __call__(self, document: Document) -> str | None:
        windows = self.classifier.probabilities(document.text)
        mean, worst = round(float(windows.mean()), DIGITS), float(windows.max())
        document.metadata["scores"] |= {"toxicity": mean, "toxicity_max": worst}
        known = document.metadata
        rule = self.config.by_source.get(known["source"]) or self.config.by_kind.get(known["kind"], self.config.default)
        if rule.action == "score" or not is_toxic(rule, mean, worst):
            return None
        if rule.action == "drop":
            return "toxic"
        document.metadata["weight"] *= rule.weight
        return None


def is_toxic(rule: ToxicityRule, mean: float, worst: float) -> bool:
    """Either threshold that is set is reached."""
    return (rule.max_threshold is not None and worst >= rule.max_threshold) or (rule.mean_threshold is not None and mean >= rule.mean_threshold)
