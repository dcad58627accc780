"""What a stage would do on N ranks, worked out without any process group."""

from __future__ import annotations

from megagpt.checkpoint.layout import CheckpointError, find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.check import check_layout, check_parent, check_pretrain, check_rlhf, check_role, num_microbatches
from megagpt.config.schema import PretrainConfig, RlhfConfig, StageConfig
from megagpt.engine.schedule import run_steps
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.placement import build_grids, num_ranks, stage_grid
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
        total = f"{steps[-1].stop * config.sequence_length:,} tokens"
        if config.batch.ramp is None:
            lines.append(f"run         {len(steps)} steps x {tokens:,} tokens = {total}")
        else:
            lines.append(f"run         {len(steps)} steps, {total}; from {len(steps[0]):,} rows a step to {config.batch.global_batch_size:,} over "
                         f"{config.batch.ramp.tokens:,} tokens")  # fmt: skip
    else:
        check_layout(config.parallel, config.precision)
        parent = _checkpoint(config, config.parent)
        if parent is not None:
            check_parent(config, parent.model_config, grid.dp)
        lines.append(f"parameters  {_parameters(config, config.parent, parent, config.stage == 'reward')}")
    micro = num_microbatches(config.batch, grid.dp)
    lines.append(f"batch       {config.batch.global_batch_size} = {config.batch.micro_batch_size} x {micro} microbatches x {grid.dp} replicas")
    return "\n".join(lines)


def _checkpoint(config: StageConfig | RlhfConfig, parent: str) -> Checkpoint | None:
    """The checkpoint that a stage would start from; None where it is still to come."""
    try:
        folder = find_checkpoint(parent, RunFolder(config.run))
    except CheckpointError:
        return None
    return Checkpoint.open(folder)


def _parameters(config: StageConfig | RlhfConfig, parent: str, checkpoint: Checkpoint | None, scalar_head: bool) -> str:
    """How many a stage's model has, known from the checkpoint that it starts from."""
    if checkpoint is None:
        return f"known once there is a checkpoint in {RunFolder(config.run).path / parent}"
    return f"{num_parameters(ModelShape(checkpoint.model_config), scalar_head):,} (from {checkpoint.path})"


def _rlhf(config: RlhfConfig, ranks: int | None) -> str:
    if config.placement.is_auto:
        return "placement   auto: the planner chooses at the start, by the memory of the devices; `megagpt plan --ranks N` shows what fits"
    grids = build_grids(config.placement, ranks or num_ranks(config.placement))
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    ppo, lines = config.ppo, []
    for role, grid in grids.items():
        scalar_head = role in ("reward", "value")
        start = config.reward if scalar_head and config.reward is not None else config.policy
        checkpoint = _checkpoint(config, start)
        if checkpoint is not None:
            check_role(config, role, checkpoint.model_config, grid.tp, grid.pp)
        lines.append(f"{role:<11} {grid}, parameters: {_parameters(config, start, checkpoint, scalar_head)}")
    lines.append(f"rollout     {ppo.rollout_batch_size} responses of at most {config.prompts.max_response_length} tokens, {ppo.steps} rounds")
    lines.append(f"update      {ppo.epochs} epochs x {ppo.rollout_batch_size // ppo.minibatch_size} minibatches of {ppo.minibatch_size}")
    return "\n".join(lines)
