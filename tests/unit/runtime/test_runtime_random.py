"""Counter-based random numbers: functions of the counters alone, and random to look at along each of them."""

import numpy as np
import pytest
import torch

from megagpt.runtime.random import generator, hash_counters, uniform

COUNT = 100_000
LINES = {
    "last": lambda i: (1234, i),
    "first": lambda i: (i, 1234),
    "middle": lambda i: (7, 3, i, 0),
    "pairs": lambda i: (1234, i // 300, i % 300),
    "multiples_of_4096": lambda i: (1234, i * 4096, 1),
    "hashes": lambda i: (0, hash_counters(5, i) >> np.uint64(1), 2),
}
"""Ways to walk through the counters: seeds, prompt ids, sample numbers, positions."""


@pytest.fixture(params=LINES, ids=list(LINES))
def draws(request):
    return uniform(*LINES[request.param](np.arange(COUNT)))


def test_random_is_uniform(draws):
    """Mean and variance within 5 standard errors; chi-square over 100 bins, 99 degrees of freedom, at 1 in a million."""
    assert 0 <= draws.min() and draws.max() < 1
    assert abs(draws.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / COUNT)
    assert abs(draws.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / COUNT)
    counts = np.bincount((draws * 100).astype(int), minlength=100)
    assert ((counts - COUNT / 100) ** 2 / (COUNT / 100)).sum() < 177


@pytest.mark.parametrize("lag", [1, 2, 16, 300])
def test_random_neighbours_are_independent(draws, lag):
    assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 5 / np.sqrt(COUNT)


def test_random_every_output_bit_is_fair_and_every_input_bit_matters():
    words = hash_counters(3, np.arange(COUNT))
    bits = np.arange(64, dtype=np.uint64)
    share = ((words[:, None] >> bits) & np.uint64(1)).mean(axis=0)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(COUNT)

    changed = hash_counters(3, 77) ^ hash_counters(3, np.uint64(77) ^ (np.uint64(1) << bits))
    flipped = [int(word).bit_count() for word in changed]
    assert 12 < min(flipped) and max(flipped) < 52 and 29 < np.mean(flipped) < 35  # 32 +- 4 of 64


def test_random_no_two_counters_share_a_number():
    i = np.arange(COUNT)
    assert len(np.unique(np.concatenate([hash_counters(1, i), hash_counters(2, i), hash_counters(i, 1), hash_counters(1, i, 0)]))) >= 4 * COUNT - 2
    # (1, 1) and (2, 1) are in there twice
    assert hash_counters(1, 2) != hash_counters(2, 1), "places are told apart"
    assert hash_counters(1) != hash_counters(1, 0)


def test_random_does_not_depend_on_batch_order_or_type():
    prompts, positions = np.array([5, 3, 5, 9]), np.array([0, 1, 2, 7])
    together = uniform(11, prompts, 0, positions)
    assert together.dtype == np.float64 and together.shape == (4,)
    assert together.tolist() == [float(uniform(11, int(prompt), 0, int(position))) for prompt, position in zip(prompts, positions)]
    order = np.array([2, 0, 3, 1])
    assert (uniform(11, prompts[order], 0, positions[order]) == together[order]).all()
    assert (uniform(11, prompts.astype(np.int32), np.uint8(0), positions.astype(np.uint64)) == together).all()


def test_random_broadcasts():
    table = hash_counters(1, np.arange(3)[:, None], np.arange(4))
    assert table.shape == (3, 4) and table.dtype == np.uint64
    assert table[2, 3] == hash_counters(1, 2, 3)


def test_random_large_and_negative_counters():
    assert hash_counters(2**63 - 1) != hash_counters(2**62)
    assert hash_counters(-1) == hash_counters(2**64 - 1)  # two's complement, without a warning or an error


def test_random_numbers_stay_the_same_from_version_to_version():
    """A run that is repeated years later draws what it drew."""
    assert [int(hash_counters(*counters)) for counters in ((0,), (1, 2, 3), (1234, 0, 7, 5))] == [
        12035550249420947055, 8946099157182655218, 7245654496803764714,
    ]
    assert uniform(1234, 0, 7, 5) == pytest.approx(0.3927877173257003, abs=1e-16)


def test_random_generators_are_functions_of_their_counters():
    def stream(*counters):
        return torch.rand(1000, generator=generator(*counters))

    assert torch.equal(stream(1, 2), stream(1, 2))
    assert not torch.equal(stream(1, 2), stream(2, 1))
    assert abs(torch.corrcoef(torch.stack([stream(1, 2), stream(1, 3)]))[0, 1]) < 0.16


def test_random_leaves_the_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    uniform(1, np.arange(10))
    generator(1, 2)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
