"""sample: the reference and the kernels (those for the CPU and, emulated, those for CUDA) against a plain sort in float64; ties, limits, bad rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from megagpt.generation.sample import Sampling, choose
from megagpt.kernels.sample import sample
from megagpt.runtime.random import uniform
from tests.helpers.kernels import (
    DTYPES,
    VERY_WIDE,
    WIDTHS,
    assert_same_bits_for_any_number_of_threads,
    assert_same_bits_under_any_schedule,
    assert_within_budget,
    bytes_moved,
    emulated,
)

MARGIN = 4e-6
"""How far from a step of the cumulative distribution float32 and float64 may part: the 20 ulp of the CPU's fast exponential are 1.2e-6 of a
probability, and that of all kept may be as wrong the other way; a temperature of 0.7 makes one ulp of a logit of 16 worth another 1.4e-6."""
LAST = 1 - 2**-53
"""The largest draw."""
TRUNCATIONS = [(0, 1.0), (7, 1.0), (0, 0.9), (40, 0.5), (3, 0.999), (1, 1.0), (0, 1e-9)]


@pytest.fixture(params=["reference", "fused", "emulated", pytest.param("device", marks=pytest.mark.gpu)])
def implementation(request) -> str:
    """As `kernels`, and the reference as well."""
    if request.param == "emulated":
        with emulated():
            yield "fused"
    elif request.param == "device":
        with torch.device("cuda"):
            yield "fused"
    else:
        yield request.param


def probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[np.ndarray, float]:
    """Of the tokens of one row after truncation, and how far the sum that decides on top_p stays from it."""
    y = logits.double().cpu().numpy() / temperature
    order = np.argsort(-y, kind="stable")
    weight = np.exp(y - y.max())
    if 0 < top_k < len(y):
        weight[y < y[order[top_k - 1]]] = 0
    reached = np.cumsum(weight[order]) / weight.sum()
    distance = math.inf
    if top_p < 1:
        last = np.searchsorted(reached, top_p)  # the first token up to which p is reached
        distance = np.abs(reached[max(0, last - 1) : last + 1] - top_p).min()
        weight[order[last + 1 :]] = 0
    return weight / weight.sum(), distance


def assert_drawn(logits: Tensor, draws: Tensor, tokens: Tensor, margin: float, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
    """Every token is the one whose step of the cumulative distribution holds the draw, or one beside it within the margin."""
    undecided = 0
    for row, draw, token in zip(logits, draws.tolist(), tokens.tolist()):
        probability, distance = probabilities(row, temperature, top_k, top_p)
        if distance <= margin:
            undecided += 1
            continue
        up_to = np.cumsum(probability)
        assert 0 <= token < len(probability) and probability[token] > 0
        assert up_to[token] - probability[token] - margin <= draw <= up_to[token] + margin
    assert undecided <= max(1, len(tokens) // 10)


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("width", [1, 31, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_token_is_where_the_cumulative_distribution_passes_the_draw(implementation, dtype, width, truncation):
    logits, draws = (3 * torch.randn(20, width)).to(dtype), torch.rand(20, dtype=torch.float64)
    for temperature in (1.0, 0.7):
        tokens, _ = sample(logits, draws, temperature=temperature, top_k=truncation[0], top_p=truncation[1], implementation=implementation)
        assert_drawn(logits, draws, tokens, 1e-12 if implementation == "reference" else MARGIN, temperature, *truncation)


@pytest.mark.parametrize("width", [50257, VERY_WIDE])
def test_vocabularies(kernels, width):
    logits, draws = 3 * torch.randn(2, width), torch.rand(2, dtype=torch.float64)
    for truncation in ((0, 1.0), (50, 0.95)):
        tokens, _ = sample(logits, draws, top_k=truncation[0], top_p=truncation[1], implementation="fused")
        assert_drawn(logits, draws, tokens, MARGIN, 1.0, *truncation)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logprob_within_error_budget(kernels, dtype, width):
    logits, draws = (3 * torch.randn(3, width)).to(dtype), torch.rand(3)
    tokens, logprobs = sample(logits, draws, temperature=0.7, top_k=5, implementation="fused")
    plain, exact = ((x / 0.7).log_softmax(-1).gather(-1, tokens[:, None])[:, 0] for x in (logits.float(), logits.double()))
    assert_within_budget({"logprob": logprobs}, {"logprob": plain}, {"logprob": exact})


def test_every_token_has_its_share(implementation):
    """A draw in the middle of each step, whichever warp and lane has the token."""
    logits = torch.randn(1000)
    probability, _ = probabilities(logits, 1.0, 0, 1.0)
    middle, chosen = torch.as_tensor(np.cumsum(probability) - probability / 2), torch.arange(0, 1000, 3)
    tokens, _ = sample(logits.expand(len(chosen), -1), middle[chosen], implementation=implementation)
    assert torch.equal(tokens, chosen)


def test_same_tokens_as_generation(implementation):
    logits, ids, zeros = 3 * torch.randn(60, 97), np.arange(60), np.zeros(60, dtype=np.int64)
    for settings in (Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=3), Sampling(temperature=0.0)):
        draws = torch.as_tensor(uniform(settings.seed, ids, zeros, zeros))
        tokens, logprobs = sample(
            logits, draws, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, implementation=implementation
        )
        expected, expected_logprobs = choose(logits, settings, ids, zeros, zeros)
        assert torch.equal(tokens, expected)  # no draw happens to lie within the margin
        torch.testing.assert_close(logprobs, expected_logprobs)


def test_steps_between_tokens_belong_to_the_later_one(implementation):
    """Powers of two, so that every sum is exact; not a multiple of the warps' parts."""
    draws = torch.arange(64, dtype=torch.float64) / 64
    logits = torch.zeros(64, 64)
    assert torch.equal(sample(logits, draws, implementation=implementation)[0], torch.arange(64))
    assert torch.equal(sample(logits, draws + 1 / 128, implementation=implementation)[0], torch.arange(64))
    just_below = torch.as_tensor(np.nextafter(draws[1:].cpu().numpy(), 0.0))
    assert torch.equal(sample(logits[1:], just_below, implementation=implementation)[0], torch.arange(63))


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_top_k_keeps_all_that_equal_the_last(implementation, top_k):
    logits = torch.tensor([1.0, 2.0, 3.0, 2.0, 2.0, -math.inf]).expand(40, -1)
    tokens, _ = sample(logits, torch.arange(40) / 40, top_k=top_k, implementation=implementation)
    assert set(tokens.tolist()) == ({2} if top_k == 1 else {1, 2, 3, 4})


