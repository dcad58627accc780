"""Rules that involve several fields, checked before any process group exists. Each message: field, value, rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from megagpt.config.load import ConfigError, nearest
from megagpt.config.prepare import PrepareConfig
from megagpt.config.schema import (
    BatchConfig,
    DpoConfig,
    LoraConfig,
    LossScaleConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    PretrainConfig,
    RecordsConfig,
    RecordSource,
    RewardConfig,
    RlhfConfig,
    SftConfig,
    TokenFilesConfig,
    TokenizeConfig,
    TokenizerTrainConfig,
)
from megagpt.config.stages import stage_layers


def check_prepare(config: PrepareConfig) -> None:
    """Sources can be told apart, and the executor knows what it needs."""
    names = [source.name for source in config.sources]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise ConfigError(f"sources: two are named {twice!r}; names stand in the ids of documents and must differ")
    toxicity = config.steps.toxicity
    for name in () if toxicity is None else toxicity.by_source:
        if name not in names:
            raise ConfigError(f"steps.toxicity.by_source: no source is named {name!r}{nearest(name, names)}")
    personal = config.steps.personal_data
    looked_for = () if personal is None else (*personal.kinds, *(["NAME"] if personal.engine == "presidio" else []))
    for kind in () if personal is None else personal.drop_above:
        if kind not in looked_for:
            rule = "engine: presidio finds it" if kind == "NAME" else "add it to steps.personal_data.kinds"
            raise ConfigError(f"steps.personal_data.drop_above: {kind} is not looked for; {rule}")
    if config.executor.kind == "slurm" and config.executor.slurm is None:
        raise ConfigError("executor.slurm is missing: kind slurm needs its partition at least")
    for name, step in (("quality", config.steps.quality), ("toxicity", config.steps.toxicity)):
        if step is not None and not Path(step.classifier, "classifier.json").is_file():
            raise ConfigError(f"steps.{name}.classifier = {step.classifier}: no classifier.json in this folder; `megagpt data train-{name}` writes it")


def check_model(
    model: ModelConfig, tp: int, pp: int, where: str = "model", *, cp: int = 1, num_chunks: int = 1, layers_of_stages: list[int] | None = None
) -> None:
    """Can this model be cut over tp tensor-parallel, pp pipeline and cp context-parallel ranks?"""
    heads, groups = model.num_attention_heads, model.num_query_groups or model.num_attention_heads
    if model.hidden_size % heads:
        raise ConfigError(f"{where}.num_attention_heads = {heads}: must divide hidden_size {model.hidden_size}")
    if heads % groups:
        raise ConfigError(f"{where}.num_query_groups = {groups}: must divide num_attention_heads {heads}")
    if model.family == "llama" and (model.hidden_size // heads) % 2:
        raise ConfigError(f"{where}: head size {model.hidden_size // heads} is odd, and rotary positions turn pairs")
    for name, value in (("num_attention_heads", heads), ("num_query_groups", groups), ("ffn_hidden_size", model.mlp_width)):
        if value % tp:
            fits = _nearest(tp, lambda size: not (heads % size or groups % size or model.mlp_width % size))
            raise ConfigError(f"{where}.{name} = {value}: not divisible by the tensor-parallel size {tp}; {fits} would do")
    if groups // tp % cp:
        fits = _nearest(cp, lambda size: not groups // tp % size)
        raise ConfigError(
            f"{where}.num_query_groups = {groups}: the {groups // tp} of a tensor-parallel rank are not divisible by the context-parallel size {cp}, "
            f"over which attention shares its heads; {fits} would do"
        )
    if model.num_layers < pp:
        raise ConfigError(f"{where}.num_layers = {model.num_layers}: less than the pipeline-parallel size {pp}; a stage would be empty")
    try:
        stage_layers(model.num_layers, pp, 0, num_chunks=num_chunks, layers_of_stages=layers_of_stages)
    except ValueError as error:
        blocks = pp * num_chunks
        even = [model.num_layers // blocks + (block < model.num_layers % blocks) for block in range(blocks)]
        nearest = f"stage_layers {even} would do" if min(even) > 0 else f"{model.num_layers // pp} virtual stages at most"
        raise ConfigError(f"{where}.num_layers = {model.num_layers}: {error}; {nearest}") from error


def check_parallel(parallel: ParallelConfig, precision: PrecisionConfig, model: ModelConfig, where: str = "model") -> None:
    """Is this layout legal, and can this model be cut so?"""
    check_layout(parallel, precision)
    check_model(
        model, parallel.tensor_parallel_size, parallel.pipeline_parallel_size, where,
        cp=parallel.context_parallel_size, num_chunks=parallel.virtual_pipeline_size, layers_of_stages=parallel.stage_layers,
    )


def check_layout(parallel: ParallelConfig, precision: PrecisionConfig) -> None:
    """Which combinations of layouts and precision are legal for any model, and why another is not."""
    pp, chunks, zero = parallel.pipeline_parallel_size, parallel.virtual_pipeline_size, parallel.zero_stage
    if chunks > 1 and pp == 1:
        raise ConfigError(f"parallel.virtual_pipeline_size = {chunks} with pipeline_parallel_size = 1: there is no pipeline to interleave; take 1")
    if zero == 3 and pp > 1:
        raise ConfigError(f"parallel.zero_stage = 3 with pipeline_parallel_size = {pp}: not supported together; take zero_stage 1 or 2")
    if zero == 0 and precision.dtype != "fp32":
        raise ConfigError(f"precision.dtype = {precision.dtype} with parallel.zero_stage = 0: float32 masters are kept by ZeRO 1 to 3; take zero_stage 1")
    if parallel.offload_optimizer != "none":
        if zero == 0:
            raise ConfigError(f"parallel.offload_optimizer = {parallel.offload_optimizer} with zero_stage = 0: it is ZeRO that offloads; take zero_stage 1")
        if parallel.offload_optimizer == "nvme" and (zero < 3 or parallel.offload_path is None):
            raise ConfigError("parallel.offload_optimizer = nvme: needs zero_stage 3 and offload_path, a folder on the drive; or take cpu")
    check_loss_scale(precision.dtype, precision.loss_scale, "precision")


def check_loss_scale(dtype: str, loss_scale: LossScaleConfig, where: str) -> None:
    """DeepSpeed takes the exponent of the first scale."""
    scale = loss_scale.initial
    if dtype == "fp16" and math.frexp(scale)[0] != 0.5:
        raise ConfigError(f"{where}.loss_scale.initial = {scale:g}: must be a power of two; {2.0 ** round(math.log2(scale)):g} is the nearest")


def check_lora(lora: LoraConfig, model: ModelConfig, field: str = "lora") -> None:
    """Are adapters of this rank smaller than what they adapt?"""
    if lora.rank > model.hidden_size:
        raise ConfigError(f"{field}.rank = {lora.rank}: more than the model's hidden_size; {model.hidden_size} is the most, and 8 is usual")


def ranks_per_row(parallel: ParallelConfig) -> int:
    """Ranks that hold equal parts of each row's activations."""
    return parallel.context_parallel_size * (parallel.tensor_parallel_size if parallel.sequence_parallel else 1)


