"""Figures of a classifier against brute force and closed forms; weights that make slice and label independent."""

import numpy as np
import pytest

from megagpt.prepare.training import slices
from megagpt.prepare.training.measure import calibration, rate, separation, threshold_at

RANDOM = np.random.default_rng(5)
LABELS = RANDOM.integers(0, 2, 500)
PROBABILITIES = np.round(np.clip(RANDOM.normal(0.4 + 0.2 * LABELS, 0.2), 0, 1), 2)  # rounded: there are ties


def test_separation_equals_brute_force():
    found = separation(LABELS, PROBABILITIES, 0.5)
    high, low = PROBABILITIES[LABELS == 1], PROBABILITIES[LABELS == 0]
    pairs = (high[:, None] > low[None, :]).mean() + 0.5 * (high[:, None] == low[None, :]).mean()
    assert found["roc_auc"] == pytest.approx(pairs, abs=1e-6)
    for label, scores in ((0, 1 - PROBABILITIES), (1, PROBABILITIES)):
        positives, precision, recall_before = LABELS == label, 0.0, 0.0
        for threshold in np.unique(scores)[::-1]:
            flagged = scores >= threshold
            recall = positives[flagged].sum() / positives.sum()
            precision += (recall - recall_before) * positives[flagged].mean()
            recall_before = recall
        assert found["average_precision"][label] == pytest.approx(precision, abs=1e-6)
    assert [sum(counts) for counts in found["histogram"]["counts"]] == found["texts"] == [(LABELS == 0).sum(), (LABELS == 1).sum()]
    area = np.trapezoid(found["roc"]["true_positive"], found["roc"]["false_positive"])
    assert area == pytest.approx(found["roc_auc"], abs=2e-3)


def test_calibration_error_is_that_of_texts_with_the_given_share():
    labels, said = np.array([0, 0, 0, 1]), np.array([0.25, 0.25, 0.75, 0.75])
    # Class 1 is 3/5 of the text: the texts weigh 2/15, 2/15, 2/15, 9/15. Bin 0.2: says .25, is 0. Bin 0.7: says .75, is 9/11.
    found = calibration(labels, said, 0.6)
    assert found["error"] == pytest.approx(4 / 15 * 0.25 + 11 / 15 * (9 / 11 - 0.75), abs=1e-6)
    assert [one["share"] for one in found["bins"]] == pytest.approx([4 / 15, 11 / 15], abs=1e-6)
    uniform = RANDOM.random(200_000)
    assert calibration((RANDOM.random(200_000) < uniform).astype(int), uniform, 0.5)["error"] < 0.01


def test_rate_has_wilsons_interval():
    assert rate(np.array([True] * 8 + [False] * 2)) == {"texts": 10, "value": 0.8, "interval": pytest.approx([0.4902, 0.9433], abs=1e-4)}
    assert rate(np.zeros(20, bool))["interval"] == pytest.approx([0, 1.96**2 / (20 + 1.96**2)], abs=1e-6)
    assert rate(np.zeros(0, bool)) == {"texts": 0, "value": None, "interval": None}


def test_threshold_is_passed_by_the_share_that_is_asked_for():
    scores = RANDOM.permutation(np.arange(1000) / 1000)
    assert (scores > threshold_at(scores, 0.1)).mean() == pytest.approx(0.1, abs=1.5e-3)


def test_reweighing_makes_stratum_and_label_independent():
    strata = RANDOM.integers(0, 4, 2000)
    labels = (RANDOM.random(2000) < 0.2 + 0.2 * strata).astype(int)
    weights = slices.reweighing(strata, labels, 1.0)
    assert weights.sum() == pytest.approx(2000)
    for stratum in range(4):
        inside = strata == stratum
        assert (weights * labels)[inside].sum() / weights[inside].sum() == pytest.approx(labels.mean())
        assert weights[inside].sum() == pytest.approx(inside.sum())
    assert slices.reweighing(strata, labels, 0.0) == pytest.approx(np.ones(2000))
    assert slices.reweighing(strata, labels, 2.0) == pytest.approx(weights**2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I\u2019m finna go", True), ("He be working late", True), ("they done finished it", True), ("don't want no trouble", True), ("dat's it", False),
        ("dat is it", True), ("Ain\u2019t nobody home", True), ("I will be working late", False), ("It will be done", False), ("That is the data", False),
        ("I don't want trouble", False), ("wealth of nations", False), ("", False),
    ],
)  # fmt: skip
def test_dialect_markers(text, expected):
    assert slices.has_aae_markers(text) is expected


def test_pairs_of_sentences_differ_in_dialect_and_groups_are_named_by_neutral_words():
    assert all(not slices.has_aae_markers(standard) for _, standard in slices.SAME_IN_BOTH)
    assert sum(slices.has_aae_markers(dialect) for dialect, _ in slices.SAME_IN_BOTH) >= 0.8 * len(slices.SAME_IN_BOTH)
    named = slices.slices_of([slices.NEUTRAL_SENTENCES[0].format(person) for person in slices.PERSONS.values()])
    for place, group in enumerate(slices.PERSONS):
        assert [name for name in slices.GROUPS if named[name][place]] == ([group] if group in slices.GROUPS else [])


def test_slices_and_strata():
    found = slices.slices_of(["finna see a black cat", "finna go", "the women left", "nothing"])
    assert found["black"].tolist() == [True, False, False, False] and found["women"].tolist() == [False, False, True, False]
    assert (found[slices.AAE] != found[slices.OTHER]).all()
    assert slices.strata_of(found).tolist() == [3, 2, 1, 0]
