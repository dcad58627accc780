"""Dropout, that of attention included, belongs to the row, layer and head: no layout and no microbatch size changes a gradient."""

import functools

import pytest

from megagpt.config.schema import OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import plain_init
from tests.helpers.sharded import accumulate, sharded_chunks
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import PARITY_RELATIVE, assert_tensors_close

LAYOUTS = [(Grid(tp=2), 1), (Grid(dp=2), 1), (Grid(dp=2), 3), (Grid(pp=2), 0), (Grid(tp=2, pp=2), 2), (Grid(tp=2, dp=2), 2), (Grid(tp=4), 1)]
CUT_OTHERWISE = {
    "sequence_parallel": (Grid(tp=2), 1, Layout(sequence_parallel=True, recompute="selective")),
    "context_parallel": (Grid(cp=2), 2, Layout()),
    "context_and_sequence_parallel": (Grid(tp=2, cp=2), 1, Layout(sequence_parallel=True, recompute="full")),
    "uneven_recomputed_pipeline": (Grid(pp=2), 1, Layout(stage_layers=(3, 1), recompute="full")),
    "interleaved_recomputed_pipeline": (Grid(pp=2), 1, Layout(num_chunks=2, recompute="full")),
    "interleaved_pipeline": (Grid(pp=2, dp=2), 2, Layout(num_chunks=2, recompute="selective")),
    "zero_3_recomputed": (Grid(dp=2), 3, Layout(recompute="full")),
}
FAMILIES = pytest.mark.parametrize("family", ["gpt", "llama"])
KEY = (1, 7)  # seed, step


def loss_and_gradients(
    family: str, grid: Grid, zero_stage: int, dropout: float, keys: list, num_microbatches: int = 4, num_layers: int = 2, layout: Layout = Layout()
) -> list[tuple]:
    """For each dropout key, of the same weights and batch."""
    config = tiny_model(family, True, num_layers=num_layers, dropout=dropout)
    results = []
    for key in keys:
        engine = Engine(sharded_chunks(config, plain_init(config, seed=1), grid, layout), OptimizerConfig(lr=1.0), zero_stage)
        loss = accumulate(engine, tiny_batches(1)[0], key, num_microbatches)
        results.append((loss, held_here(engine.canonical_gradients())))
        engine.step(0.0)
        engine.close()
    return results


@functools.cache
def on_one_rank(family: str, dropout: float, key: tuple[int, int] | None, num_layers: int = 2) -> tuple:
    return run_ranks(1, loss_and_gradients, family, Grid(), 0, dropout, [key], num_layers=num_layers)[0][0]


def assert_same_gradients(per_rank: list, expected: tuple) -> None:
    for loss, _ in per_rank:
        assert loss == pytest.approx(expected[0], rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([gradients for _, gradients in per_rank]), expected[1])


@FAMILIES
@pytest.mark.parametrize(("grid", "zero"), LAYOUTS, ids=[f"tp{grid.tp}-pp{grid.pp}-dp{grid.dp}-zero{zero}" for grid, zero in LAYOUTS])
def test_dropout_gradients_do_not_depend_on_the_layout(grid, zero, family):
    ranks = run_ranks(grid.size, loss_and_gradients, family, grid, zero, 0.3, [KEY])
    assert_same_gradients([results[0] for results in ranks], on_one_rank(family, 0.3, KEY))


@FAMILIES
@pytest.mark.parametrize("cut", CUT_OTHERWISE)
def test_dropout_gradients_do_not_depend_on_how_the_model_is_cut_and_computed(cut, family):
    grid, zero, layout = CUT_OTHERWISE[cut]
    ranks = run_ranks(grid.size, loss_and_gradients, family, grid, zero, 0.3, [KEY], num_layers=4, layout=layout)
    assert_same_gradients([results[0] for results in ranks], on_one_rank(family, 0.3, KEY, num_layers=4))


@FAMILIES
@pytest.mark.parametrize("num_microbatches", [1, 2, 8, 16])
def test_dropout_gradients_do_not_depend_on_the_microbatches(num_microbatches, family):
    (results,) = run_ranks(1, loss_and_gradients, family, Grid(), 1, 0.3, [KEY], num_microbatches)
    assert_same_gradients(results, on_one_rank(family, 0.3, KEY))


@FAMILIES
def test_dropout_changes_with_the_key_and_is_off_without_one(family):
    keys = [KEY, KEY, (1, 8), (2, 7), None]
    (losses,) = ([loss for loss, _ in results] for results in run_ranks(1, loss_and_gradients, family, Grid(), 0, 0.3, keys))
    assert losses[0] == losses[1]
    assert len({losses[0], losses[2], losses[3], losses[4]}) == 4
    assert losses[4] == on_one_rank(family, 0.0, None)[0], "without a key, as if the model's probability were 0"
    assert on_one_rank(family, 0.0, KEY)[0] == losses[4], "probability 0 with a key, likewise"
