"""The K-way ranking loss by hand, and that every prompt weighs the same."""

import math

import pytest
import torch

from megagpt.reward.loss import ranking_loss
from megagpt.reward.normalise import score_statistics


def test_kway_loss_is_the_mean_over_all_pairs_of_a_prompt():
    scores = torch.tensor([2.0, 1.0, -1.0])
    pairs = [(0, 1), (0, 2), (1, 2)]
    loss, correct = ranking_loss(scores, *(torch.tensor(x) for x in zip(*pairs)), torch.full((3,), 1 / 3))
    expected = sum(math.log1p(math.exp(-(scores[w] - scores[l]).item())) for w, l in pairs) / 3
    assert loss.item() == pytest.approx(expected, abs=1e-6) and correct.item() == pytest.approx(1.0)


def test_kway_draw_counts_half_and_a_wrong_pair_nothing():
    _, correct = ranking_loss(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([0.5, 0.5]))
    assert correct.item() == pytest.approx(0.25)


def test_kway_gradient_pushes_winners_up_and_losers_down():
    scores = torch.zeros(3, requires_grad=True)
    ranking_loss(scores, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), torch.full((3,), 1 / 3))[0].backward()
    assert scores.grad[0] < 0 < scores.grad[2] and scores.grad.sum().abs() < 1e-7


def test_reward_statistics_never_divide_by_zero():
    assert score_statistics([1.0, 1.0])["reward_std"] > 0
