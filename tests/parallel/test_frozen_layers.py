"""Training the top layers over stored activations equals training them with everything below computed each time.

The reference puts every answer through the whole plain model alone. Its groups have prompts in common, one of them nothing.
"""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.config.schema import ModelConfig, OptimizerConfig
from megagpt.data.activations import Activations
from megagpt.data.batch import encoded_row
from megagpt.data.ranking import EncodedGroup, ranked_pairs
from megagpt.data.ranking_batch import replica_batches
from megagpt.data.records import Ranking
from megagpt.data.shared_row import shared_row
from megagpt.engine.build import Engine
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from megagpt.reward.frozen_layers import fill, weights_of
from megagpt.reward.trainer import score_groups, train_step
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import PlainGPT, plain_init, plain_train
from tests.helpers.sharded import sharded_chunks
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import LOGITS_ABSOLUTE, PARITY_RELATIVE, assert_tensors_close

OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-5, clip_grad=0.1)
PAD, MICRO, LAYERS = 100, 2, 3
RANKS = [[0, 1], [2, 0, 1], [0, 1, 1, 2], [1, 0], [1, 0]]
PROMPTS = [5, 7, 1, 0, 9]
"""Tokens that the answers of each group begin with."""


@functools.cache
def groups() -> list[EncodedGroup]:
    generator, made = np.random.default_rng(5), []
    for number, (ranks, begin) in enumerate(zip(RANKS, PROMPTS)):
        prompt = generator.integers(0, 100, begin)
        answers = [[place, *generator.integers(0, 100, generator.integers(1, 6))] for place, _ in enumerate(ranks)]
        rows = tuple(encoded_row([*prompt, *answer], [0] * begin + [1] * len(answer)) for answer in answers)
        record = Ranking(prompt=(), answers=tuple(map(str, range(len(ranks)))), ranks=tuple(ranks), weight=1.0 + 0.5 * number)
        made.append(EncodedGroup(rows, tuple(ranked_pairs(ranks)), record))
    return made


def is_trained(name: str, trainable_layers: int) -> bool:
    layer = re.match(r"layers\.(\d+)\.", name)
    return int(layer[1]) >= LAYERS - trainable_layers if layer else name.startswith(("final_norm", "scalar_head"))


# ---------------------------------------------------------------- rows


def test_a_shared_row_holds_the_common_beginning_once():
    for group, begin, ranks in zip(groups(), PROMPTS, RANKS):
        row = shared_row(group)
        assert (row.branches == 0).sum() == begin and len(row) == begin + sum(len(answer) - begin for answer in group.rows)
        assert row.num_answers == len(ranks)
        for number, answer in enumerate(group.rows):
            assert row.tokens[row.places(number)].tolist() == answer.tokens.tolist()


def test_an_answer_that_another_one_begins_with_keeps_a_token_of_its_own():
    rows = (encoded_row([4, 5, 6]), encoded_row([4, 5, 6, 7]))
    row = shared_row(EncodedGroup(rows, ((0, 1),), Ranking((), ("a", "b"), (0, 1))))
    assert (row.tokens.tolist(), row.branches.tolist()) == ([4, 5, 6, 6, 7], [0, 0, 1, 2, 2])


# ---------------------------------------------------------------- training


def plain_scores(model: PlainGPT, group: EncodedGroup, pooling: str) -> list[Tensor]:
    """Of each answer alone: what the head says at its last token, or its mean over all that the prompt does not hold."""
    scalars = [(model(torch.from_numpy(row.tokens)[None])[0], torch.from_numpy(row.loss_mask)) for row in group.rows]
    return [values[-1] if pooling == "last" else (values * mask).sum() / mask.sum() for values, mask in scalars]


def plain_loss(model: PlainGPT, members: list[EncodedGroup], pooling: str = "last") -> Tensor:
    total = torch.zeros(())
    for group in members:
        scores = plain_scores(model, group, pooling)
        pairs = [(i, j) for i, j in itertools.permutations(range(len(scores)), 2) if group.record.ranks[i] < group.record.ranks[j]]
        total = total - group.weight * sum(F.logsigmoid(scores[i] - scores[j]) for i, j in pairs) / len(pairs)
    return total / sum(group.weight for group in members)


def one_step(config: ModelConfig, grid: Grid, zero_stage: int, trainable_layers: int, pooling: str, folder: Path | None):
    """Without a folder everything is computed each time, and trained."""
    cpu, activations, layout = torch.device("cpu"), None, Layout()
    if folder is not None:
        activations, layout = Activations(folder, config.hidden_size, torch.float32), Layout(num_chunks=2, stage_layers=(LAYERS - trainable_layers, trainable_layers))
    *frozen, top = sharded_chunks(config, plain_init(config, 1, scalar_head=True), grid, layout)
    for trunk in frozen:
        fill(activations, trunk, groups(), cpu)
    engine, gradients = Engine(top, OPTIMIZER, zero_stage), {}
    scores, step = score_groups(engine, groups(), MICRO, PAD, cpu, activations, pooling), engine.step

    def look_then_step(lr: float) -> float:
        gradients.update(held_here(engine.canonical_gradients()))
        return step(lr)

    engine.step = look_then_step
    metrics = train_step(engine, replica_batches(groups(), engine.groups, MICRO, PAD, cpu, activations, pooling), groups(), OPTIMIZER.lr, None)
    untouched = held_here(weights_of(frozen))
    engine.close()
    return metrics, gradients, untouched, scores


