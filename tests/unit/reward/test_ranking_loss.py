"""The K-way ranking loss against brute force, closed forms and hand-computed cases, and that every prompt weighs the same."""

import itertools
import math

import numpy as np
import pytest
import torch

from megagpt.data.batch import encoded_row
from megagpt.data.ranking import EncodedGroup, ranked_pairs
from megagpt.data.ranking_batch import pack, replica_batches
from megagpt.data.records import Ranking
from megagpt.parallel.grid import Coordinates, Grid
from megagpt.reward.loss import ranking_loss
from megagpt.reward.normalise import score_statistics
from tests.helpers.tolerance import FINITE_DIFFERENCE_ABSOLUTE, FINITE_DIFFERENCE_STEP, FLOAT64_ABSOLUTE


def some_ranks(size: int, seed: int) -> list[int | None]:
    """Random ranks with ties and answers without a rank; at least two different ranks."""
    generator = np.random.default_rng([size, seed])
    while True:
        ranks = [None if generator.random() < 0.15 else int(rank) for rank in generator.integers(0, max(2, size - 2), size)]
        if len({rank for rank in ranks if rank is not None}) > 1:
            return ranks


def loss_of(scores, ranks, **terms):
    """The product's loss of one prompt, every pair weighing 1 / pairs."""
    pairs = ranked_pairs(ranks)
    winners, losers = (torch.tensor(side) for side in zip(*pairs))
    return ranking_loss(scores, winners, losers, torch.full((len(pairs),), 1 / len(pairs), dtype=scores.dtype), **terms)


def brute_force(scores, ranks) -> float:
    """Mean of log(1 + exp(worse - better)) over all ordered answers of which the first has the smaller rank."""
    known = [(rank, score) for rank, score in zip(ranks, scores, strict=True) if rank is not None]
    losses = [math.log1p(math.exp(worse - better)) for (first, better), (second, worse) in itertools.product(known, known) if first < second]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("size", range(2, 10))
def test_kway_loss_and_gradient_equal_brute_force(size):
    for seed in range(5):
        ranks = some_ranks(size, seed)
        scores = torch.from_numpy(np.random.default_rng(seed).normal(size=size)).requires_grad_()
        loss, _ = loss_of(scores, ranks)
        loss.backward()
        values = scores.tolist()
        assert loss.item() == pytest.approx(brute_force(values, ranks), abs=FLOAT64_ABSOLUTE)
        closed, num_pairs = [0.0] * size, 0
        for i, j in itertools.permutations(range(size), 2):
            if ranks[i] is not None and ranks[j] is not None and ranks[i] < ranks[j]:
                num_pairs += 1
                surprise = 1 / (1 + math.exp(values[i] - values[j]))  # 1 - sigma(difference)
                closed[i] -= surprise
                closed[j] += surprise
        assert scores.grad.tolist() == pytest.approx([part / num_pairs for part in closed], abs=FLOAT64_ABSOLUTE)
        for i in range(size):
            up, down = ([value + sign * FINITE_DIFFERENCE_STEP * (j == i) for j, value in enumerate(values)] for sign in (1, -1))
            assert scores.grad[i].item() == pytest.approx((brute_force(up, ranks) - brute_force(down, ranks)) / (2 * FINITE_DIFFERENCE_STEP), abs=FINITE_DIFFERENCE_ABSOLUTE)


def test_kway_loss_of_equal_scores_is_log_two_for_every_length_of_ranking():
    for size in range(2, 10):
        assert loss_of(torch.zeros(size), list(range(size)))[0].item() == pytest.approx(math.log(2), abs=1e-6)


def test_kway_sums_of_parts_add_up():
    """However the pairs are cut into batches or ranks."""
    generator = torch.Generator().manual_seed(1)
    scores, winners, losers = torch.randn(8, generator=generator).double(), torch.arange(0, 7), torch.arange(1, 8)
    weights, margins = torch.rand(7, generator=generator).double(), torch.arange(7).double()
    terms = {"label_smoothing": 0.1, "centring": 0.3}
    whole = ranking_loss(scores, winners, losers, weights, margins=margins, **terms)
    parts = [ranking_loss(scores, winners[part], losers[part], weights[part], margins=margins[part], **terms) for part in (slice(3), slice(3, 7))]
    for number in (0, 1):
        assert whole[number].item() == pytest.approx(sum(part[number].item() for part in parts), abs=FLOAT64_ABSOLUTE)


def test_kway_draw_counts_half_and_a_wrong_pair_nothing():
    _, correct = ranking_loss(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([0.5, 0.5]))
    assert correct.item() == pytest.approx(0.25)


LOG3 = math.log(3)  # sigma(log 3) = 3 / 4
PAIR = torch.tensor([LOG3, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ({}, math.log(4 / 3)),
        ({"margins": LOG3}, math.log(2)),  # the lead is used up
        ({"margins": 2 * LOG3}, math.log(4)),  # sigma(-log 3) = 1 / 4
        ({"label_smoothing": 0.1}, 0.9 * math.log(4 / 3) + 0.1 * math.log(4)),
        ({"label_smoothing": 0.1, "margins": 2 * LOG3}, 0.9 * math.log(4) + 0.1 * math.log(4 / 3)),
        ({"centring": 0.01}, math.log(4 / 3) + 0.01 * LOG3**2),
    ],
)
def test_ranking_terms_by_hand(terms, expected):
    loss, correct = loss_of(PAIR, [0, 1], **terms)
    assert loss.item() == pytest.approx(expected, abs=FLOAT64_ABSOLUTE)
    assert correct.item() == 1  # a margin does not change which answer won