def test_top_p_counts_the_first_of_equal_tokens_first(implementation):
    logits = torch.zeros(8)
    logits[5] = math.log(2)  # 2/9, and 1/9 for each of the others
    for top_p, expected in ((0.2, {5}), (0.3, {5, 0}), (0.4, {5, 0, 1}), (0.85, {5, 0, 1, 2, 3, 4, 6})):
        tokens, _ = sample(logits.expand(50, -1), torch.arange(50) / 50, top_p=top_p, implementation=implementation)
        assert set(tokens.tolist()) == expected, top_p


def test_equal_tokens_in_a_long_row(implementation):
    """The first 700 of 2048 equal ones: cut in the middle of a warp's part, and of a step of its lanes."""
    logits = torch.zeros(2, 2048)
    tokens, _ = sample(logits, torch.tensor([0.0, LAST], dtype=torch.float64), top_p=700 / 2048, implementation=implementation)
    assert tokens.tolist() == [0, 699]


def test_equal_tokens_are_passed_over_behind_the_cut(implementation):
    """Likelier tokens stand between and behind the equal ones, of which not all are kept; the draws fall where the steps of those begin."""
    logits, likelier = torch.zeros(2048), torch.arange(20, 2048, 97)
    logits[likelier] = 5.0
    of_likelier = len(likelier) * math.exp(5.0)
    for number in (0.5, 300.5, 700.5, 1500.5):
        top_p = (of_likelier + number) / (of_likelier + 2048 - len(likelier))
        probability, _ = probabilities(logits, 1.0, 0, top_p)
        draws = torch.as_tensor(np.cumsum(probability) - probability)[likelier] + 1e-4
        tokens, _ = sample(logits.expand(len(likelier), -1), draws, top_p=top_p, implementation=implementation)
        assert torch.equal(tokens, likelier)


def test_top_k_then_top_p_of_neighbouring_numbers(implementation):
    """Logits of which each is the next number of float32: where they are cut shows in their keys alone."""
    logits = torch.full((50, 40), 1.0)
    logits[:, 1::2] = np.nextafter(np.float32(1), np.float32(2)).item()
    for settings, last in (({"top_k": 20}, 39), ({"top_k": 20, "top_p": 0.501}, 21), ({"top_p": 0.251}, 21), ({"top_p": 0.751}, 39)):
        tokens, _ = sample(logits, torch.arange(50) / 50, implementation=implementation, **settings)
        assert tokens.max() == last
        assert_drawn(logits, torch.arange(50) / 50, tokens, MARGIN, **settings)


