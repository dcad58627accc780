"""The switchable terms of PPO: hand numbers, exact expectations over a small vocabulary, finite sums. The core is in test_ppo_math."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megagpt.config.schema import KlConfig, PlacementConfig, PpoConfig, PromptsConfig, RlhfConfig, RoleConfig, RunConfig
from megagpt.kernels import reference
from megagpt.parallel.grid import Grid
from megagpt.parallel.route import replica_rows, share_rows
from megagpt.rlhf.advantage import final_rewards, grpo_advantages, rloo_advantages, token_rewards, whiten
from megagpt.rlhf.experience import Experience, Rollout
from megagpt.rlhf.kl import ESTIMATORS, KlController, kl_estimate, kl_loss
from megagpt.rlhf.loss import policy_loss, surrogate
from megagpt.rlhf.ppo import _describe
from megagpt.rlhf.running import RunningMoments
from megagpt.rlhf.score import advantages_of
from megagpt.rlhf.update import PpoBatch, policy_loss_of
from tests.helpers.spawn import run_ranks

VOCABULARY = 7


def distributions(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of pi, pi_old and pi_ref over a small vocabulary, float64 [V]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(3))


def kl_divergence(logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    logprobs, reference_logprobs = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference_logprobs)).sum()


# ---------------------------------------------------------------- KL estimators


def test_kl_estimators_by_hand():
    logprobs, reference_logprobs = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])  # d = 0.5, -1
    expected = {"k1": [0.5, -1.0], "k2": [0.125, 0.5], "k3": [math.exp(-0.5) - 0.5, math.e - 2.0]}
    for name, values in expected.items():
        assert kl_estimate(name, logprobs, reference_logprobs, torch.ones(2)).tolist() == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_mean_is_the_kl(estimator):
    pi, _, ref = distributions()
    logprobs = pi.log_softmax(-1)
    mean = (logprobs.exp() * kl_estimate(estimator, logprobs, ref.log_softmax(-1), torch.ones(VOCABULARY))).sum()
    assert float(mean) == pytest.approx(float(kl_divergence(pi, ref)), rel=1e-12)


def test_kl_estimator_k2_is_the_kl_to_second_order_only():
    pi, _, ref = distributions()
    errors = []
    for step in (1.0, 0.01, 0.001):
        near = pi + step * (ref - pi)  # the two distributions approach each other as step falls
        logprobs, reference_logprobs = pi.log_softmax(-1), near.log_softmax(-1)
        mean = (logprobs.exp() * kl_estimate("k2", logprobs, reference_logprobs, torch.ones(VOCABULARY))).sum()
        errors.append(abs(float(mean - kl_divergence(pi, near))))
    assert errors[0] > 1e-2
    assert errors[1] / errors[2] > 500  # cubic in the step: the KL itself falls by 100


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_estimators_are_never_negative(estimator):
    d = torch.linspace(-5, 5, 101)
    assert (ESTIMATORS[estimator](d) >= -1e-6).all()


def expected_gradient(estimator: str, logits: torch.Tensor, old: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """Of kl_loss with respect to the policy's logits, over a token drawn by pi_old."""
    logits = logits.clone().requires_grad_()
    logprobs, old_logprobs, mask = logits.log_softmax(-1), old.log_softmax(-1), torch.ones(1, dtype=torch.float64)
    tokens = zip(logprobs.split(1), old_logprobs.split(1), ref.log_softmax(-1).split(1))
    total = sum(before.exp().squeeze() * kl_loss(estimator, now, before, reference_logprob, mask) for now, before, reference_logprob in tokens)
    return torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_in_the_loss_has_an_unbiased_gradient_with_k1_and_k3(estimator, on_policy):
    pi, old, ref = distributions(1)
    exact = torch.autograd.functional.jacobian(lambda logits: kl_divergence(logits, ref), pi)
    error = (expected_gradient(estimator, pi, pi if on_policy else old, ref) - exact).abs().max()
    assert error > 1e-2 if estimator == "k2" else error < 1e-12


def test_kl_in_the_loss_leaves_hidden_tokens_alone():
    logprobs = torch.tensor([[-1.0, 300.0]], requires_grad=True)
    loss = kl_loss("k3", logprobs, torch.tensor([[-1.0, 0.0]]), torch.tensor([[-2.0, 900.0]]), torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-1.0), abs=1e-6) and logprobs.grad[0, 1] == 0


