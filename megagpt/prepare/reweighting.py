"""Weights of documents that bring the shares in which groups are named nearer to a target.

In a category let q_g be the share of group g in the occurrences of its targeted groups, p_g its target and s the strength. The factor of g is

    f_g = (p_g / q_g)^s / Σ_h q_h (p_h / q_h)^s

and a document's weight the product over categories of the mean of f over its occurrences in them, within the limits; without any it is 1. If each
document names one group of a category, and no limit is met, the weighted occurrences of g have the share q_g f_g ∝ q_g^(1-s) p_g^s: between what is
and the target, and the target for s = 1; their sum stays what it was, since Σ q_g f_g = 1. Documents that name several groups bring it less far.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from megagpt.config.load import ConfigError
from megagpt.config.prepare import RepresentationConfig, ReweightingConfig
from megagpt.prepare.identity_terms import TermFinder, read_terms
from megagpt.prepare.representation import WEIGHT_SCALE, Counts, merge


def check_targets(config: RepresentationConfig) -> None:
    """Refuse targets of categories and groups that have no terms.

    Raises:
        ConfigError: with the nearest name.
    """
    groups: dict[str, list[str]] = {}
    for term in read_terms(config.terms):
        groups.setdefault(term.category, []).append(term.group)
    where = "steps.representation.reweighting.targets"
    for category, target in _settings(config).targets.items():
        _require(category, list(groups), where)
        for group in [] if target == "uniform" else target:
            _require(group, groups[category], f"{where}.{category}")


def _require(name: str, names: list[str], where: str) -> None:
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise ConfigError(f"{where}: {name!r} has no terms; {f'did you mean {nearest[0]}?' if nearest else 'known are ' + ', '.join(dict.fromkeys(names))}")


def distribution(counts: Counts, column: str = "occurrences") -> dict[str, dict[str, float]]:
    """Category -> group -> its share of the category; `weighted`: with the weights that documents were counted with. Over all sources."""
    sums: dict[str, dict[str, int]] = {}
    for key, columns in merge(counts.values()).get("groups", {}).items():
        category, group = key.split("/")
        sums.setdefault(category, {})[group] = columns[column]
    return {category: {group: value / max(sum(groups.values()), 1) for group, value in groups.items()} for category, groups in sums.items()}


def weights(counts: Counts, config: RepresentationConfig) -> dict[str, float]:
    """`category/group` -> factor f, for the groups that have a target and occur."""
    settings = _settings(config)
    is_now = distribution(counts)
    factors = {}
    for category, target in sorted(settings.targets.items()):
        groups = {group: share for group, share in is_now.get(category, {}).items() if target == "uniform" or group in target}
        q = np.array(list(groups.values()))
        p = np.array([1.0 if target == "uniform" else target[group] for group in groups])
        ratio = ((p / p.sum()) / (q / q.sum())) ** settings.strength
        f = ratio / (q / q.sum() * ratio).sum()
        factors |= {f"{category}/{group}": value for group, value in zip(groups, f.tolist(), strict=True)}
    return factors


class Weigher:
    """Weights of documents by the factors of `weights`; its own in each task."""

    def __init__(self, config: RepresentationConfig, factors: dict[str, float]):
        self._settings = _settings(config)
        terms = read_terms(config.terms)
        self._finder = TermFinder(terms)
        self._factors = np.array([factors.get(term.group_key, np.nan) for term in terms])
        categories = sorted({key.split("/")[0] for key in factors})
        self._category_of = np.array([categories.index(term.category) if term.category in categories else -1 for term in terms])
        self._num_categories = len(categories)

    def weight_of(self, text: str) -> float:
        """Weight of a document, to three decimals."""
        terms = self._finder.find(self._finder.numbers(text))[:, 0]
        terms = terms[~np.isnan(self._factors[terms])]
        weight = 1.0
        for category in range(self._num_categories):
            mine = self._factors[terms[self._category_of[terms] == category]]
            weight *= mine.mean() if len(mine) else 1.0
        return round(float(np.clip(weight, self._settings.min_weight, self._settings.max_weight)) * WEIGHT_SCALE) / WEIGHT_SCALE


def effect(before: Counts, weighted: Counts, config: RepresentationConfig) -> list[dict[str, Any]]:
    """What re-weighting did: for each group with a target `category`, `group`, `share` without weights, `weighted` share, `target`.

    Args:
        before: the counts that the factors come from.
        weighted: counts of the same documents, each added with its weight.
    """
    shares, weighted_shares = distribution(before), distribution(weighted, "weighted")
    rows = []
    for category, target in sorted(_settings(config).targets.items()):
        groups = [group for group in shares.get(category, {}) if target == "uniform" or group in target]
        targets = [1.0 if target == "uniform" else target[group] for group in groups]
        sums = [sum(part.get(category, {}).get(group, 0.0) for group in groups) for part in (shares, weighted_shares)]
        for group, wanted in zip(groups, targets, strict=True):
            now, then = shares[category][group] / sums[0], weighted_shares[category][group] / sums[1]
            rows.append({"category": category, "group": group, "share": now, "weighted": then, "target": wanted / sum(targets)})
    return rows


def _settings(config: RepresentationConfig) -> ReweightingConfig:
    assert config.reweighting is not None
    return config.reweighting
