"""Rules that involve several fields, checked before any process group exists. Each message: field, value, rule."""

from __future__ import annotations

from megagpt.config.load import ConfigError
from megagpt.config.schema import BatchConfig, ModelConfig, PretrainConfig, RewardConfig, RlhfConfig, SftConfig


def check_model(model: ModelConfig, tp: int, pp: int, where: str = "model") -> None:
    """Can this model be cut over tp tensor-parallel ranks and pp pipeline stages?"""
    heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
    if model.hidden_size % heads:
        raise ConfigError(f"{where}.num_attention_heads = {heads}: must divide hidden_size {model.hidden_size}")
    if heads % groups:
        raise ConfigError(f"{where}.num_query_groups = {groups}: must divide num_attention_heads {heads}")
    if model.family == "llama" and (model.hidden_size // heads) % 2:
        raise ConfigError(f"{where}: head size {model.hidden_size // heads} is odd, and rotary positions turn pairs")
    for name, value in (("num_attention_heads", heads), ("num_query_groups", groups)):
        if value % tp:
            raise ConfigError(f"{where}.{name} = {value}: not divisible by the tensor-parallel size {tp}")
    if model.mlp_width % tp:
        raise ConfigError(f"{where}.ffn_hidden_size = {model.mlp_width}: not divisible by the tensor-parallel size {tp}")
    if model.num_layers < pp:
        raise ConfigError(f"{where}.num_layers = {model.num_layers}: less than the pipeline-parallel size {pp}; a stage would be empty")
    if model.num_layers % pp:
        raise ConfigError(f"{where}.num_layers = {model.num_layers}: not divisible by the pipeline-parallel size {pp}")


def num_microbatches(batch: BatchConfig, dp: int, where: str = "batch") -> int:
    """Microbatches of one step on each replica."""
    if batch.global_batch_size % (batch.micro_batch_size * dp):
        raise ConfigError(
            f"{where}.global_batch_size = {batch.global_batch_size}: not a multiple of micro_batch_size {batch.micro_batch_size} x {dp} replicas"
        )
    return batch.global_batch_size // (batch.micro_batch_size * dp)


def check_pretrain(config: PretrainConfig, tp: int, pp: int, dp: int) -> None:
    """Sizes of a pre-training job."""
    check_model(config.model, tp, pp)
    num_microbatches(config.batch, dp)
    if config.sequence_length > config.model.max_sequence_length:
        raise ConfigError(f"sequence_length = {config.sequence_length}: longer than model.max_sequence_length {config.model.max_sequence_length}")
    if config.train_tokens < config.batch.global_batch_size * config.sequence_length:
        raise ConfigError(
            f"train_tokens = {config.train_tokens}: less than one step ({config.batch.global_batch_size} x {config.sequence_length} tokens)"
        )


def check_parent(config: SftConfig | RewardConfig, model: ModelConfig, tp: int, pp: int, dp: int) -> None:
    """Sizes of an SFT or reward job against the model that it starts from."""
    num_microbatches(config.batch, dp)
    check_model(model, tp, pp, "parent model")
    if config.data.max_length > model.max_sequence_length:
        raise ConfigError(f"data.max_length = {config.data.max_length}: longer than the model's context of {model.max_sequence_length}")


def check_rlhf(config: RlhfConfig, replicas: dict[str, int]) -> None:
    """Batch sizes of a PPO job against the replicas of each role."""
    ppo = config.ppo
    if ppo.rollout_batch_size % ppo.minibatch_size:
        raise ConfigError(f"ppo.minibatch_size = {ppo.minibatch_size}: must divide rollout_batch_size {ppo.rollout_batch_size}")
    for role, dp in replicas.items():
        rows = ppo.micro_batch_size * dp
        if ppo.minibatch_size % rows:
            raise ConfigError(
                f"ppo.minibatch_size = {ppo.minibatch_size}: not a multiple of micro_batch_size {ppo.micro_batch_size} x {dp} replicas of the {role}"
            )
        if config.prompts.eval_prompts % rows:
            raise ConfigError(f"prompts.eval_prompts = {config.prompts.eval_prompts}: not a multiple of {rows}, the rows of one pass of the {role}")
