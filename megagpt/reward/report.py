"""What held-out rankings say about a reward model: one plain object, written as `evaluation.json` in the stage's folder.

Every ranking weighs the same, whatever it weighed in training, and its pairs share that weight. Lengths are in characters.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.ranking import EncodedGroup
from megagpt.data.records import Ranking
from megagpt.data.split import prompt_key
from megagpt.runtime import atomic

FILE = "evaluation.json"
NORMAL_QUANTILE = 1.959964
"""Of a two-sided 95 % interval."""
MIN_PROMPTS = 30
"""From here on a variance between prompts is estimated rather than bounded."""
CONFIDENCE_BINS, LENGTH_BINS = 10, 6


def evaluation_report(groups: Sequence[EncodedGroup], scores: Sequence[Sequence[float]], judgements: Sequence[Ranking] = ()) -> dict[str, Any]:
    """Everything below about held-out groups.

    Args:
        scores: for each group its K scores.
        judgements: all that annotators said about held-out prompts, also where all answers are tied.
    """
    slices = np.array([group.record.slice for group in groups])
    pairs = Pairs(groups, scores)
    return {
        "pair_accuracy": pairs.accuracy(),
        "kendall_tau_b": mean_tau_b(groups, scores),
        "calibration": calibration(pairs.difference, pairs.weight),
        "length": length_report(groups, scores, pairs),
        "agreement": annotator_agreement(judgements),
        "slices": {str(name): pairs.accuracy(slices[pairs.group] == name) for name in np.unique(slices)},
    }


def write_evaluation(folder: Path, report: dict[str, Any]) -> None:
    """`<folder>/evaluation.json`, whole or not at all."""
    atomic.write_json(folder / FILE, report)


def clear_evaluation(folder: Path) -> None:
    """Take away what an earlier run left."""
    (folder / FILE).unlink(missing_ok=True)


def summary(report: dict[str, Any]) -> str:
    """The report's main figures in one line."""
    accuracy, tau, length = report["pair_accuracy"], report["kendall_tau_b"], report["length"]
    parts = [f"held-out pair accuracy {show_rate(accuracy)} over {accuracy['prompts']} prompts", f"ECE {report['calibration']['ece']:.3f}"]
    parts += [f"Kendall tau-b {tau['value']:.3f} over {tau['rankings']} rankings of 3 or more"] if tau else []
    if length["score_correlation"] is not None:
        parts.append(f"correlation of score and length {length['score_correlation']:+.2f}")
    return ", ".join(parts)


def show_rate(rate: dict[str, Any]) -> str:
    return "{:.3f} (95 % interval {:.3f} to {:.3f})".format(rate["value"], *rate["interval"])


# ---------------------------------------------------------------- accuracy


class Pairs:
    """All pairs of some groups as arrays, [pairs]."""

    def __init__(self, groups: Sequence[EncodedGroup], scores: Sequence[Sequence[float]]) -> None:
        number = {key: i for i, key in enumerate(dict.fromkeys(prompt_key(group.record.prompt) for group in groups))}
        rows = [
            (i, number[prompt_key(group.record.prompt)], own[winner] - own[loser], len(answers[winner]) - len(answers[loser]), 1 / len(group.pairs))
            for i, (group, own) in enumerate(zip(groups, scores, strict=True))
            for answers in [group.answers]
            for winner, loser in group.pairs
        ]
        self.group, self.prompt = (np.array(column, dtype=np.int64) for column in list(zip(*rows))[:2])
        self.difference, self.longer, self.weight = (np.array(column, dtype=float) for column in list(zip(*rows))[2:])
        """Score of the winner less that of the loser; its length less that of the loser; 1 / pairs of the group."""

    def accuracy(self, chosen: np.ndarray | None = None) -> dict[str, Any] | None:
        """Share of the chosen pairs (default: all) in the annotators' order, a draw counting half; None where none is chosen.

        The interval is Wilson's (1927), over as many independent trials as the prompts are worth (`effective_trials`): pairs of a ranking
        share answers and rankings of a prompt share the question, so pairs are no independent trials. Unlike a bootstrap over prompts it
        does not shrink to a point where a small slice has all its pairs right.
        """
        chosen = np.ones(len(self.weight), dtype=bool) if chosen is None else chosen
        weight, prompt = self.weight[chosen], self.prompt[chosen]
        if not len(weight):
            return None
        right = (np.sign(self.difference[chosen]) + 1) / 2
        share = float(np.average(right, weights=weight))
        return {
            "value": share, "interval": list(wilson_interval(share, effective_trials(right, weight, prompt))),
            "prompts": len(np.unique(prompt)), "rankings": len(np.unique(self.group[chosen])), "pairs": len(weight),
        }  # fmt: skip