def check_length(parallel: ParallelConfig, length: int, field: str) -> None:
    """Rows of this many tokens are shared by context- and sequence-parallel ranks in equal parts."""
    parts = ranks_per_row(parallel)
    if length % parts:
        raise ConfigError(f"{field} = {length}: not divisible by the {parts} ranks that share each row; {max(1, round(length / parts)) * parts} is the nearest")


def _nearest(wanted: int, fits: Callable[[int], bool]) -> int:
    """The fitting number next to `wanted`; 1 always fits."""
    return min((size for size in range(1, 2 * wanted + 1) if fits(size)), key=lambda size: abs(size - wanted))


def num_microbatches(batch: BatchConfig, dp: int, where: str = "batch") -> int:
    """Microbatches of one step on each replica."""
    if batch.global_batch_size % (batch.micro_batch_size * dp):
        raise ConfigError(
            f"{where}.global_batch_size = {batch.global_batch_size}: not a multiple of micro_batch_size {batch.micro_batch_size} x {dp} replicas"
        )
    return batch.global_batch_size // (batch.micro_batch_size * dp)


def check_tokenizer(config: TokenizerTrainConfig, *, trains: bool, foreign: bool) -> None:
    """Is it clear what is to be learned, and from what?"""
    if trains and foreign:
        raise ConfigError("--tokenizer with train: training makes the run's own tokenizer; measure another with `tokenizer report`")
    if config.source_weights and config.sampling == "first":
        raise ConfigError("source_weights with sampling = first: the first documents are taken as they come; set sampling: spread")


