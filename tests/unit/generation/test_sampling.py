"""Choosing a token: truncation, the distribution of the draws, counters, refused settings."""

import numpy as np
import pytest
import torch

from megagpt.generation.sample import SampleError, Sampling, choose
from megagpt.kernels.reference import truncated

V = 50


def some_logits(rows: int = 20) -> torch.Tensor:
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def kept(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    return truncated(logits, top_k, top_p).isfinite()


@pytest.mark.parametrize("k", [1, 2, 7, V - 1])
def test_sampling_top_k_keeps_the_k_largest(k):
    logits = some_logits()
    mask = kept(logits, top_k=k)
    assert (mask.sum(dim=-1) == k).all()
    assert (logits.masked_fill(~mask, torch.inf).amin(dim=-1) > logits.masked_fill(mask, -torch.inf).amax(dim=-1)).all()


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_sampling_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = some_logits()
    probability, mask = logits.softmax(dim=-1), kept(logits, top_p=p)
    inside = (probability * mask).sum(dim=-1)
    least = probability.masked_fill(~mask, 2.0).amin(dim=-1)
    assert (inside >= p).all(), "the set reaches p"
    assert (inside - least < p).all(), "without its least likely token it would not"
    assert (least > probability.masked_fill(mask, 0.0).amax(dim=-1)).all(), "and it holds the most likely tokens"


@pytest.mark.parametrize(("k", "p"), [(0, 1.0), (V, 1.0), (V + 5, 1.0)])
def test_sampling_without_truncation_changes_nothing(k, p):
    logits = some_logits()
    assert torch.equal(truncated(logits, k, p), logits)


def test_sampling_truncation_leaves_the_kept_logits_alone():
    logits = some_logits()
    mask = kept(logits, top_k=10, top_p=0.8)
    assert torch.equal(truncated(logits, 10, 0.8)[mask], logits[mask])
    assert (kept(logits, top_k=10) >= mask).all() and mask.any(dim=-1).all()


def draw(logits: torch.Tensor, sampling: Sampling, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`num` draws from one row of logits, one for each prompt id."""
    zeros = np.zeros(num, dtype=np.int64)
    return choose(logits.expand(num, -1), sampling, np.arange(num), zeros, zeros)


def assert_distributed(tokens: torch.Tensor, probability: torch.Tensor) -> None:
    """Pearson's statistic within five standard deviations of its mean; the draws are the same in every run."""
    support = probability > 0
    counts = torch.bincount(tokens, minlength=len(probability)).double()
    assert counts[~support].sum() == 0
    expected = len(tokens) * probability[support]
    freedom = support.sum().item() - 1
    statistic = ((counts[support] - expected) ** 2 / expected).sum().item()
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_draws_from_softmax_of_logits_over_temperature(temperature):
    (logits,) = 0.5 * some_logits(1)
    tokens, logprobs = draw(logits, Sampling(temperature=temperature), 40_000)
    expected = (logits / temperature).log_softmax(dim=-1)
    assert_distributed(tokens, expected.exp())
    torch.testing.assert_close(logprobs, expected[tokens].float())


def test_sampling_draws_from_the_truncated_distribution_and_reports_the_whole_one():
    (logits,) = some_logits(1)
    tokens, logprobs = draw(logits, Sampling(temperature=1.5, top_k=8, top_p=0.9), 20_000)
    assert_distributed(tokens, truncated(logits[None] / 1.5, 8, 0.9)[0].softmax(dim=-1))
    torch.testing.assert_close(logprobs, (logits / 1.5).log_softmax(dim=-1)[tokens].float())


@pytest.mark.parametrize("counter", ["seed", "prompt", "sample", "position"])
def test_sampling_counters_give_independent_draws(counter):
    logits, num = torch.zeros(1, V), 5000
    numbers = {name: np.zeros(num, dtype=np.int64) for name in ("prompt", "sample", "position")}
    if counter == "seed":
        tokens = torch.cat([choose(logits, Sampling(seed=i), *(n[:1] for n in numbers.values()))[0] for i in range(num)])
    else:
        tokens, _ = choose(logits.expand(num, -1), Sampling(), *(numbers | {counter: np.arange(num)}).values())
    assert_distributed(tokens, torch.full((V,), 1 / V, dtype=torch.float64))
    repeats = (tokens[1:] == tokens[:-1]).double().mean().item()
    assert repeats == pytest.approx(1 / V, abs=5 * (1 / V / num) ** 0.5), "neighbours do not resemble each other"


def test_sampling_of_a_row_ignores_the_other_rows():
    logits, ids = some_logits(6), np.arange(6)
    together, _ = choose(logits, Sampling(seed=5), ids, ids, ids)
    alone = [choose(logits[i : i + 1], Sampling(seed=5), ids[i : i + 1], ids[i : i + 1], ids[i : i + 1])[0].item() for i in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(temperature=0.0, top_k=3, top_p=0.5), Sampling(top_k=1), Sampling(top_p=1e-9)], ids=str
)
def test_sampling_greedily_takes_the_largest_logit(sampling):
    logits, zeros = some_logits(), np.zeros(20, dtype=np.int64)
    tokens, logprobs = choose(logits, sampling, zeros, zeros, zeros)
    assert torch.equal(tokens, logits.argmax(dim=-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(dim=-1).amax(dim=-1).float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_sampling_from_broken_logits_is_one_line(value):
    logits, zeros = some_logits(2).float(), np.zeros(2, dtype=np.int64)
    logits[1, 3] = value
    with pytest.raises(SampleError, match="a row of logits holds NaN or infinity"):
        choose(logits, Sampling(), zeros, zeros, zeros)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1: must be"),
        ({"temperature": float("nan")}, "temperature = nan: must be"),
        ({"temperature": float("inf")}, "temperature = inf: must be"),
        ({"top_k": -1}, "top_k = -1: must be"),
        ({"top_p": 0.0}, "top_p = 0.0: must be"),
        ({"top_p": 1.1}, "top_p = 1.1: must be"),
    ],
)
def test_sampling_refuses_settings_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        Sampling(**settings)
    assert "\n" not in str(refused.value)
