"""Rules of thumb of published corpora: Gopher, C4, FineWeb for prose, StarCoder for programs.

datatrove has the prose rules as filters; these here give the same verdicts, reasons and texts (tests/unit/prepare/test_prepare_heuristics.py holds
both against each other) in a quarter of the time, because the rules share what they look at and leave uncounted what cannot change a verdict.
"""

from __future__ import annotations

from typing import Any

from datatrove.data import Document

from megagpt.config.prepare import HeuristicsConfig, RuleSet
from megagpt.prepare.rules import c4, code, fineweb, gopher_quality, gopher_repetition
from megagpt.prepare.rules.broken import Broken
from megagpt.prepare.words import view


class Heuristics:
    """Reasons are the rules' own. Notes `heuristics` ({value, bound} of the rule that was broken) and `c4_lines` (reason -> lines taken out)."""

    name = "heuristics"

    def __init__(self, config: HeuristicsConfig) -> None:
        self.config = config

    def __call__(self, document: Document) -> str | None:
        notes = document.metadata["notes"]
        language = notes.get("language") or document.metadata.get("language", self.config.language)
        for rule_set in getattr(self.config, document.metadata["kind"]):
            broken = self._judge(document, rule_set, language)
            if broken is not None:
                notes["heuristics"] = {"value": broken.value, "bound": broken.bound}
                return broken.reason
        return None

    def _judge(self, document: Document, rule_set: RuleSet, language: str) -> Broken | None:
        scores, settings = document.metadata["scores"], self._settings(rule_set, language)
        if rule_set == "gopher_quality":
            return gopher_quality.judge(view(document.text), settings, language, scores)
        if rule_set == "gopher_repetition":
            return gopher_repetition.judge(view(document.text), settings, language, scores)
        if rule_set == "fineweb":
            return fineweb.judge(view(document.text), settings, scores)
        if rule_set == "code":
            return code.judge(document.text, settings, scores)
        left = c4.keep_lines(view(document.text), settings, language)
        if isinstance(left, Broken):
            return left
        document.text = left.text
        if left.removed:
            document.metadata["notes"]["c4_lines"] = left.removed
        return None

    def _settings(self, rule_set: RuleSet, language: str) -> Any:
        if rule_set == "code":
            return self.config.code_rules
        of_language = self.config.by_language.get(language)
        return of_language and getattr(of_language, rule_set) or getattr(self.config, rule_set)
