"""Pipeline stages: every layer once, in order, or a clear refusal."""

import pytest

from megagpt.config.stages import stage_layers


@pytest.mark.parametrize(("num_layers", "num_stages"), [(1, 1), (4, 1), (4, 2), (4, 4), (12, 3)])
def test_stages_hold_every_layer_once_in_order(num_layers, num_stages):
    stages = [stage_layers(num_layers, num_stages, stage) for stage in range(num_stages)]
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))
    assert len({len(stage) for stage in stages}) == 1


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "rule"),
    [(3, 4, "num_layers 3 is less than pipeline_parallel_size 4"), (6, 4, "num_layers 6 is not divisible by pipeline_parallel_size 4")],
)
def test_stages_refuse_uneven_pipelines(num_layers, num_stages, rule):
    with pytest.raises(ValueError, match=rule):
        stage_layers(num_layers, num_stages, 0)


def test_stages_may_leave_the_embedding_and_the_head_alone():
    blocks = [stage_layers(5, 2, block % 2, num_chunks=2, chunk=block // 2, layers_of_stages=[0, 3, 2, 0]) for block in range(4)]
    assert [list(block) for block in blocks] == [[], [0, 1, 2], [3, 4], []]


@pytest.mark.parametrize("layers", [[2, 0, 3, 0], [3, 3, -1, 0], [2, 2], [2, 2, 2, 2], [6, 0, 0, -1]])
def test_stages_refuse_a_block_without_work(layers):
    with pytest.raises(ValueError, match=r"must be 4 numbers that add up to num_layers 5, 0 in the first or the last at most"):
        stage_layers(5, 2, 0, num_chunks=2, layers_of_stages=layers)