def effective_trials(right: np.ndarray, weight: np.ndarray, prompt: np.ndarray) -> float:
    """How many independent trials would give the weighted mean of `right` the variance that it has, prompts being independent.

    These are p (1 - p) / V, V being the variance between prompts (Korn and Graubard 1998). Below MIN_PROMPTS prompts V is a guess, and a
    bound takes its place: a prompt's mean lies in [0, 1], so it varies no more than a coin of the same mean, and prompts of unequal
    weights W are worth (sum W)^2 / sum W^2 equal ones (Kish 1965).

    Args:
        right, weight: [pairs], `right` in [0, 1].
        prompt: [pairs] number of the prompt.
    """
    share, total, of_prompt = np.average(right, weights=weight), weight.sum(), np.bincount(prompt, weight)
    at_least, num_prompts = total**2 / np.square(of_prompt).sum(), np.count_nonzero(of_prompt)
    variance = np.square(np.bincount(prompt, weight * (right - share))).sum() / total**2 * num_prompts / max(num_prompts - 1, 1)
    return float(max(at_least, share * (1 - share) / variance) if num_prompts >= MIN_PROMPTS and variance > 0 else at_least)


def wilson_interval(share: float, trials: float) -> tuple[float, float]:
    """95 % interval of a probability after `trials` trials of which this share succeeded (Wilson 1927)."""
    spread = NORMAL_QUANTILE**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


# ---------------------------------------------------------------- order of K answers


