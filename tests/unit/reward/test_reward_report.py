"""What is reported about a reward model on held-out rankings, against brute force, textbook values and hand-computed cases."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from megagpt.data.ranking import EncodedGroup, ranked_pairs
from megagpt.data.records import Ranking, read_rankings
from megagpt.reward.evaluate import pair_accuracy
from megagpt.reward.report import (
    Pairs,
    annotator_agreement,
    calibration,
    effective_trials,
    evaluation_report,
    fleiss_kappa,
    kendall_tau_b,
    length_report,
    mean_tau_b,
    summary,
    wilson_interval,
    within_correlation,
    write_evaluation,
)
from tests.helpers.tolerance import FLOAT64_ABSOLUTE

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def ranking(question="q", answers=("a", "b"), ranks=(0, 1), **more) -> Ranking:
    return Ranking(({"role": "user", "content": question},), tuple(answers), tuple(ranks), **more)


def group(*arguments, **more) -> EncodedGroup:
    record = ranking(*arguments, **more)
    return EncodedGroup((), tuple(ranked_pairs([rank for rank in record.ranks if rank is not None])), record)


# ---------------------------------------------------------------- accuracy


def test_report_accuracy_counts_every_ranking_once_and_a_draw_half():
    groups = [group("one"), group("two", "abc", (0, 1, 2)), group("three")]
    scores = [[1.0, 0.0], [3.0, 1.0, 2.0], [5.0, 5.0]]
    found = Pairs(groups, scores).accuracy()
    assert found["value"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3) == pytest.approx(pair_accuracy(groups, scores))
    assert (found["prompts"], found["rankings"], found["pairs"]) == (3, 3, 5)


def test_report_accuracy_of_a_slice_takes_its_pairs_alone():
    groups = [group("one", slice="x"), group("two", slice="y"), group("three", "abc", (0, None, 1), slice="y")]
    report = evaluation_report(groups, [[1, 0], [0, 1], [2, 1]])
    assert {name: rate["value"] for name, rate in report["slices"].items()} == {"x": 1.0, "y": 0.5}
    assert report["pair_accuracy"]["value"] == pytest.approx(2 / 3)
    assert report["kendall_tau_b"] is None and report["agreement"] is None


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # The examples of Newcombe 1998 (Statistics in Medicine 17, table I, method 3).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_report_wilson_interval(successes, trials, low, high):
    assert wilson_interval(successes / trials, trials) == pytest.approx((low, high), abs=5e-5)
    for bound in wilson_interval(successes / trials, trials):  # by its definition: where the share is just z deviations away
        if bound > 0:
            assert (bound - successes / trials) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / trials, abs=1e-9)


def test_report_effective_trials_by_hand():
    one = np.ones(40)
    right, prompts = np.repeat([1.0, 0.0], 20), np.arange(40)
    assert effective_trials(right, one, prompts) == pytest.approx(40)  # one pair a prompt: the prompts
    twice = np.arange(40) // 2
    assert effective_trials(right[:40], one, twice) == pytest.approx(20)  # 20 prompts of 2 equal pairs; too few to estimate
    assert effective_trials(np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 3.0]), np.array([0, 0, 0, 1])) == pytest.approx(2)
    # 80 pairs in 40 prompts, half of the prompts with one right and one wrong: V = (20 x 1) / 80^2 x 40 / 39
    mixed, of = np.concatenate([np.tile([1.0, 0.0], 20), np.ones(20), np.zeros(20)]), np.arange(80) // 2
    assert effective_trials(mixed, np.ones(80), of) == pytest.approx(0.25 / (20 / 80**2 * 40 / 39))


@pytest.mark.parametrize(("num_prompts", "pairs_each"), [(8, 1), (60, 1), (60, 4)])
def test_report_interval_covers_the_truth_about_as_often_as_it_says(num_prompts, pairs_each):
    """Prompts differ (Beta-distributed accuracy of mean 0.7), pairs of a prompt share its accuracy; pairs as trials would cover 80 % only."""
    generator, covered = np.random.default_rng(5), 0
    of, weight = np.repeat(np.arange(num_prompts), pairs_each), np.full(num_prompts * pairs_each, 1 / pairs_each)
    for _ in range(1000):
        right = (generator.random(len(of)) < np.repeat(generator.beta(1.4, 0.6, num_prompts), pairs_each)).astype(float)
        low, high = wilson_interval(right.mean(), effective_trials(right, weight, of))
        covered += low <= 0.7 <= high
    assert 0.92 <= covered / 1000 <= 0.985


# ---------------------------------------------------------------- order


def brute_tau_b(x, y):
    concordant = discordant = only_x = only_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if x[i] == x[j] and y[i] == y[j]:
            continue
        if x[i] == x[j]:
            only_y += 1
        elif y[i] == y[j]:
            only_x += 1
        elif (x[i] < x[j]) == (y[i] < y[j]):
            concordant += 1
        else:
            discordant += 1
    decided = concordant + discordant
    size = math.sqrt((decided + only_x) * (decided + only_y))
    return (concordant - discordant) / size if size else 0.0


@pytest.mark.parametrize("size", range(2, 10))
def test_report_kendall_tau_b_equals_brute_force(size):
    generator = np.random.default_rng(size)
    for _ in range(20):
        x, y = generator.integers(0, size, size).tolist(), generator.integers(0, 4, size).tolist()
        assert kendall_tau_b(x, y) == pytest.approx(brute_tau_b(x, y), abs=FLOAT64_ABSOLUTE)


def test_report_kendall_tau_b_by_hand():
    assert kendall_tau_b([1, 2, 3], [4, 5, 9]) == 1 and kendall_tau_b([1, 2, 3], [3, 2, 1]) == -1
    assert kendall_tau_b([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-4 / math.sqrt(8 * 9))  # 2 ties, 1 tie, 2 up, 6 down
    assert kendall_tau_b([1, 1, 1], [1, 2, 3]) == 0


def test_report_mean_tau_b_is_of_three_answers_and_more():
    groups = [group(), group("x", "abc", (0, 1, 2)), group("y", "abcd", (0, 1, 1, 2)), group("z", "abcd", (0, None, None, 3))]
    found = mean_tau_b(groups, [[0, 1], [3, 2, 1], [1, 2, 2, 3], [0, 1]])
    assert found["value"] == pytest.approx(0) and found["rankings"] == 2
    assert found["by_number_of_answers"] == {"3": {"value": pytest.approx(1), "rankings": 1}, "4": {"value": pytest.approx(-1), "rankings": 1}}


# ---------------------------------------------------------------- calibration


def brute_ece(difference, weight, num_bins):
    """By the definition: pairs sorted into bins of confidence one at a time."""
    total, error = sum(weight), 0.0
    for number in range(num_bins):
        low, high = 0.5 + 0.5 * number / num_bins, 0.5 + 0.5 * (number + 1) / num_bins
        inside = []
        for d, w in zip(difference, weight):
            probability = 1 / (1 + math.exp(-d))  # of the annotators' choice
            confidence = max(probability, 1 - probability)
            if low <= confidence < high or (number == num_bins - 1 and confidence == high):
                inside.append((w, confidence, 1.0 if d > 0 else 0.5 if d == 0 else 0.0))
        if inside:
            size = sum(w for w, *_ in inside)
            error += size / total * abs(sum(w * c for w, c, _ in inside) / size - sum(w * r for w, _, r in inside) / size)
    return error


def test_report_ece_equals_brute_force():
    generator = np.random.default_rng(2)
    for num_bins in (1, 7, 10):
        difference, weight = generator.normal(0.5, 2, 300), generator.random(300) + 0.1
        difference[:5] = 0
        assert calibration(difference, weight, num_bins)["ece"] == pytest.approx(brute_ece(difference, weight, num_bins), abs=FLOAT64_ABSOLUTE)


def test_report_calibration_by_hand():
    """Sure to 3/4 and right in 1 of 2; sure to 9/10 and right in 3 of 3."""
    difference = np.array([math.log(3), -math.log(3), math.log(9), math.log(9), math.log(9)]) * (1 + 1e-9)
    found = calibration(difference, np.ones(5), 10)
    bins = {round(one["from"], 2): one for one in found["bins"]}
    assert (bins[0.75]["confidence"], bins[0.75]["agreement"], bins[0.75]["pairs"]) == (pytest.approx(0.75), 0.5, 2)
    assert (bins[0.9]["confidence"], bins[0.9]["agreement"], bins[0.9]["share"]) == (pytest.approx(0.9), 1.0, pytest.approx(0.6))
    assert bins[0.5] == {"from": 0.5, "to": 0.55, "pairs": 0, "confidence": None, "agreement": None, "share": 0.0}
    assert found["ece"] == pytest.approx(0.4 * 0.25 + 0.6 * 0.1)


def test_report_of_a_calibrated_model_has_little_ece_and_of_an_overconfident_one_much():
    generator = np.random.default_rng(3)
    logit = generator.normal(0, 1.5, 20_000)
    difference = np.where(generator.random(20_000) < 1 / (1 + np.exp(-logit)), logit, -logit)
    assert calibration(difference, np.ones(20_000))["ece"] < 0.015 < 0.1 < calibration(5 * difference, np.ones(20_000))["ece"]


def test_report_takes_scores_that_are_very_far_apart():
    assert calibration(np.array([2000.0, -2000.0]), np.ones(2))["ece"] == pytest.approx(0.5)


# ---------------------------------------------------------------- length


def test_report_shows_a_model_that_goes_by_length():
    generator = np.random.default_rng(4)
    groups = [group(f"q{i}", ("x" * int(a), "y" * int(b))) for i, (a, b) in enumerate(generator.integers(1, 100, (60, 2))) if a != b]
    scores = [[len(answer) for answer in one.answers] for one in groups]
    found = length_report(groups, scores, Pairs(groups, scores))
    longer = np.mean([len(one.answers[0]) > len(one.answers[1]) for one in groups])
    assert found["longer_wins"] == {"annotators": pytest.approx(longer), "model": 1.0}
    assert found["score_correlation"] == pytest.approx(1)
    assert (found["better_is_longer"]["value"], found["better_is_shorter"]["value"]) == (1.0, 0.0)
    assert found["bins"][0]["value"] == 0.0 and found["bins"][-1]["value"] == 1.0
    assert sum(one["pairs"] for one in found["bins"]) == len(groups)
    assert [one["from"] for one in found["bins"]] == sorted(one["from"] for one in found["bins"])


def test_report_on_answers_of_one_length():
    groups = [group("one"), group("two")]
    found = length_report(groups, [[1, 0], [0, 1]], Pairs(groups, [[1, 0], [0, 1]]))
    assert found["longer_wins"] is found["score_correlation"] is found["better_is_longer"] is found["better_is_shorter"] is None
    assert [(one["from"], one["to"], one["value"]) for one in found["bins"]] == [(0.0, 0.0, 0.5)]


def test_report_correlation_is_within_prompts():
    """Long answers to one prompt score low there and still above the short ones of another."""
    assert within_correlation([[10, 9], [1, 0]], [[50, 60], [1, 2]]) == pytest.approx(-5.5 / math.sqrt(1 * 50.5))


# ---------------------------------------------------------------- annotators


def test_report_fleiss_kappa_of_the_textbook():
    """14 raters, 10 subjects, 5 categories (table in the English Wikipedia's article): P = 0.378, P_e = 0.213, kappa = 0.210."""
    counts = np.array([
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ])  # fmt: skip
    assert fleiss_kappa(counts) == {"agreement": pytest.approx(0.378, abs=5e-4), "kappa": pytest.approx(0.210, abs=5e-4)}


def test_report_agreement_by_hand():
    judged = [
        ranking("one", ranks=(0, 1), annotator="x"), ranking("one", ranks=(0, 1), annotator="y"),
        ranking("two", ranks=(0, 1), annotator="x"), ranking("two", ("b", "a"), (0, 1), annotator="y"),  # the same answers, listed otherwise
        ranking("three", ranks=(0, 0), annotator="x"), ranking("three", ranks=(5, 5), annotator="y"),
        ranking("four", annotator="x"),  # judged once
        ranking("five"), ranking("five", ranks=(1, 0)),  # nobody says by whom
        ranking("six", ("a", "c"), annotator="x"), ranking("six", ("a", "b"), annotator="y"),  # other answers
    ]  # fmt: skip
    # Agreed: 2 of 3. In both orders: 4 times first, 4 times second, 4 times tied, so chance is 1/3 and kappa (2/3 - 1/3) / (2/3).
    assert annotator_agreement(judged) == {"pairs": 3, "annotators": 2, "agreement": pytest.approx(2 / 3), "kappa": pytest.approx(1 / 2)}
    assert annotator_agreement(judged[6:]) is None


def test_report_agreement_takes_every_pair_of_a_ranking_that_two_ranked():
    judged = [ranking("q", "abcd", (0, 1, 2, None), annotator="x"), ranking("q", "dcba", (None, 0, 1, 2), annotator="y")]
    assert annotator_agreement(judged) == {"pairs": 3, "annotators": 2, "agreement": 0.0, "kappa": pytest.approx(-1)}


def test_report_agreement_does_not_depend_on_which_answer_is_called_first():
    generator = np.random.default_rng(6)
    marks = generator.integers(0, 3, (40, 3))
    straight = [ranking(f"q{i}", ("a", "b"), ((0, 1), (0, 0), (1, 0))[mark], annotator=f"p{j}") for i, row in enumerate(marks) for j, mark in enumerate(row)]
    renamed = [ranking(one.prompt[0]["content"], ("b", "a"), one.ranks, annotator=one.annotator) for one in straight]
    assert annotator_agreement(straight) == annotator_agreement(renamed)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_report_agreement_of_pandalm_is_what_its_marks_say():
    """A line is a pair; a few pairs of the same texts stand in several lines, of which the last counts."""
    records = read_rankings(SHARED / "pandalm_human" / "pairs.jsonl")
    found = annotator_agreement(records)
    by_pair = {}
    for record in records:
        by_pair.setdefault(record.where, []).append(record.ranks)
    same = [sum(a == b for a, b in itertools.combinations(ranks, 2)) / 3 for ranks in by_pair.values()]
    assert found["annotators"] == 3 and found["agreement"] == pytest.approx(np.mean(same), abs=0.01)
    assert len(by_pair) == 735 and 0.8 < found["kappa"] < found["agreement"]


# ---------------------------------------------------------------- the file


def test_report_is_one_plain_object_on_disk(tmp_path):
    groups = [group("one", "abc", (0, 1, 2)), group("two", ("aa", "b"), slice="s")]
    report = evaluation_report(groups, [[2.0, 1.0, 0.0], [0.0, 1.0]], [one.record for one in groups])
    write_evaluation(tmp_path, report)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    line = summary(report)
    assert "held-out pair accuracy 0.500 (95 % interval" in line and "over 2 prompts" in line and "Kendall tau-b 1.000" in line and "\n" not in line