def test_kl_controller_trajectory_by_hand():
    controller, seen = KlController(KlConfig(coefficient=0.2, target=6.0, horizon=10_000)), []
    for kl in (6.0, 6.6, 30.0, 0.0, 5.4):  # errors 0, 0.1, 0.2 (clipped from 4), -0.2 (clipped from -1), -0.1
        controller.update(kl, 512)
        seen.append(controller.coefficient)
    factors = [1.0, 1 + 0.1 * 0.0512, 1 + 0.2 * 0.0512, 1 - 0.2 * 0.0512, 1 - 0.1 * 0.0512]
    assert seen == pytest.approx(list(0.2 * np.cumprod(factors)), rel=1e-12)


# ---------------------------------------------------------------- rewards


def test_reward_is_clipped_before_the_penalties_are_taken_off():
    scores, stopped, lengths = torch.tensor([9.0, 1.0, -9.0]), torch.tensor([True, False, False]), torch.tensor([2.0, 3.0, 10.0])
    final = final_rewards(scores, stopped, lengths, clip_reward=5.0, missing_eos_penalty=0.5, length_penalty=0.1)
    assert final.tolist() == pytest.approx([5.0 - 0.2, 1.0 - 0.5 - 0.3, -5.0 - 0.5 - 1.0])


def test_metrics_of_a_rollout_of_one_response_are_finite():
    """The doctor would take a deviation of nothing for broken weights."""
    rollout = Rollout(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([1]), torch.tensor([3]), torch.tensor([True]))
    row = torch.tensor([[0.5, -0.5]])
    experience = Experience(rollout, rollout.response_mask, row, row, torch.tensor([1.5]), row, row, row)
    metrics = _describe(experience)
    assert all(map(math.isfinite, metrics.values())) and (metrics["reward"], metrics["reward_std"]) == (1.5, 0.0)


def test_reward_never_lands_on_padding():
    """The last valid token gets it, whatever follows; a row's rewards sum to final - beta KL."""
    mask = torch.tensor([[0.0, 1, 1, 0, 0], [1.0, 1, 1, 1, 1]])
    rewards = token_rewards(torch.tensor([3.0, -2.0]), 0.5 * mask, mask, kl_coefficient=0.2)
    assert rewards.tolist() == [pytest.approx([0, -0.1, 2.9, 0, 0]), pytest.approx([-0.1, -0.1, -0.1, -0.1, -2.1])]


def test_running_moments_equal_those_of_everything_at_once():
    batches = [torch.randn(size, generator=torch.Generator().manual_seed(size)) * size for size in (3, 8, 1, 16)]
    running = RunningMoments()
    for batch in batches:
        running = RunningMoments(**running.state())  # as a resume does
        running.update(batch)
    whole = torch.cat(batches).double()
    assert running.mean == pytest.approx(float(whole.mean())) and running.variance == pytest.approx(float(whole.var(correction=0)))
    normalised = running.normalise(whole)
    assert float(normalised.mean()) == pytest.approx(0, abs=1e-7) and float(normalised.std(correction=0)) == pytest.approx(1)


# ---------------------------------------------------------------- advantages