CASES = [
    (Grid(), 0, 1, "last"), (Grid(), 1, LAYERS, "last"), (Grid(), 0, 0, "mean"), (Grid(dp=2), 2, 1, "last"), (Grid(dp=2), 1, 2, "mean"),
    (Grid(tp=2), 1, 1, "mean"), (Grid(), 0, None, "mean"),
]  # fmt: skip
"""Grid, ZeRO stage, layers that are trained (None: everything, nothing is stored), pooling."""


@pytest.mark.parametrize("family", ["gpt", "llama"])
@pytest.mark.parametrize(("grid", "zero", "trainable_layers", "pooling"), CASES, ids=lambda value: str(value).replace(" ", "") if isinstance(value, Grid) else None)
def test_a_step_over_stored_activations_equals_the_plain_one(grid, zero, trainable_layers, pooling, family, tmp_path):
    config = tiny_model(family, True, num_layers=LAYERS)
    start, loss = plain_init(config, 1, scalar_head=True), functools.partial(plain_loss, pooling=pooling)
    expected = plain_train(config, start, [(groups(),)], lr=OPTIMIZER.lr, eps=OPTIMIZER.eps, clip=OPTIMIZER.clip_grad, loss_function=loss)
    stored = trainable_layers is not None
    ranks = run_ranks(grid.size, one_step, config, grid, zero, trainable_layers, pooling, tmp_path if stored else None)

    trained = {name for name in start if not stored or is_trained(name, trainable_layers)}
    norm = sum(expected.gradients[name].double().square().sum() for name in trained).sqrt().item()
    gradients, frozen = (merge_ranks([rank[part] for rank in ranks]) for part in (1, 2))
    assert gradients.keys() == trained and frozen.keys() == start.keys() - trained
    # The biases of the head and of the last norm move all scores alike: nothing is left of their gradient but rounding.
    compared = {name: expected.gradients[name] for name in trained if not name.endswith(("head.bias", "final_norm.bias"))}
    assert_tensors_close({name: gradients[name] for name in compared}, compared)
    for name, tensor in frozen.items():
        assert torch.equal(tensor, start[name])

    plain = PlainGPT(config, scalar_head=True)
    plain.load_state_dict(start)
    with torch.no_grad():
        alone = [[score.item() for score in plain_scores(plain, group, pooling)] for group in groups()]
    for metrics, *_, scores in ranks:
        assert metrics["loss"] == pytest.approx(expected.losses[0], rel=PARITY_RELATIVE)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=PARITY_RELATIVE)
        assert scores == [pytest.approx(row, abs=LOGITS_ABSOLUTE) for row in alone]


# ---------------------------------------------------------------- the store


def fill_after_a_kill(config: ModelConfig, folder: Path) -> tuple[list[int], bool]:
    """Tokens that the trunk computed in each of five runs; and whether what is stored in the end is what one run computes."""
    trunk, _ = sharded_chunks(config, plain_init(config, 1, scalar_head=True), Grid(), Layout(num_chunks=2, stage_layers=(2, 1)))
    computed, forward, cpu = [0], trunk.forward, torch.device("cpu")

    def counted(tokens, **arguments):
        computed[-1] += int((arguments["branches"] <= 4).sum()) if len(tokens) else 0
        return forward(tokens, **arguments)

    trunk.forward = counted

    def run(members: list[EncodedGroup], where: Path = folder) -> Activations:
        computed.append(0)
        activations = Activations(where, config.hidden_size, torch.float32)
        fill(activations, trunk, members, cpu)
        return activations

    run(groups()[:2])
    run(groups()[:2])  # nothing is left to do
    (folder / ".half.safetensors.tmp1").write_bytes(b"half")  # what a kill leaves behind
    run(groups())
    newest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-1])
    stored, whole = run(groups()), run(groups(), folder / "other")
    rows = [shared_row(group) for group in groups()]
    return computed[1:], all(torch.allclose(stored[row], whole[row], atol=1e-6) for row in rows)


def test_activations_are_computed_once_and_a_damaged_piece_again(tmp_path):
    config = tiny_model("llama", True, num_layers=LAYERS)
    ((calls, same),) = run_ranks(1, fill_after_a_kill, config, tmp_path)
    assert calls[0] > 0 and calls[1] == 0 and calls[2] > 0 and calls[3] == calls[2] and same
