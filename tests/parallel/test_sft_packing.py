"""Conversations packed into long rows: loss, held-out loss and gradients are those of the same conversations in rows of their own."""

import numpy as np
import pytest
import torch

from megagpt.config.schema import OptimizerConfig
from megagpt.data.batch import EncodedRow
from megagpt.data.packing import pack_rows
from megagpt.engine.build import Engine
from megagpt.engine.token_steps import count_targets, evaluate, replica_batches
from megagpt.model.layout import Layout
from megagpt.model.token_loss import token_nll
from megagpt.parallel.collectives import sum_reports
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import plain_init
from tests.helpers.sharded import sharded_chunks
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_model
from tests.helpers.tolerance import PACKED_RELATIVE, assert_tensors_close

MAX_LENGTH, PAD = 16, 100
LAYOUTS = {"one_rank": (Grid(), Layout(), 1), "dp2_zero2": (Grid(dp=2), Layout(), 2), "cp2": (Grid(cp=2), Layout(), 1),
           "tp2_sequence": (Grid(tp=2), Layout(sequence_parallel=True), 1)}  # fmt: skip


def conversations() -> list[EncodedRow]:
    """Of 2 to 16 tokens, in turns that are targets and turns that are not."""
    generator = np.random.default_rng(3)
    rows = []
    for length in (5, 16, 3, 8, 7, 2, 6, 9, 4, 11):
        turns = np.arange(length) // 2 % 2
        rows.append(EncodedRow(generator.integers(0, PAD, length), turns.astype(np.float32)))
    return rows


def loss_and_gradients(family: str, grid: Grid, layout: Layout, zero_stage: int, packed: bool, apart: bool = True):
    """One global batch of all conversations: (held-out loss, training loss, gradients) as this rank sees them."""
    config, rows, cpu = tiny_model(family, True), conversations(), torch.device("cpu")
    if packed:
        rows = pack_rows(rows, MAX_LENGTH)
        assert len(rows) == 5
    if not apart:
        rows = [EncodedRow(row.tokens, row.loss_mask) for row in rows]
    engine = Engine(sharded_chunks(config, plain_init(config, seed=1), grid, layout), OptimizerConfig(lr=1e-2), zero_stage)
    held_out = evaluate(engine, rows, 1, PAD, cpu)
    batches = replica_batches(rows, engine, 1, PAD, cpu)

    def loss(logits, batch):
        nll = token_nll(engine.model, logits, batch.labels, batch.loss_mask)
        return nll, {"nll": nll.detach()}

    targets, (num_rows, length) = count_targets(rows), batches[0].tokens.shape
    reports = engine.accumulate(batches, loss, denominator=targets, rows=num_rows, length=length * grid.cp)
    training = sum_reports(engine.groups, reports, ("nll",))["nll"] / targets
    gradients = held_here(engine.canonical_gradients())
    engine.close()
    return held_out, training, gradients


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_packed_conversations_train_as_in_rows_of_their_own(family, layout):
    grid, cut, zero_stage = LAYOUTS[layout]
    unpacked, packed = (run_ranks(grid.size, loss_and_gradients, family, grid, cut, zero_stage, pack) for pack in (False, True))
    for (held_out, training, _), expected in zip(packed, unpacked, strict=True):
        assert held_out == pytest.approx(expected[0], rel=PACKED_RELATIVE)
        assert training == pytest.approx(expected[1], rel=PACKED_RELATIVE)
    gradients = [merge_ranks([found for *_, found in results]) for results in (packed, unpacked)]
    assert_tensors_close(*gradients, PACKED_RELATIVE)


def test_packed_conversations_that_see_each_other_would_have_another_loss():
    apart, together = (run_ranks(1, loss_and_gradients, "gpt", Grid(), Layout(), 1, True, apart)[0][1] for apart in (True, False))
    assert abs(together - apart) > 1000 * PACKED_RELATIVE * apart
