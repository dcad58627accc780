"""Several documents in one row, told apart by segments and positions: each gets the logits and gradients that it has alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from megagpt.config.schema import OptimizerConfig
from megagpt.data.batch import EncodedRow
from megagpt.engine.build import Engine
from megagpt.engine.deepspeed_scope import join_world
from megagpt.engine.schedule_run import run_schedule
from megagpt.engine.token_steps import count_targets, evaluate, replica_batches, train_step
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import PlainGPT, plain_init, plain_train
from tests.helpers.sharded import sharded_chunks, sharded_model, whole_vocabulary
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import PARITY_RELATIVE, assert_tensors_close

LENGTHS = [6, 10]
LAYOUTS = {"one_rank": (Grid(), Layout()), "recomputed": (Grid(), Layout(recompute="full")), "tp2_sequence": (Grid(tp=2), Layout(sequence_parallel=True)),
           "cp2": (Grid(cp=2), Layout()), "tp2_cp2": (Grid(tp=2, cp=2), Layout(recompute="selective"))}  # fmt: skip


class PackedBatch(NamedTuple):
    tokens: Tensor
    positions: Tensor
    segments: Tensor


def packed_batch() -> PackedBatch:
    """Two rows of 16 tokens, each a document of 6 and one of 10."""
    tokens = tiny_batches(1, rows=4)[0].tokens[:2]
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)
    segments = torch.cat([torch.full((length,), number) for number, length in enumerate(LENGTHS)]).expand(2, -1)
    return PackedBatch(tokens, positions, segments)


def packed_forward_and_backward(family: str, grid: Grid, layout: Layout) -> tuple[Tensor, Tensor]:
    """This rank's logits [2, 16 / cp, V], and the gradient of the sum of their squares for the first layer's first norm, over all ranks."""
    join_world()  # Ulysses talks through DeepSpeed's communication layer, which an engine would have started
    config = tiny_model(family, True, num_layers=2)
    model = sharded_model(config, plain_init(config, seed=1), grid, layout)
    cp = model.groups.collection.cp
    here = slice(cp.rank() * 16 // cp.size(), (cp.rank() + 1) * 16 // cp.size())
    batch = packed_batch()
    mine = PackedBatch(batch.tokens[:, here], batch.positions[:, here], batch.segments)
    outputs = []

    def forward_step(inner, part):
        def loss(logits):
            outputs.append(whole_vocabulary(model, logits.detach()))
            return logits.square().sum() / cp.size(), {}  # the schedule multiplies by cp

        return inner(part.tokens, part.positions, segments=part.segments), loss

    run_schedule([model], [mine], forward_step, rows=2, length=16, forward_only=False)
    gradient = model.decoder.layers[0].input_layernorm.weight.grad
    if layout.sequence_parallel:
        torch.distributed.all_reduce(gradient, group=model.groups.collection.tp)
    torch.distributed.all_reduce(gradient, group=cp)
    return outputs[0], gradient


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_packed_documents_do_not_see_each_other(family, layout):
    grid, cut = LAYOUTS[layout]
    results = run_ranks(grid.size, packed_forward_and_backward, family, grid, cut)
    by_part = [results[cp * grid.tp][0] for cp in range(grid.cp)]  # ranks: tp changes fastest
    config = tiny_model(family, True, num_layers=2)
    plain = PlainGPT(config)
    plain.load_state_dict(plain_init(config, seed=1))
    alone = torch.cat([plain(document) for document in packed_batch().tokens.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(torch.cat(by_part, dim=1), alone.detach(), rtol=0, atol=1e-5)
    alone.square().sum().backward()
    expected = plain.layers[0].attention_norm.weight.grad
    for _, gradient in results:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- from rows to the optimizer's step

OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-5, clip_grad=0.1)
CUTS = [[6], [1, 9, 16], []]
"""Places where a document begins in each of three rows of 17 tokens; the last token of a row is a label only."""
STEP_LAYOUTS = {
    "one_rank": (Grid(), Layout(), 1), "dp2": (Grid(dp=2), Layout(), 2), "cp2": (Grid(cp=2), Layout(), 1),
    "pp2": (Grid(pp=2), Layout(recompute="full"), 1), "pp2_interleaved": (Grid(pp=2), Layout(num_chunks=2), 1),
    "tp2_sequence": (Grid(tp=2), Layout(sequence_parallel=True), 1), "cp2_pp2": (Grid(cp=2, pp=2), Layout(), 1),
}  # fmt: skip


def packed_rows() -> list[EncodedRow]:
    generator = np.random.default_rng(5)
    rows = []
    for cuts in CUTS:
        mask = np.ones(17, np.float32)
        mask[cuts] = 0
        rows.append(EncodedRow(generator.integers(0, 100, 17), mask, np.searchsorted(cuts, np.arange(17), side="right")))
    return rows


def loss_of_documents_alone(model: PlainGPT, rows: Sequence[EncodedRow]) -> Tensor:
    """Mean of -log p over every document's tokens but its first, each document by itself."""
    losses = []
    for row, cuts in zip(rows, CUTS, strict=True):
        for document in np.split(row.tokens, cuts):
            ids = torch.from_numpy(document)
            if len(ids) > 1:
                losses.append(-model(ids[None, :-1])[0].log_softmax(dim=-1).gather(1, ids[1:, None]).flatten())
    return torch.cat(losses).mean()


def packed_step(family: str, grid: Grid, layout: Layout, zero_stage: int):
    config = tiny_model(family, True)
    engine = Engine(sharded_chunks(config, plain_init(config, seed=1), grid, layout), OPTIMIZER, zero_stage)
    rows, cpu = packed_rows(), torch.device("cpu")
    held_out = evaluate(engine, rows, 1, 100, cpu)
    metrics = train_step(engine, replica_batches(rows, engine, 1, 100, cpu), count_targets(rows), OPTIMIZER.lr, None)
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    return held_out, metrics, parameters


@pytest.mark.parametrize("layout", STEP_LAYOUTS)
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_packed_rows_train_as_their_documents_alone(family, layout):
    grid, cut, zero_stage = STEP_LAYOUTS[layout]
    config = tiny_model(family, True)
    expected = plain_train(
        config, plain_init(config, seed=1), [(packed_rows(),)], lr=OPTIMIZER.lr, eps=OPTIMIZER.eps, clip=OPTIMIZER.clip_grad,
        loss_function=loss_of_documents_alone,
    )  # fmt: skip
    results = run_ranks(grid.size, packed_step, family, grid, cut, zero_stage)
    for held_out, metrics, _ in results:
        assert held_out == pytest.approx(expected.losses[0], rel=PARITY_RELATIVE)
        assert metrics["loss"] == pytest.approx(expected.losses[0], rel=PARITY_RELATIVE)
        assert metrics["grad_norm"] == pytest.approx(expected.gradient_norms[0], rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([parameters for *_, parameters in results]), expected.parameters)