def test_minus_zero_equals_zero(implementation):
    logits = torch.tensor([[-0.0, 0.0, -1.0], [0.0, -0.0, -1.0]])
    assert sample(logits, torch.full((2,), 0.9), top_k=1, implementation=implementation)[0].tolist() == [1, 1]
    assert sample(logits, torch.full((2,), 0.9), temperature=0.0, implementation=implementation)[0].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy_takes_the_first_of_the_largest(implementation, dtype):
    logits = torch.randn(9, 700).to(dtype)
    logits[3, [600, 90, 650]] = logits[4, [0, 699]] = 9.0
    tokens, logprobs = sample(logits, torch.rand(9), temperature=0.0, top_k=3, top_p=0.5, implementation=implementation)
    assert torch.equal(tokens, logits.argmax(-1)) and tokens[3] == 90 and tokens[4] == 0
    torch.testing.assert_close(logprobs, logits.double().log_softmax(-1).amax(-1).float())


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.99}, {"top_k": 5, "top_p": 0.9}], ids=str)
def test_impossible_tokens_are_never_drawn(implementation, settings):
    logits = torch.full((2, 600), -math.inf)
    logits[:, 100:103] = torch.tensor([0.5, 0.0, 0.5])
    tokens, logprobs = sample(logits, torch.tensor([0.0, LAST], dtype=torch.float64), implementation=implementation, **settings)
    assert tokens.tolist() == [100, 102]
    torch.testing.assert_close(logprobs.double(), logits[0, 100:103].double().log_softmax(-1)[[0, 2]], rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settings", [{}, {"top_k": 2, "top_p": 0.9}], ids=str)
def test_rows_without_a_distribution(implementation, temperature, settings):
    logits = torch.randn(7, 70)
    logits[1] = -math.inf
    logits[2, 69], logits[3, 0] = math.inf, math.nan
    logits[4] = math.nan
    logits[5, 3], logits[5, 40] = math.inf, math.nan
    tokens, logprobs = sample(logits, torch.rand(7), temperature=temperature, implementation=implementation, **settings)
    assert (tokens[1:6] == -1).all() and logprobs[1:6].isnan().all()
    assert (tokens[[0, 6]] >= 0).all() and logprobs[[0, 6]].isfinite().all()


def test_draws_outside_of_the_interval_stay_inside_of_the_row(kernels):
    draws = torch.tensor([-1.0, -math.inf, math.nan, 1.0, 2.0, 1e300, math.inf], dtype=torch.float64)
    for width in (1, 40):
        tokens, _ = sample(torch.zeros(7, width), draws, implementation="fused")
        assert tokens.tolist() == [0] * 3 + [width - 1] * 4


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e3, 1e30])
def test_extreme_temperatures_and_logits(implementation, temperature):
    logits = torch.tensor([[-3e38, 3e38, 0.0, 3e38], [1.0, 2.0, 4.0, 3.0], [-1e-40, -1e-41, 0.0, -1e-42]])
    tokens, logprobs = sample(logits, torch.full((3,), 0.6), temperature=temperature, implementation=implementation)
    assert tokens.tolist() == [3, 2, 2]
    assert logprobs.isfinite().all()


def test_strides_do_not_matter(kernels):
    base = 3 * torch.randn(4, 5, 73)
    for logits in (base.transpose(0, 1), base[:, :-1], base[..., 3:], base[..., ::2], base[:1].expand(3, 5, -1), base[0, 0]):
        draws = torch.rand(logits.shape[:-1])
        ours, theirs = (sample(x, draws, temperature=0.9, top_k=9, top_p=0.9, implementation="fused") for x in (logits, logits.contiguous()))
        assert ours[0].shape == ours[1].shape == draws.shape
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("shape", [(0, 9), (2, 0, 9), (9,), (2, 3, 4, 9)])
def test_any_leading_shape(implementation, shape):
    logits, draws = torch.randn(shape), torch.rand(shape[:-1])
    tokens, logprobs = sample(logits, draws, implementation=implementation)
    assert tokens.shape == logprobs.shape == shape[:-1]
    assert (tokens.dtype, logprobs.dtype) == (torch.int64, torch.float32)
    expected = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(logprobs, expected)