def kendall_tau_b(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two orders: (concordant - discordant) / sqrt(pairs untied in the first x pairs untied in the second) (Kendall 1945).

    0 where all values of one of them are equal: such an order agrees with none.
    """
    signs = np.array([[np.sign(a - b), np.sign(c - d)] for (a, c), (b, d) in itertools.combinations(zip(first, second, strict=True), 2)])
    untied = np.square(signs).sum(axis=0).prod()
    return float(signs.prod(axis=1).sum() / math.sqrt(untied)) if untied else 0.0


def mean_tau_b(groups: Sequence[EncodedGroup], scores: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Mean over rankings of three and more answers, and by their number; None without any. For two answers tau is the accuracy again, and a
    partial order does not say which answers are tied."""
    by_size = defaultdict(list)
    for group, own in zip(groups, scores, strict=True):
        if len(own) > 2 and group.levels:
            by_size[len(own)].append(kendall_tau_b(own, [-level for level in group.levels]))
    if not by_size:
        return None
    together = list(itertools.chain(*by_size.values()))
    sizes = {str(size): {"value": float(np.mean(taus)), "rankings": len(taus)} for size, taus in sorted(by_size.items())}
    return {"value": float(np.mean(together)), "rankings": len(together), "by_number_of_answers": sizes}


# ---------------------------------------------------------------- calibration


def calibration(difference: np.ndarray, weight: np.ndarray, num_bins: int = CONFIDENCE_BINS) -> dict[str, Any]:
    """How often annotators agree with the model where it is sure by so much.

    The model's choice is the answer with the higher score, its confidence sigma(|difference|) is in [0.5, 1]. ECE is the mean distance of
    confidence and agreement over equal bins of confidence (Guo et al. 2017, eq. 5, for the 2 answers of a pair).

    Args:
        difference: [pairs] score of the annotators' choice less that of the other answer.
        weight: [pairs].
    """
    confidence, right = 1 / (1 + np.exp(-np.abs(difference))), (np.sign(difference) + 1) / 2
    bin_of = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    bins = []
    for number in range(num_bins):
        chosen = bin_of == number
        bounds = {"from": 0.5 + number / num_bins / 2, "to": 0.5 + (number + 1) / num_bins / 2, "pairs": int(chosen.sum())}
        means = {"confidence": float(np.average(confidence[chosen], weights=weight[chosen])),
                 "agreement": float(np.average(right[chosen], weights=weight[chosen])),
                 "share": float(weight[chosen].sum() / weight.sum())} if chosen.any() else {"confidence": None, "agreement": None, "share": 0.0}  # fmt: skip
        bins.append(bounds | means)
    return {"ece": sum(one["share"] * abs(one["agreement"] - one["confidence"]) for one in bins if one["pairs"]), "bins": bins}


# ---------------------------------------------------------------- length


def length_report(groups: Sequence[EncodedGroup], scores: Sequence[Sequence[float]], pairs: Pairs, num_bins: int = LENGTH_BINS) -> dict[str, Any]:
    """Does the model go by length? Accuracy by how much longer the better answer is, in bins of about as many pairs each."""
    edges = np.unique(np.quantile(pairs.longer, np.linspace(0, 1, num_bins + 1)))
    bin_of = np.clip(np.searchsorted(edges, pairs.longer, side="right") - 1, 0, max(len(edges) - 2, 0))
    uneven = pairs.longer != 0
    longer_wins = None
    if uneven.any():
        weight, humans, model = pairs.weight[uneven], np.sign(pairs.longer[uneven]), np.sign(pairs.difference[uneven] * pairs.longer[uneven])
        longer_wins = {name: float(np.average((signs + 1) / 2, weights=weight)) for name, signs in (("annotators", humans), ("model", model))}
    return {
        "longer_wins": longer_wins,
        "score_correlation": within_correlation(scores, [[len(answer) for answer in group.answers] for group in groups]),
        "better_is_longer": pairs.accuracy(pairs.longer > 0),
        "better_is_shorter": pairs.accuracy(pairs.longer < 0),
        "bins": [
            {"from": float(edges[number]), "to": float(edges[min(number + 1, len(edges) - 1)]), **pairs.accuracy(bin_of == number)}
            for number in np.unique(bin_of)
        ],
    }


def within_correlation(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float | None:
    """Pearson's correlation within groups: each value less the mean of its group, since scores of different prompts do not compare."""
    x, y = (np.concatenate([np.asarray(group, dtype=float) - np.mean(group) for group in values]) for values in (first, second))
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else None


# ---------------------------------------------------------------- annotators


def annotator_agreement(judgements: Sequence[Ranking]) -> dict[str, Any] | None:
    """How far annotators agree who judged the same answers to the same prompt: each pair of answers is first better, tied, or second better.

    `agreement` is the mean share of two annotators who say the same; `kappa` is Fleiss' (1971), what of it is above chance. Which
    answer of a pair is called the first says nothing, so both orders count, and chance does not depend on it. Of an annotator who judged
    the same answers twice the last word counts. Partial orders do not say which pairs were called ties, so they are left out. None where no
    two annotators (of different `annotator`) judged a pair.
    """
    opinions: dict[Hashable, dict[str, Ranking]] = defaultdict(dict)
    for record in judgements:
        if record.annotator and record.ranks:
            question = tuple((message["role"], message["content"]) for message in record.prompt)
            opinions[question, frozenset(record.answers)][record.annotator] = record
    counts, people = [], set()
    for by_annotator in opinions.values():
        ranks = [dict(zip(record.answers, record.ranks)) for record in by_annotator.values()]
        for one, other in itertools.combinations(sorted(ranks[0]), 2):
            marks = [np.sign(own[one] - own[other]) for own in ranks if own[one] is not None and own[other] is not None]
            if len(marks) > 1:
                counts.append([sum(mark == value for mark in marks) for value in (-1, 0, 1)])
                people |= by_annotator.keys()
    if not counts:
        return None
    both_orders = np.array(counts + [row[::-1] for row in counts])
    return {"pairs": len(counts), "annotators": len(people), **fleiss_kappa(both_orders)}


def fleiss_kappa(counts: np.ndarray) -> dict[str, float | None]:
    """Raw agreement and (agreement - chance) / (1 - chance) of [items, categories] counts of raters, two or more an item (Fleiss 1971).

    Kappa is None where all raters only ever used one category: chance explains everything.
    """
    raters = counts.sum(axis=1)
    agreement = float(np.mean((counts * (counts - 1)).sum(axis=1) / (raters * (raters - 1))))
    chance = float(np.square(counts.sum(axis=0) / counts.sum()).sum())
    return {"agreement": agreement, "kappa": (agreement - chance) / (1 - chance) if chance < 1 else None}
