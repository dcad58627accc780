"""The DPO loss against its formula written otherwise, its closed-form gradient and finite differences, and where it is least."""

import itertools
import math

import numpy as np
import pytest
import torch

from megagpt.config.schema import DpoLossConfig
from megagpt.data.ranking import EncodedGroup, ranked_pairs
from megagpt.data.records import Ranking
from megagpt.dpo.evaluate import preference_metrics
from megagpt.dpo.loss import implicit_rewards, preference_loss
from tests.helpers.tolerance import FINITE_DIFFERENCE_ABSOLUTE, FINITE_DIFFERENCE_STEP, FLOAT64_ABSOLUTE

RANKS = {2: [1, 0], 4: [0, 1, 1, 2], 7: [3, 0, 0, 5, 1, 2, 2]}
TERMS = [{"beta": 0.1}, {"beta": 0.7}, {"beta": 0.3, "label_smoothing": 0.2}, {"beta": 0.4, "kind": "ipo"}]


def some_logprobs(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of answers of some ten tokens under policy and reference, [size] float64."""
    generator = np.random.default_rng([size, seed])
    return tuple(torch.from_numpy(-generator.uniform(5, 30, size)) for _ in range(2))


def loss_of(logprobs, reference, ranks, **terms):
    """The product's loss of one prompt, every pair weighing 1 / pairs, and what it reports."""
    pairs = ranked_pairs(ranks)
    winners, losers = (torch.tensor(side) for side in zip(*pairs))
    weights = torch.full((len(pairs),), 1 / len(pairs), dtype=logprobs.dtype)
    return preference_loss(implicit_rewards(logprobs, reference, terms["beta"]), winners, losers, weights, **terms)


def one_pair(ratio: float, beta: float, kind: str = "sigmoid", label_smoothing: float = 0.0) -> tuple[float, float]:
    """Loss, and its derivative by `ratio` = log(pi_w / ref_w) - log(pi_l / ref_l): from probabilities, not from logarithms."""
    if kind == "ipo":
        return (ratio - 1 / (2 * beta)) ** 2, 2 * (ratio - 1 / (2 * beta))
    preferred = math.exp(ratio) ** beta / (1 + math.exp(ratio) ** beta)
    loss = -(1 - label_smoothing) * math.log(preferred) - label_smoothing * math.log(1 - preferred)
    return loss, beta * (preferred - (1 - label_smoothing))


def mean_over_pairs(logprobs, reference, ranks, **terms) -> float:
    ratios = [log - other for log, other in zip(logprobs, reference, strict=True)]
    pairs = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
    return sum(one_pair(ratios[i] - ratios[j], **terms)[0] for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("size", RANKS)
def test_dpo_loss_and_gradient_equal_closed_form_and_finite_differences(size, terms):
    ranks = RANKS[size]
    for seed in range(3):
        logprobs, reference = some_logprobs(size, seed)
        logprobs.requires_grad_()
        loss, _ = loss_of(logprobs, reference, ranks, **terms)
        loss.backward()
        values, others = logprobs.tolist(), reference.tolist()
        assert loss.item() == pytest.approx(mean_over_pairs(values, others, ranks, **terms), rel=FLOAT64_ABSOLUTE, abs=FLOAT64_ABSOLUTE)
        closed, num_pairs = [0.0] * size, 0
        for i, j in itertools.permutations(range(size), 2):
            if ranks[i] < ranks[j]:
                num_pairs += 1
                slope = one_pair(values[i] - others[i] - values[j] + others[j], **terms)[1]
                closed[i] += slope
                closed[j] -= slope
        assert logprobs.grad.tolist() == pytest.approx([part / num_pairs for part in closed], rel=1e-10, abs=FLOAT64_ABSOLUTE)
        for i in range(size):
            up, down = ([value + sign * FINITE_DIFFERENCE_STEP * (j == i) for j, value in enumerate(values)] for sign in (1, -1))
            slope = (mean_over_pairs(up, others, ranks, **terms) - mean_over_pairs(down, others, ranks, **terms)) / (2 * FINITE_DIFFERENCE_STEP)
            assert logprobs.grad[i].item() == pytest.approx(slope, rel=FINITE_DIFFERENCE_ABSOLUTE, abs=FINITE_DIFFERENCE_ABSOLUTE)


@pytest.mark.parametrize("size", RANKS)
def test_dpo_of_the_reference_itself_is_log_two_and_right_half_the_time(size):
    logprobs, _ = some_logprobs(size, 0)
    loss, report = loss_of(logprobs, logprobs.clone(), RANKS[size], beta=0.1)
    assert loss.item() == pytest.approx(math.log(2), abs=FLOAT64_ABSOLUTE)
    assert report["correct"].item() == pytest.approx(0.5) and report["margin"].item() == 0


def test_dpo_reports_by_hand():
    """Three answers, best first: implicit rewards 0.2, -0.1 and 0.1, so that the pair of the last two is in the wrong order."""
    _, report = loss_of(torch.tensor([-3.0, -6.0, -4.0]), torch.tensor([-5.0, -5.0, -5.0]), [0, 1, 2], beta=0.1)
    expected = {"correct": 2 / 3, "margin": (0.3 + 0.1 - 0.2) / 3, "chosen_reward": (0.2 + 0.2 - 0.1) / 3, "rejected_reward": (-0.1 + 0.1 + 0.1) / 3}
    assert {name: report[name].item() for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("terms", "best"), [({"beta": 0.2, "label_smoothing": 0.1}, math.log(9) / 0.2), ({"beta": 0.2, "kind": "ipo"}, 2.5)])
def test_dpo_with_swapped_labels_and_ipo_are_least_at_a_finite_lead(terms, best):
    """Where sigma(beta x ratio) is the share that was not swapped, and where the ratio is 1 / (2 beta)."""
    logprobs = torch.tensor([best - 7.0, -7.0], dtype=torch.float64, requires_grad=True)
    loss, _ = loss_of(logprobs, torch.full((2,), -7.0, dtype=torch.float64), [0, 1], **terms)
    loss.backward()
    assert logprobs.grad.tolist() == pytest.approx([0, 0], abs=FLOAT64_ABSOLUTE)


def test_dpo_sums_of_parts_add_up():
    """However the pairs are cut into batches or ranks."""
    generator = torch.Generator().manual_seed(1)
    rewards, winners, losers = torch.randn(8, generator=generator).double(), torch.arange(0, 7), torch.arange(1, 8)
    weights = torch.rand(7, generator=generator).double()
    (whole, report), *parts = (
        preference_loss(rewards, winners[part], losers[part], weights[part], beta=0.1) for part in (slice(7), slice(3), slice(3, 7))
    )
    assert whole.item() == pytest.approx(sum(loss.item() for loss, _ in parts), abs=FLOAT64_ABSOLUTE)
    for name, value in report.items():
        assert value.item() == pytest.approx(sum(part[name].item() for _, part in parts), abs=FLOAT64_ABSOLUTE)


def test_dpo_held_out_metrics_count_each_prompt_once():
    """Whatever it weighed in training and however many answers it has."""
    ranks = ([0, 1], [0, 1, 2])
    groups = [EncodedGroup((), tuple(ranked_pairs(own)), Ranking((), tuple("abc"[: len(own)]), tuple(own), weight=7.0)) for own in ranks]
    logprobs, reference = [[-4.0, -5.0], [-8.0, -7.0, -6.0]], [[-5.0, -5.0], [-6.0, -6.0, -6.0]]
    found = preference_metrics(groups, logprobs, reference, DpoLossConfig(beta=0.5))
    losses = [mean_over_pairs(*row, beta=0.5) for row in zip(logprobs, reference, ranks, strict=True)]
    assert found["loss"] == pytest.approx(np.mean(losses), abs=FLOAT64_ABSOLUTE)
    assert found["accuracy"] == pytest.approx((1 + 0) / 2) and found["margin"] == pytest.approx((0.5 + (-0.5 - 1.0 - 0.5) / 3) / 2)
    assert found.keys() == {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward"}
