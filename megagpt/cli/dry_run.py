"""What a stage would do on N ranks, worked out without any process group."""

from __future__ import annotations

from megagpt.checkpoint.layout import CheckpointError, find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.check import check_model, check_pretrain, check_rlhf, num_microbatches
from megagpt.config.schema import PretrainConfig, RlhfConfig, StageConfig
from megagpt.engine.schedule import run_steps
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.parallel.placement import build_grids, stage_grid
from megagpt.runtime.distributed import world_size_from_environment
from megagpt.runtime.run_folder import RunFolder


def describe(config: StageConfig | RlhfConfig, ranks: int | None) -> str:
    """Several lines: layout, parameters, batch arithmetic. Raises as the stage itself would, but for a parent that is still to come."""
    if isinstance(config, RlhfConfig):
        return _rlhf(config, ranks)
    world_size = ranks or world_size_from_environment()
    grid = stage_grid(config.parallel, world_size)
    lines = [f"layout      {grid}, ZeRO {config.parallel.zero_stage}"]
    if isinstance(config, PretrainConfig):
        check_pretrain(config, grid.dp)
        tokens = config.batch.global_batch_size * config.sequence_length
        steps = run_steps(config.batch, config.train_tokens, config.sequence_length)
        if config.model.vocab_size is not None:
            lines.append(f"parameters  {num_parameters(ModelShape(config.model)):,}")
        else:
            lines.append("parameters  known once the tokenizer gives model.vocab_size")
        lines.append(f"run         {len(steps)} steps x {tokens:,} tokens = {steps[-1].stop * config.sequence_length:,} tokens")
        if config.batch.ramp is not None:
            lines.append(f"ramp        from {len(steps[0])} rows a step to {config.batch.global_batch_size} over {config.batch.ramp.tokens:,} tokens")
    else:
        lines.append(f"parameters  {_parameters(config, config.parent, grid, config.stage == 'reward', 'parent model')}")
    micro = num_microbatches(config.batch, grid.dp)
    lines.append(f"batch       {config.batch.global_batch_size} = {config.batch.micro_batch_size} x {micro} microbatches x {grid.dp} replicas")
    return "\n".join(lines)


def _parameters(config: StageConfig | RlhfConfig, parent: str, grid: Grid, scalar_head: bool, where: str) -> str:
    """How many a stage's model has, known from the checkpoint that it starts from."""
    run = RunFolder(config.run)
    try:
        folder = find_checkpoint(parent, run)
    except CheckpointError:
        return f"known once there is a checkpoint in {run.path / parent}"
    checkpoint = Checkpoint.open(folder)
    check_model(checkpoint.model_config, grid.tp, grid.pp, where)
    return f"{num_parameters(ModelShape(checkpoint.model_config), scalar_head):,} (from {folder})"


def _rlhf(config: RlhfConfig, ranks: int | None) -> str:
    needed = 1 + max(rank for role in type(config.placement).model_fields for rank in getattr(config.placement, role).ranks)
    grids = build_grids(config.placement, ranks or needed)
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    ppo, lines = config.ppo, []
    for role, grid in grids.items():
        scalar_head = role in ("reward", "value")
        parameters = _parameters(config, config.reward if scalar_head else config.policy, grid, scalar_head, f"placement.{role}")
        lines.append(f"{role:<11} {grid}, parameters: {parameters}")
    lines.append(f"rollout     {ppo.rollout_batch_size} responses of at most {config.prompts.max_response_length} tokens, {ppo.steps} rounds")
    lines.append(f"update      {ppo.epochs} epochs x {ppo.rollout_batch_size // ppo.minibatch_size} minibatches of {ppo.minibatch_size}")
    return "\n".join(lines)