def test_label_smoothing_is_least_where_the_model_expects_the_swapped_share():
    """d/d(difference) of -(1 - s) log sigma - s log(1 - sigma) is sigma - (1 - s)."""
    scores = torch.tensor([math.log(0.9 / 0.1), 0.0], dtype=torch.float64, requires_grad=True)
    loss_of(scores, [0, 1], label_smoothing=0.1)[0].backward()
    assert scores.grad.tolist() == pytest.approx([0, 0], abs=FLOAT64_ABSOLUTE)


def test_centring_moves_both_scores_and_leaves_their_difference():
    scores = torch.tensor([3.0, 2.0], dtype=torch.float64, requires_grad=True)
    with_centring, without = (loss_of(scores, [0, 1], centring=centring)[0] for centring in (0.01, 0.0))
    (gradient,) = torch.autograd.grad(with_centring - without, scores)
    assert gradient.tolist() == pytest.approx([0.01 * 2 * 5.0] * 2, abs=FLOAT64_ABSOLUTE)


# ---------------------------------------------------------------- batches


class OneRank:
    grid, coordinates = Grid(), Coordinates(0, 0, 0, 0)


def group(ranks, weight=1.0) -> EncodedGroup:
    rows = tuple(encoded_row([1, 2]) for rank in ranks if rank is not None)
    pairs = tuple(ranked_pairs([rank for rank in ranks if rank is not None]))
    return EncodedGroup(rows, pairs, Ranking((), tuple(map(str, range(len(ranks)))), tuple(ranks), weight=weight))


def test_every_prompt_weighs_the_same_in_a_batch_but_for_its_own_weight():
    members = [group([0, 1]), group([0, 1, 2, 3, 4]), group([0, 1, 1], weight=3.0), group([4, None, 0, 9])]
    (batch,) = replica_batches(members, OneRank(), 4, 0, torch.device("cpu"))
    prompt = np.searchsorted([2, 7, 10, 13], batch.row_ids, side="right")  # of each row
    assert np.bincount(prompt[batch.winners], batch.weights).tolist() == pytest.approx([1, 1, 3, 1])
    assert (prompt[batch.winners] == prompt[batch.losers]).all()  # all pairs of a prompt, and no others, are in one forward


def test_distances_count_ranks_that_occur():
    assert group([4, None, 0, 9]).levels == [1, 0, 2]
    assert group([4, None, 0, 9]).pairs == ((0, 2), (1, 0), (1, 2)) and group([4, None, 0, 9]).distances == [1, 1, 2]
    (batch,) = replica_batches([group([0, 7]), group([0, 1, 1, 2])], OneRank(), 2, 0, torch.device("cpu"))
    assert batch.distances.tolist() == [1, 1, 2, 1, 1, 1]  # the larger group first


def test_packing_leaves_few_rows_empty_whatever_the_sizes():
    one_large = pack([group(range(9)), *[group([0, 1])] * 7], 2, 1)
    assert (one_large.members, one_large.rows) == ([[0], [1, 2, 3, 4], [5, 6, 7]], 9)
    equal = pack([group([0, 1, 2])] * 6, 2, 2)
    assert (equal.members, equal.rows) == ([[0, 1], [4, 5], [2, 3], []], 6)
    assert equal.of_replica(Grid(dp=2), 1) == [[2, 3], []]
    sizes = np.random.default_rng(0).integers(1, 10, 200)
    packing = pack([group(range(size)) for size in sizes], 3, 4)
    assert sorted(index for members in packing.members for index in members) == list(range(200)) and len(packing.members) % 4 == 0
    assert max(sum(sizes[members]) for members in packing.members if members) <= packing.rows
    assert len(packing.members) * packing.rows <= 1.05 * sizes.sum() + 4 * packing.rows


def test_packing_puts_answers_of_like_length_together():
    members = [EncodedGroup((encoded_row(range(2, 2 + length)), encoded_row([1, 2])), ((0, 1),), Ranking((), ("a", "b"), (0, 1))) for length in (9, 3, 8, 4)]
    batches = replica_batches(members, OneRank(), 2, 0, torch.device("cpu"))
    assert [batch.tokens.shape for batch in batches] == [(4, 4), (4, 9)]
    assert sorted(place % batch.tokens.size(1) + 1 for batch in batches for place in batch.read_at.tolist()) == [2, 2, 2, 2, 3, 4, 8, 9]


def test_a_lone_answer_is_scored_without_a_pair():
    (batch,) = replica_batches([EncodedGroup((encoded_row([1, 2, 3]),), (), Ranking((), ("a",), (0,)))], OneRank(), 1, 0, torch.device("cpu"))
    assert batch.tokens.tolist() == [[1, 2, 3]] and batch.read_at.tolist() == [2] and not len(batch.winners) + len(batch.weights)


# ---------------------------------------------------------------- the scale


def test_reward_statistics_put_demonstrations_at_mean_0_and_deviation_1():
    scores = np.random.default_rng(0).normal(3, 5, 100)
    scale = score_statistics(scores.tolist())
    normalised = (scores - scale["reward_mean"]) / scale["reward_std"]
    assert normalised.mean() == pytest.approx(0, abs=FLOAT64_ABSOLUTE) and normalised.std() == pytest.approx(1, abs=FLOAT64_ABSOLUTE)


def test_reward_statistics_never_divide_by_zero():
    assert score_statistics([1.0, 1.0])["reward_std"] > 0
