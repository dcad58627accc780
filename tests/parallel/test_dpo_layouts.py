"""DPO under every kind of layout: one step of the product's trainer equals the plain reference.

The reference puts every answer through the model alone, without padding, without microbatches, and adds up its tokens' log-probabilities.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.config.schema import DpoLossConfig, ModelConfig, OptimizerConfig
from megagpt.data.batch import EncodedRow, encoded_row
from megagpt.data.ranking import EncodedGroup, ranked_pairs
from megagpt.data.ranking_batch import replica_batches
from megagpt.data.records import Ranking
from megagpt.dpo import trainer as dpo
from megagpt.dpo.evaluate import preference_metrics
from megagpt.engine.answer_scores import score_answers
from megagpt.engine.build import Engine
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks, with_gradients
from tests.helpers.plain import PlainGPT, PlainRun, plain_init, plain_train
from tests.helpers.sharded import sharded_model
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import LOG_PROBABILITY_ABSOLUTE, PARITY_RELATIVE, assert_tensors_close

OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-5, clip_grad=0.1)
PAD, MICRO, CPU = 100, 2, torch.device("cpu")
TERMS = {"plain": DpoLossConfig(), "smooth": DpoLossConfig(beta=0.4, label_smoothing=0.1), "ipo": DpoLossConfig(kind="ipo", beta=0.4)}
LAYOUTS = {
    "one_rank": (Grid(), 1), "tp2": (Grid(tp=2), 1), "pp2": (Grid(pp=2), 2), "dp2-zero2": (Grid(dp=2), 2), "dp2-zero3": (Grid(dp=2), 3),
    "tp2-sequence": (Grid(tp=2), 1, Layout(sequence_parallel=True)), "cp2-zero0": (Grid(cp=2), 0), "cp2-pp2": (Grid(cp=2, pp=2), 1),
    "cp2-dp2-zero3": (Grid(cp=2, dp=2), 3), "cp2-tp2-sequence": (Grid(cp=2, tp=2), 2, Layout(sequence_parallel=True)),
}  # fmt: skip
RANKS = [[0, 1], [2, 0, 1], [0, 1, 1, 2], [1, 1, 0, 0, 3], [1, 0]]
"""K = 2, 3, 4, 5 and 2, some with ties. Five groups: two replicas with microbatches of two are not filled evenly."""


def some_row(generator: np.random.Generator) -> EncodedRow:
    """Between 3 and 16 tokens, the last of which are the answer; two of the prompt at least."""
    size = int(generator.integers(3, 17))
    return encoded_row(generator.integers(0, 100, size), np.arange(size) >= generator.integers(2, size))


@functools.cache
def groups() -> list[EncodedGroup]:
    generator = np.random.default_rng(3)
    made = []
    for number, ranks in enumerate(RANKS):
        record = Ranking(prompt=(), answers=tuple(map(str, range(len(ranks)))), ranks=tuple(ranks), weight=1.0 + 0.5 * number)
        made.append(EncodedGroup(tuple(some_row(generator) for _ in ranks), tuple(ranked_pairs(ranks)), record))
    return made


@functools.cache
def reference() -> list[list[float]]:
    """Of another model than the one that is trained, so that no two answers stand equal: about the same probability for each of 100 tokens."""
    generator = np.random.default_rng(5)
    return [[-float(math.log(100) * row.loss_mask.sum() + generator.uniform(-1, 1)) for row in group.rows] for group in groups()]


# ---------------------------------------------------------------- the plain reference


def plain_logprob(model: PlainGPT, row: EncodedRow) -> Tensor:
    logs = model(torch.from_numpy(row.tokens)[None, :-1])[0].log_softmax(dim=-1)
    return sum(logs[t - 1, row.tokens[t]] for t in range(1, len(row)) if row.loss_mask[t])


def plain_loss(model: PlainGPT, members: Sequence[EncodedGroup], terms: DpoLossConfig) -> Tensor:
    """Weighted mean over prompts of the mean over the pairs of different rank."""
    total = torch.zeros(())
    for group, before in zip(members, reference(), strict=True):
        ratios, ranks = [plain_logprob(model, row) - other for row, other in zip(group.rows, before, strict=True)], group.record.ranks
        leads = [ratios[i] - ratios[j] for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
        if terms.kind == "ipo":
            losses = [(lead - 0.5 / terms.beta) ** 2 for lead in leads]
        else:
            losses = [-(1 - terms.label_smoothing) * F.logsigmoid(terms.beta * x) - terms.label_smoothing * F.logsigmoid(-terms.beta * x) for x in leads]
        total = total + group.weight * sum(losses) / len(losses)
    return total / sum(group.weight for group in members)


@functools.cache
def plain_step(config: ModelConfig, name: str) -> PlainRun:
    return plain_train(
        config, plain_init(config, 1), [(groups(),)], lr=OPTIMIZER.lr, eps=OPTIMIZER.eps, clip=OPTIMIZER.clip_grad,
        loss_function=functools.partial(plain_loss, terms=TERMS[name]),
    )


# ---------------------------------------------------------------- on each rank


def scored(engine: Engine) -> list[list[float]]:
    return score_answers(engine, groups(), lambda logits, batch: dpo.answer_logprobs(engine.model, logits, batch), MICRO, PAD, CPU)


def dpo_step(config: ModelConfig, name: str, grid: Grid, zero_stage: int, layout: Layout = Layout()):
    engine = Engine(sharded_model(config, plain_init(config, 1), grid, layout), OPTIMIZER, zero_stage)
    logprobs = scored(engine)
    gradients = with_gradients(engine)
    batches = replica_batches(groups(), engine.groups, MICRO, PAD, CPU, ranks_per_row=layout.ranks_per_row(grid))
    metrics = dpo.train_step(engine, batches, groups(), reference(), OPTIMIZER.lr, None, TERMS[name])
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    return metrics, gradients, parameters, logprobs


def first_step_from_the_reference(config: ModelConfig, grid: Grid):
    """Metrics of a step whose reference is the model itself, and of the held-out measurement before it."""
    engine = Engine(sharded_model(config, plain_init(config, 1), grid), OPTIMIZER, 1)
    before, again = scored(engine), scored(engine)
    metrics = dpo.train_step(engine, replica_batches(groups(), engine.groups, MICRO, PAD, CPU), groups(), before, OPTIMIZER.lr, None, DpoLossConfig())
    after = scored(engine)
    engine.close()
    return metrics, *(preference_metrics(groups(), logprobs, before, DpoLossConfig()) for logprobs in (again, after))


# ---------------------------------------------------------------- the cases


def compare(config: ModelConfig, ranks: list, name: str) -> None:
    expected = plain_step(config, name)
    assert expected.gradient_norms[0] > OPTIMIZER.clip_grad, "clipping must be active"
    for metrics, *_ in ranks:
        assert metrics["loss"] == pytest.approx(expected.losses[0], rel=PARITY_RELATIVE)
        assert metrics["grad_norm"] == pytest.approx(expected.gradient_norms[0], rel=PARITY_RELATIVE)
    gradients, parameters = (merge_ranks([rank[part] for rank in ranks]) for part in (1, 2))
    assert_tensors_close(gradients, expected.gradients)
    assert_tensors_close(parameters, expected.parameters)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dpo_step_equals_the_plain_one(layout):
    grid = LAYOUTS[layout][0]
    config = tiny_model("llama" if grid.tp == 2 else "gpt", True, num_layers=2)
    ranks = run_ranks(grid.size, dpo_step, config, "plain", *LAYOUTS[layout])
    compare(config, ranks, "plain")

    plain = PlainGPT(config)
    plain.load_state_dict(plain_init(config, 1))
    with torch.no_grad():
        expected = [[float(plain_logprob(plain, row)) for row in group.rows] for group in groups()]
    rewards = [0.1 * (np.array(own) - before) for own, before in zip(expected, reference(), strict=True)]
    means = [np.mean([[r[w] > r[l], r[w] - r[l], r[w], r[l]] for w, l in group.pairs], axis=0) for group, r in zip(groups(), rewards, strict=True)]
    accuracy, margin, chosen, rejected = np.average(means, axis=0, weights=[group.weight for group in groups()])
    for metrics, *_, logprobs in ranks:
        assert logprobs == [pytest.approx(row, abs=LOG_PROBABILITY_ABSOLUTE) for row in expected]
        found = [metrics[name] for name in ("accuracy", "margin", "chosen_reward", "rejected_reward")]
        assert found == pytest.approx([accuracy, margin, chosen, rejected], abs=0.1 * LOG_PROBABILITY_ABSOLUTE)  # beta times log-probabilities


@pytest.mark.parametrize("name", ["smooth", "ipo"])
def test_dpo_step_with_other_losses_equals_the_plain_one(name):
    config = tiny_model("gpt", True, num_layers=2)
    compare(config, run_ranks(2, dpo_step, config, name, Grid(dp=2), 2), name)


@pytest.mark.parametrize("grid", [Grid(), Grid(pp=2)], ids=["one_rank", "pp2"])
def test_dpo_begins_at_log_two_with_all_pairs_drawn_and_one_step_puts_them_in_order(grid):
    for metrics, before, after in run_ranks(grid.size, first_step_from_the_reference, tiny_model("gpt", True, num_layers=2), grid):
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5) and abs(metrics["margin"]) < 1e-5
        assert before["loss"] == pytest.approx(math.log(2), abs=1e-12) and before["accuracy"] == 0.5 and before["margin"] == 0
        assert after["loss"] < before["loss"] and after["accuracy"] > 0.8
