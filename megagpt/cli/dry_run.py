"""What a stage would do on N ranks, worked out without any process group."""

from __future__ import annotations

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.check import check_model, check_pretrain, check_rlhf, num_microbatches
from megagpt.config.schema import PretrainConfig, RlhfConfig, StageConfig
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.placement import build_grids, stage_grid
from megagpt.runtime.distributed import world_size_from_environment
from megagpt.runtime.run_folder import RunFolder


def describe(config: StageConfig | RlhfConfig, ranks: int | None) -> str:
    """Several lines: layout, parameters, batch arithmetic. Raises as the stage itself would."""
    if isinstance(config, RlhfConfig):
        return _rlhf(config, ranks)
    world_size = ranks or world_size_from_environment()
    grid = stage_grid(config.parallel, world_size)
    lines = [f"layout      {grid}, ZeRO {config.parallel.zero_stage}"]
    if isinstance(config, PretrainConfig):
        check_pretrain(config, grid.tp, grid.pp, grid.dp)
        tokens = config.batch.global_batch_size * config.sequence_length
        steps = config.train_tokens // tokens
        if config.model.vocab_size is not None:
            lines.append(f"parameters  {num_parameters(ModelShape(config.model)):,}")
        else:
            lines.append("parameters  known once the tokenizer gives model.vocab_size")
        lines.append(f"run         {steps} steps x {tokens:,} tokens = {steps * tokens:,} tokens")
    else:
        parent = Checkpoint.open(find_checkpoint(config.parent, RunFolder(config.run)))
        check_model(parent.model_config, grid.tp, grid.pp, "parent model")
        lines.append(f"parameters  {num_parameters(ModelShape(parent.model_config), config.stage == 'reward'):,} (from {parent.path})")
    micro = num_microbatches(config.batch, grid.dp)
    lines.append(f"batch       {config.batch.global_batch_size} = {config.batch.micro_batch_size} x {micro} microbatches x {grid.dp} replicas")
    return "\n".join(lines)


def _rlhf(config: RlhfConfig, ranks: int | None) -> str:
    needed = 1 + max(rank for role in type(config.placement).model_fields for rank in getattr(config.placement, role).ranks)
    grids = build_grids(config.placement, ranks or needed)
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    ppo = config.ppo
    lines = [f"{role:<11} {grid}" for role, grid in grids.items()]
    lines.append(f"rollout     {ppo.rollout_batch_size} responses of at most {config.prompts.max_response_length} tokens, {ppo.steps} rounds")
    lines.append(f"update      {ppo.epochs} epochs x {ppo.rollout_batch_size // ppo.minibatch_size} minibatches of {ppo.minibatch_size}")
    return "\n".join(lines)
