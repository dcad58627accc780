"""Configuration -> grids: one grid over all ranks for the single-model stages, four grids on one world for RLHF."""

from __future__ import annotations

import itertools

from megagpt.config.check import check_loss_scale, most_parts
from megagpt.config.load import ConfigError
from megagpt.config.schema import ParallelConfig, PlacementConfig, RlhfConfig, RoleConfig, RolloutLayout
from megagpt.parallel.grid import Grid

ROLES = ("policy", "rollout", "reference", "reward", "value")
TRAINED = ("policy", "value")


def stage_grid(parallel: ParallelConfig, world_size: int) -> Grid:
    """The one grid of a pre-training, SFT or reward job.

    Raises:
        ConfigError: the sizes do not multiply to the number of ranks.
    """
    tp, pp, cp = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.context_parallel_size
    model_ranks = tp * pp * cp
    dp = parallel.data_parallel_size or world_size // model_ranks
    if dp == 0 or model_ranks * dp != world_size:
        sizes = f"tensor_parallel_size {tp} x pipeline_parallel_size {pp}" + (f" x context_parallel_size {cp}" if cp > 1 else "")
        nearest = max(1, round(world_size / model_ranks)) * model_ranks
        raise ConfigError(
            f"parallel: {sizes} x data_parallel_size {parallel.data_parallel_size or 'free'} does not fit {world_size} ranks: the product must be "
            f"the number of ranks; {nearest} ranks would do with data_parallel_size {nearest // model_ranks}"
        )
    return Grid(tp=tp, cp=cp, dp=dp, pp=pp)


def placed_roles(placement: PlacementConfig) -> tuple[str, ...]:
    """The roles that this job has, in the order of ROLES."""
    return tuple(role for role in ROLES if getattr(placement, role) is not None)


def num_ranks(placement: PlacementConfig) -> int:
    """As many as the placement names."""
    return 1 + max(rank for role in placed_roles(placement) for rank in getattr(placement, role).ranks)


def role_grid(role: str, config: RoleConfig | RolloutLayout, world_size: int) -> Grid:
    """Grid of one role; dp = ranks / (tp x pp)."""
    ranks = config.ranks
    if ranks != list(range(ranks[0], ranks[0] + len(ranks))):
        raise ConfigError(f"placement.{role}.ranks = {ranks}: must be consecutive and ascending")
    if ranks[0] < 0 or ranks[-1] >= world_size:
        raise ConfigError(f"placement.{role}.ranks = {ranks}: the job has ranks 0 to {world_size - 1} only")
    if len(ranks) % (config.tp * config.pp):
        raise ConfigError(f"placement.{role}.ranks = {ranks}: {len(ranks)} ranks are not a multiple of tp {config.tp} x pp {config.pp}")
    grid = Grid(tp=config.tp, pp=config.pp, dp=len(ranks) // (config.tp * config.pp), offset=ranks[0])
    if isinstance(config, RolloutLayout):
        return grid
    if config.zero == 3 and config.pp > 1:
        raise ConfigError(f"placement.{role}.zero = 3 with pp = {config.pp}: not supported together; take zero 1 or 2")
    if role in TRAINED and config.zero == 0:
        if config.precision != "fp32":
            raise ConfigError(f"placement.{role}.precision = {config.precision} with zero = 0: float32 masters are kept by ZeRO 1 to 3; take zero 1")
        if config.offload != "none":
            raise ConfigError(f"placement.{role}.offload = {config.offload} with zero = 0: it is ZeRO that offloads the optimizer; take zero 1")
    check_loss_scale(config.precision, config.loss_scale, f"placement.{role}")
    return grid


def reference_is_policy(config: RlhfConfig, grids: dict[str, Grid]) -> bool:
    """Is the reference the policy with its adapters switched off? Where there are adapters, and both models are cut alike over the same ranks, in the
    same precision."""
    placed = config.placement
    return config.lora is not None and grids["reference"] == grids["policy"] and placed.reference.precision == placed.policy.precision


def build_grids(placement: PlacementConfig, world_size: int) -> dict[str, Grid]:
    """The grid of each placed role; any two have the same ranks or none in common, and together they use every rank. A layout for the rollout that
    is the policy's own is left out."""
    for role in placed_roles(placement):
        if getattr(placement, role).ranks is None:
            raise ConfigError(f"placement.{role}.ranks is missing: every model needs its ranks, or none has any and the planner chooses (placement: auto)")
    grids = {role: role_grid(role, getattr(placement, role), world_size) for role in placed_roles(placement)}
    for (a, grid_a), (b, grid_b) in itertools.combinations(grids.items(), 2):
        common = set(grid_a.ranks) & set(grid_b.ranks)
        if common and set(grid_a.ranks) != set(grid_b.ranks):
            raise ConfigError(
                f"placement.{b}.ranks = {list(grid_b.ranks)}: overlaps {a}'s ranks {list(grid_a.ranks)} in part; two models share all their ranks or none"
            )
    if grids.get("rollout") == grids["policy"]:
        del grids["rollout"]  # the policy's own model writes as well, without a copy
    idle = set(range(world_size)).difference(*(grid.ranks for grid in grids.values()))
    if idle:
        raise ConfigError(f"placement: ranks {sorted(idle)} of the job hold no model; start {world_size - len(idle)} ranks or place a model there")
    return grids


USUAL_PARTS = 4
"""Of a rollout, where some model can score while the policy writes: all but the last quarter of it is scored by the time that is written."""


def rollout_parts(config: RlhfConfig, grids: dict[str, Grid], num_rows: int) -> int:
    """In how many parts these rows are written: as many as the configuration says, or as near to it as they can be cut."""
    wanted = config.ppo.rollout_parts
    if wanted is None:
        wanted = 1 if len({grid.ranks for grid in grids.values()}) == 1 else USUAL_PARTS
    most = most_parts(config, {role: grid.dp for role, grid in grids.items()}, num_rows)
    return max(parts for parts in range(1, wanted + 1) if most % parts == 0)
