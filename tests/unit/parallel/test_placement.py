"""Placement: which ranks hold which model, and what is refused, by field, value and rule."""

import re

import pytest

from megagpt.config.load import ConfigError
from megagpt.config.schema import ParallelConfig, PlacementConfig, RoleConfig, RolloutLayout
from megagpt.parallel.grid import Grid
from megagpt.parallel.placement import build_grids, role_grid, stage_grid


def parallel(tp=1, pp=1, dp=None, zero=1) -> ParallelConfig:
    return ParallelConfig(tensor_parallel_size=tp, pipeline_parallel_size=pp, data_parallel_size=dp, zero_stage=zero)


def placement(policy, reference, reward, value) -> PlacementConfig:
    """Each role by its list of ranks."""
    return PlacementConfig(
        policy=RoleConfig(ranks=policy), reference=RoleConfig(ranks=reference), reward=RoleConfig(ranks=reward), value=RoleConfig(ranks=value)
    )


@pytest.mark.parametrize(
    ("settings", "world_size", "grid"),
    [
        (parallel(), 1, Grid()),
        (parallel(), 4, Grid(dp=4)),
        (parallel(tp=2), 8, Grid(tp=2, dp=4)),
        (parallel(tp=2, pp=2, dp=2), 8, Grid(tp=2, pp=2, dp=2)),
        (parallel(tp=2, zero=3), 4, Grid(tp=2, dp=2)),
    ],
)
def test_placement_of_one_model_fills_the_world(settings, world_size, grid):
    assert stage_grid(settings, world_size) == grid


@pytest.mark.parametrize(
    ("settings", "world_size", "message"),
    [
        (parallel(tp=4), 2, "tensor_parallel_size 4 x pipeline_parallel_size 1 x data_parallel_size free does not fit 2 ranks"),
        (parallel(tp=2), 3, "does not fit 3 ranks: the product must be the number of ranks"),
        (parallel(dp=2), 4, "data_parallel_size 2 does not fit 4 ranks"),
        (parallel(dp=4), 2, "data_parallel_size 4 does not fit 2 ranks"),
        (parallel(tp=2, pp=2), 6, "does not fit 6 ranks: .* 8 ranks would do with data_parallel_size 2"),
    ],
)
def test_placement_of_one_model_refuses(settings, world_size, message):
    with pytest.raises(ConfigError, match=message):
        stage_grid(settings, world_size)


def test_placement_gives_the_replicas_what_tensor_and_pipeline_leave():
    assert role_grid("policy", RoleConfig(ranks=[2, 3, 4, 5], tp=2), 6) == Grid(tp=2, dp=2, offset=2)
    assert role_grid("policy", RoleConfig(ranks=[2, 3, 4, 5], tp=2, pp=2), 6) == Grid(tp=2, pp=2, offset=2)


@pytest.mark.parametrize(
    ("role", "message"),
    [
        (RoleConfig(ranks=[0, 2]), "placement.value.ranks = [0, 2]: must be consecutive and ascending"),
        (RoleConfig(ranks=[1, 0]), "placement.value.ranks = [1, 0]: must be consecutive and ascending"),
        (RoleConfig(ranks=[1, 1]), "placement.value.ranks = [1, 1]: must be consecutive and ascending"),
        (RoleConfig(ranks=[3, 4]), "placement.value.ranks = [3, 4]: the job has ranks 0 to 3 only"),
        (RoleConfig(ranks=[-1, 0]), "placement.value.ranks = [-1, 0]: the job has ranks 0 to 3 only"),
        (RoleConfig(ranks=[0, 1, 2], tp=2), "placement.value.ranks = [0, 1, 2]: 3 ranks are not a multiple of tp 2 x pp 1"),
        (RoleConfig(ranks=[0, 1], tp=2, pp=2), "placement.value.ranks = [0, 1]: 2 ranks are not a multiple of tp 2 x pp 2"),
        (RoleConfig(ranks=[0, 1], pp=2, zero=3), "placement.value.zero = 3 with pp = 2"),
        (RoleConfig(ranks=[0], zero=0, precision="bf16"), "placement.value.precision = bf16 with zero = 0: float32 masters are kept by ZeRO 1 to 3; take zero 1"),
        (RoleConfig(ranks=[0], zero=0, offload="cpu"), "placement.value.offload = cpu with zero = 0: it is ZeRO that offloads the optimizer; take zero 1"),
        (
            RoleConfig(ranks=[0], precision="fp16", loss_scale={"initial": 1000.0}),
            "placement.value.loss_scale.initial = 1000: must be a power of two; 1024 is the nearest",
        ),
    ],
)
def test_placement_of_a_role_refuses(role, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        role_grid("value", role, world_size=4)


@pytest.mark.parametrize(
    ("roles", "offsets"),
    [
        (placement([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]), [0, 0, 0, 0]),
        (placement([0], [1], [2], [3]), [0, 1, 2, 3]),
        (placement([2, 3], [1], [0], [2, 3]), [2, 1, 0, 2]),
    ],
    ids=["colocated", "each_alone", "mixed"],
)
def test_placement_of_four_roles(roles, offsets):
    grids = build_grids(roles, world_size=4)
    assert list(grids) == ["policy", "reference", "reward", "value"]
    assert [grid.offset for grid in grids.values()] == offsets


def test_placement_refuses_a_partial_overlap():
    with pytest.raises(ConfigError, match=re.escape("placement.reward.ranks = [1, 2]: overlaps policy's ranks [0, 1] in part")):
        build_grids(placement([0, 1], [0, 1], [1, 2], [3]), world_size=4)
    with pytest.raises(ConfigError, match=re.escape("placement.reference.ranks = [0]: overlaps policy's ranks [0, 1] in part")):
        build_grids(placement([0, 1], [0], [2], [3]), world_size=4)


def test_placement_refuses_idle_ranks():
    with pytest.raises(ConfigError, match=re.escape("ranks [2, 4] of the job hold no model; start 3 ranks")):
        build_grids(placement([0, 1], [0, 1], [3], [3]), world_size=5)


def with_rollout(**rollout) -> PlacementConfig:
    """The policy pp 2 on ranks 0 and 1, the others on 2 and 3."""
    where = placement([0, 1], [2, 3], [2, 3], [2, 3])
    return where.model_copy(update={"policy": RoleConfig(ranks=[0, 1], pp=2), "rollout": RolloutLayout(**rollout)})


def test_placement_of_the_rollout():
    assert build_grids(with_rollout(ranks=[0, 1], tp=2), 4)["rollout"] == Grid(tp=2)
    assert build_grids(with_rollout(ranks=[2, 3]), 4)["rollout"] == Grid(dp=2, offset=2)
    assert build_grids(with_rollout(ranks=[4, 5, 6, 7], tp=4), 8)["rollout"] == Grid(tp=4, offset=4)
    assert "rollout" not in build_grids(with_rollout(ranks=[0, 1], pp=2), 4), "the policy itself, without a copy"
    with pytest.raises(ConfigError, match=r"placement.rollout.ranks = \[1, 2\]: overlaps policy's ranks \[0, 1\] in part"):
        build_grids(with_rollout(ranks=[1, 2]), 4)
    with pytest.raises(ConfigError, match=r"placement.rollout.ranks = \[3, 4\]: the job has ranks 0 to 3 only"):
        build_grids(with_rollout(ranks=[3, 4]), 4)
