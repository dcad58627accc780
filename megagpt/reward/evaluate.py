"""How well the reward model orders held-out answers, and how well two rules without a model do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from megagpt.data.ranking import EncodedGroup


def pair_accuracy(groups: Sequence[EncodedGroup], scores: Sequence[Sequence[float]]) -> float:
    """Share of pairs in the annotator's order; each prompt counts once, a draw counts half.

    Args:
        scores: for each group its K scores.
    """
    return float(np.mean([np.mean([_right(s[winner], s[loser]) for winner, loser in group.pairs]) for group, s in zip(groups, scores)]))


def longer_answer_accuracy(groups: Sequence[EncodedGroup]) -> float:
    """The floor of a rule that prefers the longer answer, in characters."""
    return pair_accuracy(groups, [[len(answer) for answer in group.answers] for group in groups])


def overlap_accuracy(groups: Sequence[EncodedGroup]) -> float:
    """The floor of a rule that prefers the answer whose words stand in the prompt most often (share of the answer's words)."""

    def overlap(group: EncodedGroup, answer: str) -> float:
        asked = set(_words(" ".join(message["content"] for message in group.record.prompt)))
        words = _words(answer)
        return sum(word in asked for word in words) / max(len(words), 1)

    return pair_accuracy(groups, [[overlap(group, answer) for answer in group.answers] for group in groups])


def _right(winner: float, loser: float) -> float:
    return 1.0 if winner > loser else 0.5 if winner == loser else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
