"""The plan of a pre-training, SFT, reward or DPO job."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from megagpt.config.check import check_parent, check_pretrain, num_microbatches
from megagpt.config.load import ConfigError
from megagpt.config.schema import DpoConfig, ModelConfig, PretrainConfig, RecordsConfig, RewardConfig, StageConfig
from megagpt.engine.schedule import run_steps
from megagpt.engine.sharding import useful_zero_stage
from megagpt.model.param_map import num_parameters, num_trained
from megagpt.model.shape import ModelShape
from megagpt.parallel.placement import stage_grid
from megagpt.plan import compute, memory, speed
from megagpt.plan.hardware import Hardware
from megagpt.plan.job import Job
from megagpt.plan.memory import Memory
from megagpt.plan.parents import count_records, pretrain_model, starting_model
from megagpt.runtime.run_folder import RunFolder

RANKED_ANSWERS = 4
"""Answers in a group of the reward and DPO stages, where only the data knows: K = 4 to 9 in Ouyang et al. 2022, section 3.2."""


@dataclass(frozen=True)
class StagePlan:
    """What a job would take."""

    config: StageConfig
    job: Job
    steps: Counter[int] | None
    """Rows in a step -> how many such steps; None where the number of records is not known."""
    memory: dict[str, Memory]
    """Phase -> its peak, on the rank where that is highest."""
    step: speed.StepTime
    """At the full batch size."""

    @property
    def num_parameters(self) -> int:
        return num_parameters(self.job.shape, self.job.scalar_head)

    @property
    def bytes_per_rank(self) -> int:
        return max(part.total for part in self.memory.values())

    @property
    def fits(self) -> bool:
        return self.bytes_per_rank <= self.job.hardware.memory_bytes

    @property
    def tokens(self) -> int | None:
        return None if self.steps is None else sum(rows * count for rows, count in self.steps.items()) * self.job.length

    @property
    def seconds(self) -> float | None:
        """Of the whole run, with the smaller steps of a batch ramp; without evaluation and saving."""
        if self.steps is None:
            return None
        return sum(count * speed.step_time(self._job_of(size)).total for size, count in self.steps.items())

    def _job_of(self, num_rows: int) -> Job:
        """With that many rows a step, filled up as `engine/token_steps.py` does: interleaving wants a multiple of the stages."""
        unit = self.job.grid.pp if self.job.parallel.virtual_pipeline_size > 1 else 1
        return replace(self.job, num_microbatches=-(-num_rows // (self.job.rows * self.job.grid.dp * unit)) * unit)


def plan_stage(config: StageConfig, folder: Path, hardware: Hardware, ranks: int | None = None) -> StagePlan:
    """Memory, time and arithmetic of a job.

    Args:
        folder: of the configuration file; parents without a checkpoint are looked for there.
        ranks: of the job; default: what the layout says, with one replica where it leaves that open.

    Raises:
        ConfigError: what the stage itself would raise, but for a parent that is still to come.
    """
    model = model_of(config, folder)
    tp, pp, cp = (getattr(config.parallel, f"{axis}_parallel_size") for axis in ("tensor", "pipeline", "context"))
    needed = tp * pp * cp * (config.parallel.data_parallel_size or 1)
    return plan_layout(config, model, hardware, ranks or needed, _steps(config))


def plan_layout(config: StageConfig, model: ModelConfig, hardware: Hardware, ranks: int, steps: Counter[int] | None = None) -> StagePlan:
    """The same, once model and length of the run are known."""
    grid = stage_grid(config.parallel, ranks)
    if isinstance(config, PretrainConfig):
        check_pretrain(config.model_copy(update={"model": model}), grid.dp)
    else:
        check_parent(config, model, grid.dp)
    dtype = config.precision.dtype
    zero_stage = useful_zero_stage(config.parallel.zero_stage, grid, dtype, config.parallel.offload_optimizer)
    job = Job(
        ModelShape(model, getattr(config, "lora", None)), grid, config.parallel.model_copy(update={"zero_stage": zero_stage}), hardware,
        rows=config.batch.micro_batch_size * _rows_of_a_record(config),
        length=config.sequence_length if isinstance(config, PretrainConfig) else config.data.max_length,
        num_microbatches=num_microbatches(config.batch, grid.dp), dtype=dtype, scalar_head=isinstance(config, RewardConfig),
        dropout=dropout_of(config, model), optimizer=config.optimizer.name, fused=config.kernels != "reference",
    )  # fmt: skip
    stages = [
        {phase: memory.resident(job, stage) + extra for phase, extra in memory.training_phases(job, stage).items()} for stage in job.distinct_stages
    ]
    worst = {phase: max((phases[phase] for phases in stages), key=lambda found: found.total) for phase in stages[0]}
    return StagePlan(config, job, steps, worst, speed.step_time(job))


def model_of(config: StageConfig, folder: Path) -> ModelConfig:
    """Sizes of the model that a stage trains."""
    return pretrain_model(config, folder) if isinstance(config, PretrainConfig) else starting_model(config.parent, config.run, folder)


def dropout_of(config: StageConfig, model: ModelConfig) -> float:
    """Probability during training; SFT and reward training may override the model's."""
    override = getattr(config, "dropout", None)
    return model.dropout if override is None else override


