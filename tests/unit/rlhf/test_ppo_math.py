"""PPO's pure functions against hand numbers and brute force."""

import numpy as np
import pytest
import torch

from megagpt.config.schema import KlConfig, PpoConfig
from megagpt.rlhf.advantage import final_rewards, generalised_advantages, token_rewards, whiten
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.kl import KlController
from megagpt.rlhf.loss import policy_loss, value_loss
from megagpt.rlhf.update import minibatches


def _ragged(seed=0, rows=5, width=9):
    """Masks that start and end at different places."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, width)
    for row in range(rows):
        start = int(torch.randint(0, width - 2, (), generator=generator))
        stop = int(torch.randint(start + 1, width + 1, (), generator=generator))
        mask[row, start:stop] = 1
    return mask, [torch.randn(rows, width, generator=generator) for _ in range(3)]


def test_response_mask_counts_from_the_first_response_token():
    rollout = Rollout(torch.zeros(2, 6, dtype=torch.int64), torch.tensor([2, 3]), torch.tensor([4, 6]), torch.tensor([True, False]))
    assert rollout.response_mask.tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("gamma, gae_lambda", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0)])
def test_gae_equals_the_sum_over_later_deltas(gamma, gae_lambda):
    mask, (rewards, values, _) = _ragged()
    rewards, values = rewards * mask, values
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    for row in range(len(mask)):
        inside = mask[row].nonzero().squeeze(-1).tolist()
        for t in inside:
            expected = 0.0
            for later in inside[inside.index(t) :]:
                next_value = values[row, later + 1] if later != inside[-1] else 0.0
                delta = rewards[row, later] + gamma * next_value - values[row, later]
                expected += (gamma * gae_lambda) ** (later - t) * delta
            assert advantages[row, t] == pytest.approx(float(expected), abs=1e-5)
            assert returns[row, t] == pytest.approx(float(expected + values[row, t]), abs=1e-5)
    assert (advantages * (1 - mask)).abs().max() == 0 and (returns * (1 - mask)).abs().max() == 0


def test_gae_lambda_one_returns_are_reward_to_go():
    mask, (rewards, values, _) = _ragged(1)
    _, returns = generalised_advantages(rewards * mask, values, mask, gamma=1.0, gae_lambda=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns, to_go, atol=1e-5)


def test_score_lands_on_the_last_response_token_and_kl_on_each():
    mask = torch.tensor([[0.0, 1, 1, 0], [0.0, 0, 1, 1]])
    logprobs, reference = torch.full((2, 4), -1.0), torch.full((2, 4), -3.0)
    final = final_rewards(
        torch.tensor([2.0, 30.0]), torch.tensor([True, False]), mask.sum(1), clip_reward=5.0, missing_eos_penalty=1.0, length_penalty=0.0
    )
    rewards = token_rewards(final, (logprobs - reference) * mask, mask, kl_coefficient=0.1)
    assert torch.allclose(rewards, torch.tensor([[0.0, -0.2, 1.8, 0.0], [0.0, 0.0, -0.2, 3.8]]))


def test_whitened_advantages_have_mean_zero_and_variance_one_over_the_mask():
    mask, (values, _, _) = _ragged(2)
    white = whiten(values * 7 + 3, mask)
    assert (white * mask).sum() / mask.sum() == pytest.approx(0.0, abs=1e-5)
    assert (white.square() * mask).sum() / mask.sum() == pytest.approx(1.0, abs=1e-4)
    assert (white * (1 - mask)).abs().max() == 0


def test_ppo_policy_loss_by_hand():
    old, new = torch.zeros(1, 4), torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5]]))
    advantages, mask = torch.tensor([[1.0, -1.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    loss, report = policy_loss(new, old, advantages, mask, 0.2)
    # min(1.5, 1.2) + min(-1.5, -1.2) + min(0.5, 0.8) + min(-0.5, -0.8)
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8), abs=1e-6)
    assert report["clip_fraction"].item() == 4


def test_ppo_policy_gradient_at_ratio_one_is_the_advantage():
    logprobs = torch.randn(3, 5, requires_grad=True)
    advantages, mask = torch.randn(3, 5), (torch.rand(3, 5) > 0.3).float()
    policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.2)[0].backward()
    assert torch.allclose(logprobs.grad, -advantages * mask, atol=1e-6)


def test_ppo_policy_gradient_vanishes_where_the_clip_binds():
    logprobs = torch.log(torch.tensor([[1.5, 0.5]])).requires_grad_()
    policy_loss(logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2), 0.2)[0].backward()
    assert logprobs.grad.abs().max() == 0


def test_ppo_losses_ignore_what_the_mask_hides():
    mask = torch.tensor([[1.0, 0.0]])
    visible, hidden = torch.zeros(1, 2), torch.tensor([[0.0, 50.0]])
    assert torch.equal(policy_loss(hidden, visible, torch.ones(1, 2), mask, 0.2)[0], policy_loss(visible, visible, torch.ones(1, 2), mask, 0.2)[0])
    assert torch.equal(value_loss(hidden, visible, visible, mask, 0.2)[0], value_loss(visible, visible, visible, mask, 0.2)[0])


def test_ppo_value_loss_takes_the_worse_of_clipped_and_plain():
    values, old, returns = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.9]]), torch.tensor([[1.0, 2.0]])
    loss, report = value_loss(values, old, returns, torch.ones(1, 2), 0.2)
    assert loss.item() == pytest.approx(0.5 * ((0.2 - 1.0) ** 2 + 1.0), abs=1e-6)
    assert report["value_error"].item() == pytest.approx(1.0)


def test_kl_controller_is_fixed_without_a_target_and_steers_with_one():
    fixed = KlController(KlConfig(coefficient=0.1))
    fixed.update(100.0, 1000)
    assert fixed.coefficient == 0.1
    steered = KlController(KlConfig(coefficient=0.1, target=5.0, horizon=1000))
    steered.update(100.0, 100)  # error clipped at 0.2
    assert steered.coefficient == pytest.approx(0.1 * 1.02)
    steered.update(0.0, 100)
    assert steered.coefficient == pytest.approx(0.1 * 1.02 * 0.98)


def test_minibatches_visit_every_row_once_an_epoch_in_another_order():
    ppo = PpoConfig(steps=1, rollout_batch_size=12, minibatch_size=4, micro_batch_size=2, epochs=2)
    rows = np.stack(list(minibatches(ppo, seed=1, step=3)))
    first, second = rows[:3].ravel(), rows[3:].ravel()
    assert sorted(first) == sorted(second) == list(range(12)) and (first != second).any()
    assert (np.stack(list(minibatches(ppo, seed=1, step=3))) == rows).all()