def check_tokenize(config: TokenizeConfig) -> None:
    """Can these sources be mixed?"""
    mixture = config.mixture
    if mixture is None:
        return
    if not config.by_source:
        raise ConfigError("mixture with by_source = false: only token files of single sources can be mixed; set by_source: true")
    if mixture.input not in config.inputs:
        raise ConfigError(f"mixture.input = {mixture.input}: is none of inputs{nearest(mixture.input, list(config.inputs))}")
    if (mixture.weights is None) == (mixture.epochs is None):
        raise ConfigError(f"mixture: {'neither' if mixture.weights is None else 'both'} of weights and epochs; give one of them")
    if mixture.epochs is not None and mixture.tokens is not None:
        raise ConfigError(f"mixture.tokens = {mixture.tokens} with epochs: the length follows from the epochs; leave it out, or give weights")


def check_pretrain(config: PretrainConfig, dp: int) -> None:
    """Sizes of a pre-training job."""
    check_parallel(config.parallel, config.precision, config.model)
    num_microbatches(config.batch, dp)
    check_length(config.parallel, config.sequence_length, "sequence_length")
    _check_held_out(config.data)
    if config.sequence_length > config.model.max_sequence_length:
        raise ConfigError(f"sequence_length = {config.sequence_length}: longer than model.max_sequence_length {config.model.max_sequence_length}")
    first = config.batch.ramp.initial_batch_size if config.batch.ramp else config.batch.global_batch_size
    if config.train_tokens < first * config.sequence_length:
        raise ConfigError(f"train_tokens = {config.train_tokens}: less than one step ({first} x {config.sequence_length} tokens)")
    anomaly = config.anomaly
    if anomaly.spike_factor > 0 and config.every.save == 0:
        raise ConfigError(
            f"anomaly.spike_factor = {anomaly.spike_factor:g} with every.save = 0: there is no checkpoint to go back to; "
            f"take every.save {anomaly.window}, as many steps as pass before the first verdict (anomaly.window)"
        )
    optimizer, end = config.optimizer, config.optimizer.decay_tokens or config.train_tokens
    in_tokens = optimizer.warmup_tokens is not None
    warmup = optimizer.warmup_tokens if in_tokens else round(optimizer.warmup_ratio * config.train_tokens)
    if warmup >= end:
        named = f"warmup_tokens = {warmup}" if in_tokens else f"warmup_ratio = {optimizer.warmup_ratio} ({warmup} tokens)"
        raise ConfigError(f"optimizer.{named}: must be less than the {end} tokens at which the schedule ends")
    ramp, full = config.batch.ramp, config.batch.global_batch_size
    if ramp is not None and (ramp.initial_batch_size > full or (full - ramp.initial_batch_size) % ramp.increment):
        raise ConfigError(
            f"batch.ramp: from {ramp.initial_batch_size} in steps of {ramp.increment} does not reach global_batch_size {full}; "
            "increment must divide the difference"
        )


