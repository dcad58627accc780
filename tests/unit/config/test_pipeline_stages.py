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
