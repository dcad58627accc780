"""Weights of documents that bring the shares in which groups are named to a target, or near it.

Let n_dg be the mentions of group g of a category in document d, among the groups that have a target, and n_d their sum. With a factor f_g for each
group the document weighs

    w_d = Σ_g (n_dg / n_d) f_g,

the mean of the factors over its mentions. The weighted mentions of g are then linear in the factors,

    Σ_d n_dg w_d = Σ_h A_gh f_h    with    A_gh = Σ_d n_dg n_dh / n_d,

and A, which is small, is counted in one pass. With q_g the share of g among the N mentions, p_g its target and s the strength, the wanted shares are
r_g = q_g^(1-s) p_g^s / Σ_h q_h^(1-s) p_h^s, and f is what makes Σ_g ((A f)_g / N - r_g)² / q_g least within the limits of weights. It is divided by
q since then the weighted mentions remain N in all wherever no limit is met (Σ_h A_hg = N q_g, so that the sum of the normal equations says so). Where
each document names one group, f_g = r_g / q_g.

A document that several categories speak of has the product of their means, within the limits; one that names nobody weighs 1.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear

from megagpt.config.load import ConfigError
from megagpt.config.prepare import RepresentationConfig, ReweightingConfig
from megagpt.prepare.identity_terms import TermFinder, read_terms
from megagpt.prepare.representation import WEIGHT_SCALE, Counts, is_target, merge

RIDGE = 1e-4
"""Weight of |f - 1|: so small that it moves the factor of a group with a share of q by about its square over q."""


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
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(dict.fromkeys(names))}"
        raise ConfigError(f"{where}: {name!r} has no terms; {hint}")


def distribution(counts: Counts, column: str = "occurrences") -> dict[str, dict[str, float]]:
    """Category -> group -> its share of the category; `weighted`: with the weights that documents were counted with. Over all sources."""
    sums: dict[str, dict[str, int]] = {}
    for key, columns in merge(counts.values()).get("groups", {}).items():
        category, group = key.split("/")
        sums.setdefault(category, {})[group] = columns[column]
    return {category: {group: value / max(sum(groups.values()), 1) for group, value in groups.items()} for category, groups in sums.items()}


def weights(counts: Counts, config: RepresentationConfig) -> dict[str, float]:
    """`category/group` -> factor f, for the groups that have a target and occur.

    Raises:
        ValueError: counts that were made without these targets.
    """
    settings = _settings(config)
    total = merge(counts.values())
    together = total.get("together", {})
    factors: dict[str, float] = {}
    for category, target in sorted(settings.targets.items()):
        groups = [group for group in total.get("groups", {}) if is_target(group, category, target)]
        if not together.keys() >= set(groups):
            raise ValueError(f"the counts were made without targets for {category}: nothing is known of groups that documents name together")
        if groups:
            a = np.array([[together[group].get(other, 0) for other in groups] for group in groups], float)
            p = np.array([1.0 if target == "uniform" else target[group.split("/")[1]] for group in groups])
            factors |= zip(groups, _factors(a, p, settings).tolist(), strict=True)
    return factors


def _factors(a: np.ndarray, p: np.ndarray, settings: ReweightingConfig) -> np.ndarray:
    """f of the module's formula; a: [groups, groups] in any unit, p: [groups], not normalised."""
    a = a / a.sum()  # its rows sum to n_g, all of it to N
    q = a.sum(axis=1)
    r = q ** (1 - settings.strength) * p**settings.strength
    r /= r.sum()
    # Groups that are never named apart have no f of their own: of all that fit as well, the one nearest to 1.
    rows = np.concatenate([a / np.sqrt(q)[:, None], RIDGE * np.eye(len(p))])
    goal = np.concatenate([r / np.sqrt(q), np.full(len(p), RIDGE)])
    limits = (settings.min_weight, settings.max_weight)
    return np.full(len(p), 1.0) if limits[0] == limits[1] else lsq_linear(rows, goal, limits, method="bvls").x


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