def two_prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three responses each to two prompts, of returns 1, 3, 2 and 2, 2, 5, spread over their tokens; rewards and mask [6, 3]."""
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1]])
    returns = torch.tensor([1.0, 3, 2, 2, 2, 5])
    return mask * (returns / mask.sum(1))[:, None], mask


def test_grpo_advantage_by_hand():
    rewards, mask = two_prompts()
    std = [math.sqrt(2 / 3), math.sqrt(2)]
    with_std = grpo_advantages(rewards, mask, 3, divide_by_std=True)
    expected = torch.tensor([-1 / std[0], 1 / std[0], 0, -1 / std[1], -1 / std[1], 2 / std[1]])[:, None] * mask
    assert torch.allclose(with_std, expected, atol=1e-5)
    without = grpo_advantages(rewards, mask, 3, divide_by_std=False)
    assert torch.allclose(without, torch.tensor([-1.0, 1, 0, -1, -1, 2])[:, None] * mask, atol=1e-6)


def test_grpo_advantage_of_equal_responses_is_zero():
    mask = torch.ones(4, 2)
    assert grpo_advantages(torch.ones(4, 2), mask, 4, divide_by_std=True).abs().max() == 0


def test_rloo_advantage_by_hand():
    rewards, mask = two_prompts()
    expected = torch.tensor([1 - 2.5, 3 - 1.5, 2 - 2.0, 2 - 3.5, 2 - 3.5, 5 - 2.0])[:, None] * mask
    assert torch.allclose(rloo_advantages(rewards, mask, 3), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_critic_free_policy_gradient_in_expectation(kind):
    """Over all pairs of one-token responses: RLOO's is the gradient of E[R]; GRPO's without std is (k - 1) / k of it, as its baseline knows i."""
    pi, _, returns = distributions(2)
    probability = pi.softmax(-1)
    gradient = torch.zeros(VOCABULARY, dtype=torch.float64)
    for a in range(VOCABULARY):
        for b in range(VOCABULARY):
            rewards, mask = returns[[a, b]][:, None], torch.ones(2, 1, dtype=torch.float64)
            found = rloo_advantages(rewards, mask, 2) if kind == "rloo" else grpo_advantages(rewards, mask, 2, divide_by_std=False)
            for token, advantage in zip((a, b), found[:, 0]):
                slope = torch.nn.functional.one_hot(torch.tensor(token), VOCABULARY) - probability  # of log pi(token)
                gradient += probability[a] * probability[b] * advantage * slope / 2
    exact = torch.autograd.functional.jacobian(lambda logits: (logits.softmax(-1) * returns).sum(), pi)
    assert torch.allclose(gradient, exact * (1.0 if kind == "rloo" else 0.5), atol=1e-12)


@pytest.mark.parametrize("kind", ["gae", "grpo", "rloo"])
def test_advantage_of_the_configured_kind(kind):
    rewards, mask = two_prompts()
    ppo = PpoConfig(steps=1, micro_batch_size=1, advantage=kind, samples_per_prompt=3, rollout_batch_size=6, minibatch_size=6, gae_lambda=1.0)
    values = torch.zeros_like(rewards) if kind == "gae" else None
    advantages, returns = advantages_of(rewards, values, mask, ppo)
    if kind == "gae":  # lambda 1 and no values: the reward to go, whitened
        to_go = rewards.flip(1).cumsum(1).flip(1) * mask
        assert torch.allclose(returns, to_go, atol=1e-6) and torch.allclose(advantages, whiten(to_go, mask), atol=1e-5)
    else:
        assert returns is None
        assert torch.equal(advantages, rloo_advantages(rewards, mask, 3) if kind == "rloo" else grpo_advantages(rewards, mask, 3, divide_by_std=True))


# ---------------------------------------------------------------- the policy's loss


OPEN = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": math.inf, "clamp_log_ratio": math.inf}


def surrogate_of(ratios, advantages, **clips):
    logprobs = torch.log(torch.tensor([ratios])).requires_grad_()
    loss, report = surrogate(logprobs, torch.zeros(1, len(ratios)), torch.tensor([advantages]), torch.ones(1, len(ratios)), **{**OPEN, **clips})
    loss.backward()
    return loss.item(), logprobs.grad[0].tolist(), report.tolist()


def test_policy_loss_without_further_clips_is_the_fused_formula():
    logprobs, old, advantages = (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    mask = (torch.rand(3, 5, generator=torch.Generator().manual_seed(3)) > 0.3).float()
    ours, report = surrogate(logprobs, old, advantages, mask, **OPEN)
    theirs, their_report = reference.ppo_policy_loss(logprobs, old, advantages, mask, 0.2)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6) and torch.allclose(report, their_report)


def test_asymmetric_clip_by_hand():
    # A = 1: min(1.25, 1.25) inside the wider upper bound, 1.28 beyond it; A = -1: clipped below at 0.8.
    loss, slope, report = surrogate_of([1.25, 1.5, 0.5], [1.0, 1.0, -1.0], clip_high=0.28)
    assert loss == pytest.approx(-(1.25 + 1.28 - 0.8), abs=1e-6)
    assert slope == pytest.approx([-1.25, 0, 0], abs=1e-6) and report[0] == 2


def test_dual_clip_by_hand():
    # rho A = -5 and -2 for A = -1, bounded below by c A = -3; positive advantages are not touched.
    loss, slope, _ = surrogate_of([5.0, 2.0, 5.0], [-1.0, -1.0, 1.0], dual_clip=3.0)
    assert loss == pytest.approx(3.0 + 2.0 - 1.2, abs=1e-6)
    assert slope == pytest.approx([0, 2.0, 0], abs=1e-6)


def test_log_ratio_clamp_by_hand():
    loss, slope, _ = surrogate_of([math.exp(4.0), 1.1], [-1.0, -1.0], clamp_log_ratio=2.0)
    assert loss == pytest.approx(math.exp(2.0) + 1.1, rel=1e-6)
    assert slope == pytest.approx([0, 1.1], abs=1e-6)


def test_policy_loss_takes_the_further_clips():
    logprobs, old, mask = torch.tensor([[math.log(5.0)]]), torch.zeros(1, 1), torch.ones(1, 1)
    minus, plus = -torch.ones(1, 1), torch.ones(1, 1)
    assert policy_loss(logprobs, old, minus, mask, 0.2, dual_clip=3.0)[0].item() == pytest.approx(3.0)
    assert policy_loss(logprobs, old, plus, mask, 0.2, clip_ratio_high=0.5)[0].item() == pytest.approx(-1.5)
    assert policy_loss(logprobs, old, minus, mask, 0.2, clamp_log_ratio=1.0)[0].item() == pytest.approx(math.e)
    assert policy_loss(logprobs, old, minus, mask, 0.2)[0].item() == pytest.approx(5.0)


# ---------------------------------------------------------------- whitening over ranks


def whitened_here(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As PPO does it: each rank has computed its rows, all ranks get all of them, and each whitens the whole."""
    grid, rank = Grid(dp=dist.get_world_size()), dist.get_rank()
    mine = replica_rows(len(values), grid, rank)
    shared = share_rows(values[mine.start : mine.stop], grid, tuple(values.shape), torch.float32, torch.device("cpu"))
    return whiten(shared, mask)


