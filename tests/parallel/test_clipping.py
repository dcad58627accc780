"""Clipping: switched off, or with a bound that is not reached, a step is the plain step, at every ZeRO stage."""

import pytest

from megagpt.config.schema import OptimizerConfig
from megagpt.parallel.grid import Grid
from tests.helpers.gather import merge_ranks
from tests.helpers.plain import plain_init, plain_train
from tests.helpers.sharded import sharded_train
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import PARITY_RELATIVE, assert_tensors_close


@pytest.mark.parametrize("clip", [0.0, 100.0], ids=["off", "not_reached"])
@pytest.mark.parametrize(
    ("grid", "zero"),
    [(Grid(dp=2), 0), (Grid(dp=2), 1), (Grid(dp=2), 2), (Grid(dp=2), 3), (Grid(pp=2), 0), (Grid(pp=2), 2)],
    ids=["dp2-zero0", "dp2-zero1", "dp2-zero2", "dp2-zero3", "pp2-zero0", "pp2-zero2"],
)
def test_clipping_that_does_not_act_changes_nothing(grid, zero, clip):
    config, batches = tiny_model("gpt", True, num_layers=2), tiny_batches(2)
    settings = OptimizerConfig(name="sgd", lr=0.1, clip_grad=clip)
    expected = plain_train(config, plain_init(config, seed=1), batches, optimizer="sgd", lr=0.1, clip=0.0)
    ranks = run_ranks(grid.size, sharded_train, config, plain_init(config, seed=1), batches, settings, grid, zero)
    for rank in ranks:
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE), "the norm is reported all the same"
    assert_tensors_close(merge_ranks([rank.parameters for rank in ranks]), expected.parameters)