def sampled(logits, draws) -> dict[str, torch.Tensor]:
    return dict(zip(("tokens", "logprobs"), sample(logits, draws, top_k=100, top_p=0.9, implementation="fused")))


def test_same_for_any_number_of_threads():
    logits, draws = torch.randn(40, 3001), torch.rand(40)
    assert_same_bits_for_any_number_of_threads(lambda: sampled(logits, draws))


def test_same_in_any_batch():
    logits, draws = torch.randn(40, 3001), torch.rand(40)
    alone = [sampled(logits[row : row + 1], draws[row : row + 1]) for row in range(40)]
    for name, together in sampled(logits, draws).items():
        assert torch.equal(together, torch.cat([one[name] for one in alone])), name


def test_same_under_any_schedule():
    logits, draws = torch.randn(4, 1003).bfloat16(), torch.rand(4)
    assert_same_bits_under_any_schedule(lambda: sampled(logits, draws))


def test_more_than_2_31_elements():
    """Only the last row is there: memory that is never touched costs none."""
    rows, width = 2**21 + 1, 1024
    logits, draws = torch.empty(rows, width, dtype=torch.float16), torch.empty(rows, dtype=torch.float64)
    logits[-1], draws[-1] = 3 * torch.randn(width), 0.7
    with emulated(only_block=rows - 1):
        tokens, _ = sample(logits, draws, top_p=0.9, implementation="fused")
    assert_drawn(logits[-1:], draws[-1:], tokens[-1:], MARGIN, top_p=0.9)


@pytest.mark.parametrize("top_k, top_p, readings", [(0, 1.0, 2), (9, 1.0, 6), (0, 0.9, 6), (9, 0.9, 10)])
def test_readings_of_a_row(top_k, top_p, readings):
    logits = torch.randn(4, 4096).bfloat16()
    moved = bytes_moved(lambda: sample(logits, torch.rand(4), top_k=top_k, top_p=top_p, implementation="fused"))
    assert readings < moved / logits.nbytes <= readings + 1 / 16


def test_opcheck():
    logits, draws = torch.randn(3, 4, 33), torch.rand(3, 4, dtype=torch.float64)
    for dtype in DTYPES:
        torch.library.opcheck(torch.ops.megagpt.sample, (logits.to(dtype), draws, 0.7, 5, 0.9))
    torch.library.opcheck(torch.ops.megagpt.sample, (logits.transpose(0, 1), draws.transpose(0, 1), 0.0, 0, 1.0))


def test_has_no_gradient(implementation):
    logits = torch.randn(2, 9, requires_grad=True)
    assert not sample(logits, torch.rand(2), implementation=implementation)[1].requires_grad
    with pytest.raises(NotImplementedError, match="sample has no gradient"):
        torch.ops.megagpt.sample(logits, torch.rand(2, dtype=torch.float64), 1.0, 0, 1.0)[1].sum().backward()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"logits": torch.zeros(2, 8, dtype=torch.float64)}, "logits is Double; it must be float32, float16 or bfloat16"),
        ({"logits": torch.zeros(2, 0)}, r"logits has shape \[2, 0\]; its width must be in \[1, 8388608\]"),
        ({"logits": torch.zeros(1).expand(2, 2**23 + 1)}, "logits has stride 0 along its last dimension; it must be 1"),
        ({"logits": torch.zeros(2, 16)[:, ::2]}, "logits has stride 2 along its last dimension; it must be 1"),
        ({"draws": torch.zeros(3, dtype=torch.float64)}, r"draws has shape \[3\]; it must be \[2\]"),
        ({"draws": torch.zeros(2)}, "draws is Float; it must be Double"),
        ({"temperature": -0.5}, r"temperature is -0.5; it must be 0 \(greedy\), or positive and finite in float32"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"top_k": -1}, r"top_k is -1; it must be 0 \(off\) or more"),
        ({"top_p": 0.0}, r"top_p is 0; it must be in \(0, 1\]"),
        ({"top_p": math.nan}, "top_p is nan"),
    ],
)
def test_refuses(change, message):
    arguments = {"logits": torch.zeros(2, 8), "draws": torch.zeros(2, dtype=torch.float64), "temperature": 1.0, "top_k": 0, "top_p": 1.0} | change
    with pytest.raises(RuntimeError, match="sample: " + message):
        torch.ops.megagpt.sample(*arguments.values())
