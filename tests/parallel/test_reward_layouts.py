"""Reward model and SFT under every kind of layout: one step of the product's trainers equals the plain reference.

The reference puts every answer through the model alone, without padding, without microbatches.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.config.schema import ModelConfig, OptimizerConfig, RankingLossConfig
from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.ranking import EncodedGroup, ranked_pairs
from megagpt.data.ranking_batch import replica_batches as ranking_batches
from megagpt.data.records import Ranking
from megagpt.engine import token_steps
from megagpt.engine.build import Engine
from megagpt.parallel.grid import Grid
from megagpt.reward import trainer as reward
from tests.helpers.gather import held_here, merge_ranks, with_gradients
from tests.helpers.plain import PlainGPT, PlainRun, plain_init, plain_train
from tests.helpers.sharded import sharded_model
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import LOGITS_ABSOLUTE, PARITY_RELATIVE, SCORE_SHIFT_ABSOLUTE, assert_tensors_close

OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-5, clip_grad=0.1)
PAD, MICRO = 100, 2
SAME_FOR_ALL_SCORES = {"scalar_head.bias", "final_norm.bias"}
"""They move all scores alike and no difference of two: like a key bias, their gradient is exactly zero but for rounding."""
TERMS = RankingLossConfig(margin=0.3, label_smoothing=0.1, centring=0.2)
LAYOUTS = [(Grid(), 1), (Grid(tp=2), 1), (Grid(pp=2), 2), (Grid(dp=2), 2), (Grid(dp=2), 3)]
IDS = ["one_rank", "tp2", "pp2", "dp2-zero2", "dp2-zero3"]
RANKS = [[0, 1], [2, 0, 1], [0, 1, 1, 2], [1, 1, 0, 0, 3], [1, 0]]
"""K = 2, 3, 4, 5 and 2, some with ties. Five groups: two replicas with microbatches of two need three empty ones more."""


def some_row(generator: np.random.Generator, masked: bool = False) -> EncodedRow:
    """Between 3 and 16 tokens; with a mask of its own, of which at least the last token counts."""
    tokens = generator.integers(0, 100, generator.integers(3, 17))
    mask = generator.random(len(tokens)) < 0.5
    mask[-1] = True
    return encoded_row(tokens, mask if masked else None)


@functools.cache
def groups() -> list[EncodedGroup]:
    generator = np.random.default_rng(3)
    made = []
    for number, ranks in enumerate(RANKS):
        rows = tuple(some_row(generator) for _ in ranks)
        record = Ranking(prompt=(), answers=tuple(map(str, range(len(ranks)))), ranks=tuple(ranks), weight=1.0 + 0.5 * number)
        made.append(EncodedGroup(rows, tuple(ranked_pairs(ranks)), record))
    return made


@functools.cache
def rows() -> list[EncodedRow]:
    """Five: two replicas with microbatches of two need three empty ones more."""
    generator = np.random.default_rng(4)
    return [some_row(generator, masked=True) for _ in range(5)]


# ---------------------------------------------------------------- the plain reference


def plain_scores(model: PlainGPT, group: EncodedGroup) -> list[Tensor]:
    return [model(torch.from_numpy(row.tokens)[None])[0, -1] for row in group.rows]


def plain_ranking_loss(model: PlainGPT, members: Sequence[EncodedGroup]) -> Tensor:
    """Weighted mean over prompts of the mean over the pairs of different rank of -log sigma(better - worse)."""
    return plain_mean(model, members, lambda better, worse, _: -F.logsigmoid(better - worse))


def plain_loss_with_terms(model: PlainGPT, members: Sequence[EncodedGroup]) -> Tensor:
    """The same under TERMS."""

    def loss(better: Tensor, worse: Tensor, distance: int) -> Tensor:
        lead = better - worse - TERMS.margin * distance
        smooth = -(1 - TERMS.label_smoothing) * F.logsigmoid(lead) - TERMS.label_smoothing * F.logsigmoid(-lead)
        return smooth + TERMS.centring * (better + worse) ** 2

    return plain_mean(model, members, loss)


def plain_mean(model: PlainGPT, members: Sequence[EncodedGroup], loss: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
    total = torch.zeros(())
    for group in members:
        scores, ranks = plain_scores(model, group), group.record.ranks
        pairs = [(i, j) for i, j in itertools.permutations(range(len(scores)), 2) if ranks[i] < ranks[j]]
        total = total + group.weight * sum(loss(scores[i], scores[j], len({rank for rank in ranks if ranks[i] < rank <= ranks[j]})) for i, j in pairs) / len(pairs)
    return total / sum(group.weight for group in members)


def plain_response_loss(model: PlainGPT, rows: Sequence[EncodedRow]) -> Tensor:
    """Mean over all masked-in tokens of all rows of -log p(token | those before it)."""
    losses = [
        -model(torch.from_numpy(row.tokens)[None, :-1])[0, t - 1].log_softmax(dim=0)[row.tokens[t]]
        for row in rows
        for t in range(1, len(row))
        if row.loss_mask[t]
    ]
    return torch.stack(losses).mean()


@functools.cache
def plain_step(config: ModelConfig, scalar_head: bool, terms: RankingLossConfig = RankingLossConfig()) -> PlainRun:
    ranking_loss = plain_loss_with_terms if terms == TERMS else plain_ranking_loss
    batch, loss = (groups(), ranking_loss) if scalar_head else (rows(), plain_response_loss)
    return plain_train(
        config, plain_init(config, 1, scalar_head), [(batch,)], lr=OPTIMIZER.lr, eps=OPTIMIZER.eps, clip=OPTIMIZER.clip_grad, loss_function=loss
    )


# ---------------------------------------------------------------- on each rank


def reward_step(config: ModelConfig, grid: Grid, zero_stage: int, terms: RankingLossConfig = RankingLossConfig()):
    engine = Engine(sharded_model(config, plain_init(config, 1, scalar_head=True), grid), OPTIMIZER, zero_stage)
    scores = reward.score_groups(engine, groups(), MICRO, PAD, torch.device("cpu"))
    gradients = with_gradients(engine)
    batches = ranking_batches(groups(), engine.groups, MICRO, PAD, torch.device("cpu"))
    metrics = reward.train_step(engine, batches, groups(), OPTIMIZER.lr, None, terms)
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    return metrics, gradients, parameters, scores


def sft_step(config: ModelConfig, grid: Grid, zero_stage: int):
    engine = Engine(sharded_model(config, plain_init(config, 1), grid), OPTIMIZER, zero_stage)
    loss = token_steps.evaluate(engine, rows(), MICRO, PAD, torch.device("cpu"))
    gradients = with_gradients(engine)
    batches = token_steps.replica_batches(rows(), engine, MICRO, PAD, torch.device("cpu"))
    metrics = token_steps.train_step(engine, batches, token_steps.count_targets(rows()), OPTIMIZER.lr, None)
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    return metrics, gradients, parameters, loss


# ---------------------------------------------------------------- the cases


def compare(expected: PlainRun, ranks: list, *, without_gradient: set[str] = SAME_FOR_ALL_SCORES) -> None:
    """Metrics on every rank, gradients and parameters of all of them together."""
    assert expected.gradient_norms[0] > OPTIMIZER.clip_grad, "clipping must be active"
    for metrics, *_ in ranks:
        assert metrics["loss"] == pytest.approx(expected.losses[0], rel=PARITY_RELATIVE)
        assert metrics["grad_norm"] == pytest.approx(expected.gradient_norms[0], rel=PARITY_RELATIVE)
    gradients, parameters = (merge_ranks([rank[part] for rank in ranks]) for part in (1, 2))
    apart = without_gradient if "scalar_head.bias" in expected.gradients else set()
    for name in apart & expected.gradients.keys():
        assert (gradients.pop(name).abs() <= SCORE_SHIFT_ABSOLUTE).all()
        assert ((parameters.pop(name) - expected.parameters[name]).abs() <= OPTIMIZER.lr * SCORE_SHIFT_ABSOLUTE / OPTIMIZER.eps).all()
    assert_tensors_close(gradients, {name: tensor for name, tensor in expected.gradients.items() if name not in apart})
    assert_tensors_close(parameters, {name: tensor for name, tensor in expected.parameters.items() if name not in apart})


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize(("grid", "zero"), LAYOUTS, ids=IDS)
def test_kway_reward_step_equals_the_plain_one(grid, zero, family):
    config = tiny_model(family, True, num_layers=2)
    ranks = run_ranks(grid.size, reward_step, config, grid, zero)
    compare(plain_step(config, scalar_head=True), ranks)

    plain = PlainGPT(config, scalar_head=True)
    plain.load_state_dict(plain_init(config, 1, scalar_head=True))
    with torch.no_grad():
        expected = [[float(score) for score in plain_scores(plain, group)] for group in groups()]
    right = [np.mean([scores[winner] > scores[loser] for winner, loser in group.pairs]) for scores, group in zip(expected, groups())]
    weights = [group.weight for group in groups()]
    for metrics, *_, scores in ranks:
        assert scores == [pytest.approx(row, abs=LOGITS_ABSOLUTE) for row in expected]
        assert metrics["accuracy"] == pytest.approx(np.average(right, weights=weights), rel=PARITY_RELATIVE)


@pytest.mark.parametrize(("grid", "zero"), [(Grid(pp=2), 2), (Grid(dp=2), 2)], ids=["pp2", "dp2-zero2"])
def test_kway_reward_step_with_margin_smoothing_and_centring_equals_the_plain_one(grid, zero):
    """Centring fixes the level of the scores, so every parameter has a gradient."""
    config = tiny_model("gpt", True, num_layers=2)
    compare(plain_step(config, True, TERMS), run_ranks(grid.size, reward_step, config, grid, zero, TERMS), without_gradient=set())


@pytest.mark.parametrize(("grid", "zero"), LAYOUTS, ids=IDS)
def test_sft_step_equals_the_plain_one(grid, zero):
    """Response tokens only; the rows that fill up the batch and the padding of the short ones weigh nothing."""
    config = tiny_model("gpt", True, num_layers=2)
    ranks = run_ranks(grid.size, sft_step, config, grid, zero)
    expected = plain_step(config, scalar_head=False)
    compare(expected, ranks)
    for *_, loss in ranks:
        assert loss == pytest.approx(expected.losses[0], rel=PARITY_RELATIVE)