def _check_held_out(data: TokenFilesConfig) -> None:
    """Validation rows come from one place."""
    if (data.valid is None) == (data.split is None):
        found = "neither is given" if data.valid is None else "both are given"
        raise ConfigError(f"data.valid and data.split: {found}; name held-out files or a split of the training ones, such as [0.98, 0.01, 0.01]")
    if data.split is not None and not (math.isfinite(sum(data.split)) and min(data.split[:2]) > 0 <= data.split[2]):
        raise ConfigError(f"data.split = {list(data.split)}: training and validation need parts above 0, the test 0 or more, such as [0.98, 0.01, 0.01]")


def check_parent(config: SftConfig | RewardConfig | DpoConfig, model: ModelConfig, dp: int) -> None:
    """Sizes of an SFT, reward or DPO job against the model that it starts from."""
    if config.stage == "sft":
        _check_plain_sources(config.data)
    else:
        _check_ranking_stage(config)
    if config.stage == "reward":
        _check_layers(config, model)
        model = model.model_copy(update={"num_layers": config.keep_layers or model.num_layers})
    if config.data.valid is None and not any(source.hold_out for source in config.data.train):
        raise ConfigError("data.train: hold_out is false for every source, so that nothing can be held out; give data.valid")
    check_steps(config.optimizer, "optimizer")
    check_parallel(config.parallel, config.precision, model, "parent model")
    if config.lora is not None:
        check_lora(config.lora, model)
        if 0 in (config.parallel.stage_layers or ()):
            raise ConfigError(
                f"parallel.stage_layers = {config.parallel.stage_layers} with lora: a stage without layers has nothing to train; take 1 at least"
            )
    num_microbatches(config.batch, dp)
    if config.data.max_length > model.max_sequence_length:
        raise ConfigError(f"data.max_length = {config.data.max_length}: longer than the model's context of {model.max_sequence_length}")
    parts, label = ranks_per_row(config.parallel), config.stage == "sft"  # a demonstration's last token is a label alone
    if (width := -(-(config.data.max_length - label) // parts) * parts) > model.max_sequence_length:
        raise ConfigError(
            f"data.max_length = {config.data.max_length}: filled up to {width} inputs for the {parts} ranks that share each row, longer than the "
            f"model's context of {model.max_sequence_length}; {model.max_sequence_length // parts * parts + label} is the most"
        )


def _check_ranking_stage(config: RewardConfig | DpoConfig) -> None:
    """What is not built, or makes no sense, where an answer is one number."""
    if config.data.overlong == "truncate":
        raise ConfigError("data.overlong = truncate: nobody ranked an answer that is cut short; take drop or refuse here")
    if config.parallel.virtual_pipeline_size > 1:
        found = f"parallel.virtual_pipeline_size = {config.parallel.virtual_pipeline_size}"
        raise ConfigError(f"{found}: not built for the {config.stage} stage; take 1 here")
    if config.stage == "reward" and config.parallel.context_parallel_size > 1:
        raise ConfigError(f"parallel.context_parallel_size = {config.parallel.context_parallel_size}: a reward is read at one token; take 1 here")
    if config.stage == "reward" and config.parallel.sequence_parallel:
        raise ConfigError("parallel.sequence_parallel = true: not built for the reward stage; leave it out")
    if config.stage == "dpo" and config.loss.kind == "ipo" and config.loss.label_smoothing > 0:
        raise ConfigError(f"loss.label_smoothing = {config.loss.label_smoothing} with loss.kind = ipo: only sigmoid knows it; take 0")


def _check_layers(config: RewardConfig, model: ModelConfig) -> None:
    """Which of the parent's layers are kept and trained. Activations of frozen ones are kept for whole rows, and are the same in every epoch."""
    number, parallel, most = config.trainable_layers, config.parallel, config.keep_layers or model.num_layers
    if most > model.num_layers:
        raise ConfigError(f"keep_layers = {most}: the parent model has {model.num_layers} layers; {model.num_layers} is the most")
    if number is None:
        if config.activations is not None:
            raise ConfigError(f"activations = {config.activations}: without trainable_layers no layer is frozen; give it, or leave activations out")
        return
    if number > most:
        raise ConfigError(f"trainable_layers = {number}: the model has {most} layers; {most} is the most")
    if parallel.pipeline_parallel_size > 1:
        raise ConfigError(f"trainable_layers = {number} with parallel.pipeline_parallel_size = {parallel.pipeline_parallel_size}: not supported together; take 1")
    if config.lora is not None:
        raise ConfigError(f"trainable_layers = {number} with lora: adapters belong to a model whose layers are all computed; leave one of them out")
    if parallel.zero_stage == 3:
        raise ConfigError(f"trainable_layers = {number} with parallel.zero_stage = 3: not supported together; take zero_stage 2")
    dropout = model.dropout if config.dropout is None else config.dropout
    if dropout > 0:
        raise ConfigError(f"dropout = {dropout} with trainable_layers = {number}: activations that are kept cannot change from step to step; set dropout: 0")


def _check_plain_sources(data: RecordsConfig) -> None:
    """Demonstrations have neither slices nor weights."""
    for source in [*data.train, *(data.valid or [])]:
        for name, value in (("slice", source.slice), ("weight", source.weight)):
            if value != RecordSource.model_fields[name].default:
                raise ConfigError(f"data: {name} = {value!r} of {source.path}: only rankings have a {name}; leave it out")


def check_steps(optimizer: OptimizerConfig, where: str) -> None:
    """Outside of pre-training a run is counted in steps, and its schedule with it."""
    for name in ("warmup_tokens", "decay_tokens"):
        if getattr(optimizer, name) is not None:
            raise ConfigError(f"{where}.{name} = {getattr(optimizer, name)}: only pre-training counts tokens; use warmup_ratio")


def check_rlhf(config: RlhfConfig, replicas: dict[str, int]) -> None:
    """Batch sizes of a PPO job against the replicas of each role."""
    ppo = config.ppo
    check_steps(config.policy_optimizer, "policy_optimizer")
    check_steps(config.value_optimizer, "value_optimizer")
    _check_rewards(config)
    _check_advantage(config)
    _check_controller(config)
    if config.value_lora is not None and config.placement.value is None:
        raise ConfigError("value_lora without placement.value: there is no value model to adapt; leave it out")
    if ppo.rollout_batch_size % ppo.minibatch_size:
        raise ConfigError(f"ppo.minibatch_size = {ppo.minibatch_size}: must divide rollout_batch_size {ppo.rollout_batch_size}")
    for role, dp in replicas.items():
        rows = dp if role == "rollout" else ppo.micro_batch_size * dp  # responses are written one by one
        if role == "rollout" and ppo.rollout_batch_size % rows:
            raise ConfigError(f"ppo.rollout_batch_size = {ppo.rollout_batch_size}: not a multiple of the {dp} replicas that write (placement.rollout)")
        if role != "rollout" and ppo.minibatch_size % rows:
            raise ConfigError(
                f"ppo.minibatch_size = {ppo.minibatch_size}: not a multiple of micro_batch_size {ppo.micro_batch_size} x {dp} replicas of the {role}"
            )
        if config.prompts.eval_prompts % rows:
            raise ConfigError(f"prompts.eval_prompts = {config.prompts.eval_prompts}: not a multiple of {rows}, the rows of one pass of the {role}")
    most = most_parts(config, replicas, ppo.rollout_batch_size)
    if ppo.rollout_parts is not None and most % ppo.rollout_parts:
        fits = _nearest(ppo.rollout_parts, lambda size: not most % size)
        raise ConfigError(
            f"ppo.rollout_parts = {ppo.rollout_parts}: each part of the {ppo.rollout_batch_size} responses must be a multiple of micro_batch_size "
            f"{ppo.micro_batch_size} x the replicas of every model; {fits} would do"
        )


def most_parts(config: RlhfConfig, replicas: dict[str, int], num_rows: int) -> int:
    """Into how many equal parts rows can be cut such that every model reads each in whole microbatches; any divisor of it does as well."""
    return math.gcd(*(num_rows // (dp if role == "rollout" else config.ppo.micro_batch_size * dp) for role, dp in replicas.items()))


def check_role(config: RlhfConfig, role: str, model: ModelConfig, tp: int, pp: int) -> None:
    """Can this role's model be cut so, and adapted where the configuration says so?"""
    check_model(model, tp, pp, f"placement.{role}")
    field = {"policy": "lora", "value": "value_lora"}.get(role)
    if field is not None and (lora := getattr(config, field)) is not None:
        check_lora(lora, model, field)


def _check_rewards(config: RlhfConfig) -> None:
    """There is a reward, and every model has a place."""
    placement = config.placement
    if config.reward is None and config.reward_function is None:
        raise ConfigError("reward = null: nothing is left to be rewarded; name a reward model's checkpoint or a reward_function")
    if (config.reward is None) != (placement.reward is None):
        found = "with reward = null: there is no reward model to place" if config.reward is None else "is missing: the reward model needs ranks"
        raise ConfigError(f"placement.reward {found}; {'leave it out' if config.reward is None else 'such as {ranks: [0]}'}")


def _check_controller(config: RlhfConfig) -> None:
    """An adaptive beta can move, and stays positive: a rollout takes at most 0.2 n / horizon of it (`rlhf/kl.py`)."""
    kl, rollout = config.kl, config.ppo.rollout_batch_size
    if kl.target is None:
        return
    if kl.coefficient == 0:
        raise ConfigError(f"kl.coefficient = 0 with kl.target = {kl.target:g}: the controller multiplies it, and 0 stays 0; 0.02 is usual")
    if 5 * kl.horizon <= rollout:
        raise ConfigError(
            f"kl.horizon = {kl.horizon}: one rollout of rollout_batch_size {rollout} responses could take beta to 0 or below; {rollout // 5 + 1} is the least"
        )


def _check_advantage(config: RlhfConfig) -> None:
    """A critic where one is needed, and samples to compare where there is none."""
    ppo, placed = config.ppo, config.placement.value is not None
    if ppo.advantage == "gae" and not placed:
        raise ConfigError("placement.value is missing: ppo.advantage = gae needs a value model; place it, or take grpo or rloo")
    if ppo.rollout_batch_size % ppo.samples_per_prompt:
        fits = _nearest(ppo.samples_per_prompt, lambda size: not ppo.rollout_batch_size % size)
        raise ConfigError(f"ppo.samples_per_prompt = {ppo.samples_per_prompt}: must divide rollout_batch_size {ppo.rollout_batch_size}; {fits} would do")
    if ppo.value_warmup_steps >= ppo.steps:
        raise ConfigError(f"ppo.value_warmup_steps = {ppo.value_warmup_steps}: the policy would never learn in {ppo.steps} steps; {ppo.steps - 1} is the most")
    if ppo.advantage == "gae":
        return
    if placed:
        raise ConfigError(f"placement.value with ppo.advantage = {ppo.advantage}: there is no value model then; leave it out")
    if ppo.samples_per_prompt < 2:
        raise ConfigError(f"ppo.samples_per_prompt = {ppo.samples_per_prompt}: {ppo.advantage} compares the responses to a prompt; 4 is usual")
    if ppo.value_warmup_steps:
        raise ConfigError(f"ppo.value_warmup_steps = {ppo.value_warmup_steps} with ppo.advantage = {ppo.advantage}: no value model warms up; take 0")