def _steps(config: StageConfig) -> Counter[int] | None:
    if isinstance(config, PretrainConfig):
        run = run_steps(config.batch, config.train_tokens, config.sequence_length)
        return Counter({size: stop - start for size, (start, stop) in zip(run.batch_sizes, pairwise(run.first_steps), strict=True)})
    records = _train_records(RunFolder(config.run).resolve_records(config.data))
    if records is None or getattr(config, "packing", False):  # how many rows are packed from them depends on their tokens
        return None
    rows = config.batch.global_batch_size * _rows_of_a_record(config)
    return Counter({rows: -(-config.epochs * records // config.batch.global_batch_size)})


def _rows_of_a_record(config: StageConfig) -> int:
    return RANKED_ANSWERS if isinstance(config, (RewardConfig, DpoConfig)) else 1


def _train_records(data: RecordsConfig) -> int | None:
    """Records to train on, or None where that is not known: all if no record is too long; where a share of the prompts is held
    out, the same share of the records is taken off.

    Raises:
        ConfigError: the files hold none.
    """
    files = [source.path for source in data.train]
    records = count_records(files)
    if records == 0:
        raise ConfigError(f"data.train = {files}: no record in them; at least one is needed")
    if records is None or data.valid is not None:
        return records
    return max(1, records - max(1, round(data.valid_fraction * records)))


def as_json(plan: StagePlan) -> dict[str, Any]:
    """One object with everything the plan says; bytes, seconds, hours."""
    job, hardware, step = plan.job, plan.job.hardware, plan.step
    tokens, seconds, ranks = plan.tokens, plan.seconds, job.grid.size
    flops = None if tokens is None else 6.0 * plan.num_parameters * tokens
    attention = None if tokens is None else tokens * job.shape.flops_per_token(job.length, plan.num_parameters) / compute.PETAFLOP_S_DAY
    hours = None if seconds is None else seconds / 3600
    price = hardware.price_per_device_hour
    peak = getattr(hardware.peak_flops, job.dtype)
    return {
        "stage": plan.config.stage,
        "hardware": hardware.name,
        "ranks": ranks,
        "layout": layout_words(plan),
        "num_parameters": plan.num_parameters,
        "tokens": tokens,
        "steps": None if plan.steps is None else plan.steps.total(),
        "petaflop_s_days": None if tokens is None else compute.petaflop_s_days(plan.num_parameters, tokens),
        "petaflop_s_days_with_attention": attention,
        "memory_bytes_per_rank": plan.bytes_per_rank,
        "device_memory_bytes": int(hardware.memory_bytes),
        "fits": plan.fits,
        "memory": {phase: asdict(parts) for phase, parts in plan.memory.items()},
        "memory_note": memory.CPU_NOTE if hardware.kind == "cpu" else None,
        "offloaded_bytes_per_rank": memory.offloaded_bytes(job),
        "zero_paper_bytes_per_rank": memory.paper_bytes(plan.num_parameters / (job.grid.tp * job.grid.pp), job.num_replicas, job.parallel.zero_stage),
        "checkpoint_bytes": memory.checkpoint_bytes(plan.num_parameters, job.dtype, job.optimizer, num_trained(job.shape, job.scalar_head)),
        "seconds_per_step": step.total,
        "seconds_of_a_step": asdict(step),
        "pipeline_bubble": speed.bubble_fraction(job.grid.pp, job.num_microbatches, job.parallel.virtual_pipeline_size),
        "tokens_per_second": job.tokens_per_step / step.total,
        "model_flops_utilization": speed.model_flops(job) / (step.total * ranks * peak),
        "hours": hours,
        "device_hours": None if hours is None else hours * ranks,
        "cost": None if hours is None or price is None else hours * ranks * price,
        "compute_optimal": None if flops is None else asdict(compute.compute_optimal(flops)),
        "compute_optimal_by_loss": None if flops is None else asdict(compute.compute_optimal_by_loss(flops)),
    }


def layout_words(plan: StagePlan) -> str:
    """A layout in the words of its configuration."""
    parallel, grid, chunks = plan.config.parallel, plan.job.grid, plan.config.parallel.virtual_pipeline_size
    words = [f"tp {grid.tp}", f"cp {grid.cp}" if grid.cp > 1 else "", f"dp {grid.dp}"]
    words.append(f"pp {grid.pp} x {chunks} virtual" if chunks > 1 else f"pp {grid.pp}")
    words += ["sequence parallel" if plan.job.sequence_shards > 1 else "", f"ZeRO {parallel.zero_stage}", f"recompute {parallel.recompute}"]
    return ", ".join(filter(None, [*words, f"micro-batch {plan.config.batch.micro_batch_size}"]))