def test_whitening_over_four_ranks_equals_one_rank():
    generator = torch.Generator().manual_seed(5)
    # Ranks differ in mean, and in their number of tokens, so that a mean of the ranks' means would be another one.
    values = torch.randn(8, 6, generator=generator) + torch.arange(8.0)[:, None]
    mask = (torch.arange(6)[None] < torch.tensor([1, 1, 2, 3, 4, 5, 6, 6])[:, None]).float()
    expected = whiten(values, mask)
    apart = torch.cat([whiten(values[i : i + 2], mask[i : i + 2]) for i in range(0, 8, 2)])
    assert (apart - expected).abs().max() > 0.5
    for found in run_ranks(4, whitened_here, values, mask):
        assert torch.equal(found, expected)


# ---------------------------------------------------------------- all of it together


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_policy_loss_of_the_configuration_by_hand(where):
    """From logits: the surrogate, less 0.3 entropies, and with the KL where that is in the loss; nothing outside the response."""
    generator = torch.Generator().manual_seed(7)
    logits, tokens = torch.randn(2, 5, VOCABULARY, generator=generator), torch.randint(0, VOCABULARY, (2, 5), generator=generator)
    old, ref, advantages = (torch.randn(2, 4, generator=generator) - 2.0 for _ in range(3))
    mask = torch.tensor([[0.0, 1, 1, 0], [0.0, 0, 1, 1]])
    config = RlhfConfig(
        run=RunConfig(name="toy"), placement=PlacementConfig(policy=RoleConfig(ranks=[0]), reference=RoleConfig(ranks=[0])),
        prompts=PromptsConfig(files=["prompts.jsonl"], max_prompt_length=1, max_response_length=1), kl=KlConfig(where=where, estimator="k3"),
        ppo=PpoConfig(steps=1, micro_batch_size=1, temperature=0.7, entropy_coefficient=0.3),
    )  # fmt: skip
    model = SimpleNamespace(groups=SimpleNamespace(collection=SimpleNamespace(tp=None)), shape=SimpleNamespace(vocab_size=VOCABULARY))
    batch = PpoBatch(tokens, torch.arange(2), mask, old, ref, advantages, None, None)
    loss, report = policy_loss_of(SimpleNamespace(model=model), config, kl_coefficient=0.5)(logits[batch.only][None], batch)

    expected, entropies = 0.0, 0.0
    for row, place in mask.nonzero().tolist():
        p = (logits[row, place].double() / 0.7).softmax(-1)
        new, reference_p = p[tokens[row, place + 1]], ref[row, place].double().exp()
        ratio, advantage = new / old[row, place].double().exp(), float(advantages[row, place])
        expected -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        entropies += -(p * p.log()).sum()
        expected += 0.5 * ratio * (reference_p / new - 1 - (reference_p / new).log()) if where == "loss" else 0.0
    assert loss.item() == pytest.approx(float(expected - 0.3 * entropies), rel=1e-5)
    assert report["entropy"].item() == pytest.approx(float(entropies), rel=1e-5) and report["policy_loss"].item() == loss.item()
