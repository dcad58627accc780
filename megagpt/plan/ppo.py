"""The plan of PPO with four models, each on its own grid."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.config.check import check_model, check_rlhf, check_role
from megagpt.config.schema import ModelConfig, ParallelConfig, RlhfConfig
from megagpt.engine.sharding import useful_zero_stage
from megagpt.model.param_map import num_parameters, num_trained
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.parallel.placement import TRAINED, build_grids, num_ranks
from megagpt.plan import compute, memory, speed
from megagpt.plan.hardware import Hardware
from megagpt.plan.job import Job, total
from megagpt.plan.memory import Memory
from megagpt.plan.parents import starting_model
from megagpt.plan.ppo_memory import all_ranks, cache_bytes, rows_at_once, worst_phases, writer_of


@dataclass(frozen=True)
class PpoPlan:
    """What a PPO job would take."""

    config: RlhfConfig
    jobs: dict[str, Job]
    memory: dict[str, Memory]
    """Phase -> its peak, on the rank where that is highest."""
    seconds: dict[str, float]
    """Phase -> seconds of one round."""

    @property
    def bytes_per_rank(self) -> int:
        return max(part.total for part in self.memory.values())

    @property
    def hardware(self) -> Hardware:
        return self.jobs["policy"].hardware

    @property
    def ranks(self) -> int:
        return max(job.grid.ranks.stop for job in self.jobs.values())

    @property
    def fits(self) -> bool:
        return self.bytes_per_rank <= self.hardware.memory_bytes

    @property
    def seconds_per_step(self) -> float:
        return sum(self.seconds.values())


def plan_ppo(config: RlhfConfig, folder: Path, hardware: Hardware, ranks: int | None = None) -> PpoPlan:
    """Memory, time and arithmetic of a PPO job.

    Args:
        folder: of the configuration file; models without a checkpoint are looked for there.
        ranks: of the job; default: as many as the placement names.

    Raises:
        ConfigError: what the stage itself would raise, but for models that are still to come.
    """
    return plan_placement(config, models_of(config, folder), hardware, ranks or num_ranks(config.placement))


def models_of(config: RlhfConfig, folder: Path) -> dict[str, ModelConfig]:
    """Role -> sizes of its model: the reference is the policy's start, the value model starts from the reward model."""
    policy = starting_model(config.policy, config.run, folder)
    reward = policy if config.reward is None else starting_model(config.reward, config.run, folder)
    held_out = {} if config.held_out_reward is None else {"held_out": starting_model(config.held_out_reward, config.run, folder)}
    return {"policy": policy, "rollout": policy, "reference": policy, "reward": reward, "value": reward, **held_out}


def plan_placement(config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, ranks: int) -> PpoPlan:
    """The same, once the models are known."""
    grids = build_grids(config.placement, ranks)
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    jobs = jobs_of(config, grids, models, hardware)
    return PpoPlan(config, jobs, worst_phases(config, jobs), round_seconds(config, jobs))


def jobs_of(config: RlhfConfig, grids: dict[str, Grid], models: dict[str, ModelConfig], hardware: Hardware) -> dict[str, Job]:
    """Each model on its grid; `held_out` among them where there is one, which only the evaluations ask.

    Raises:
        ConfigError: a model that cannot be cut so.
    """
    jobs, ppo, adapters = {}, config.ppo, {"policy": config.lora, "rollout": config.lora, "value": config.value_lora}
    beside = "reward" if config.placement.reward is not None else "reference"
    for role, grid in (grids | ({"held_out": grids[beside]} if "held_out" in models and beside in grids else {})).items():
        trained, where = role in TRAINED, getattr(config.placement, {"held_out": beside, "rollout": "policy"}.get(role, role))
        if role == "held_out":
            check_model(models[role], grid.tp, grid.pp, "held_out_reward")
        else:
            check_role(config, role, models[role], grid.tp, grid.pp)
        parallel = ParallelConfig(
            tensor_parallel_size=grid.tp, pipeline_parallel_size=grid.pp, offload_optimizer="none" if role == "rollout" else where.offload,
            zero_stage=useful_zero_stage(where.zero, grid, where.precision, where.offload) if trained else 0,
        )  # fmt: skip
        jobs[role] = Job(
            ModelShape(models[role], adapters.get(role)), grid, parallel, hardware,
            rows=ppo.micro_batch_size, length=config.prompts.max_prompt_length + config.prompts.max_response_length,
            num_microbatches=max(1, ppo.minibatch_size // (ppo.micro_batch_size * grid.dp)),
            scalar_head=role in ("reward", "held_out", "value"),
            dtype=where.precision, optimizer=getattr(config, f"{role}_optimizer").name if trained else "none", fused=config.kernels != "reference",
            head_length=None if role == "policy" and config.pretrain_mix is not None else config.prompts.max_response_length,
        )  # fmt: skip
    return jobs


# ---------------------------------------------------------------- time


def round_seconds(config: RlhfConfig, jobs: dict[str, Job]) -> dict[str, float]:
    """Of one round, as far as these models have a part in it. Roles on the same ranks work one after the other, roles on different ranks at the same time."""
    ppo = config.ppo
    updates = ppo.epochs * (ppo.rollout_batch_size // ppo.minibatch_size)
    jobs = {role: job for role, job in jobs.items() if role != "held_out"}
    passes = dict.fromkeys(jobs, ppo.rollout_batch_size / ppo.minibatch_size) | {"rollout": 0.0}  # it writes, and reads nothing
    if ppo.logprobs == "sampler":
        passes["policy"] = 0.0
    steps = {role: speed.step_time(job) for role, job in jobs.items()}
    scoring = {role: speed.forward_seconds(job, steps[role]) * passes[role] + _fetch_seconds(role, job) for role, job in jobs.items()}
    return {
        "rollout": _rollout_seconds(config, jobs[writer]) if (writer := writer_of(jobs)) in jobs else 0.0,
        "score": _slowest(jobs, scoring),
        "update": _slowest(jobs, {role: steps[role].total * updates for role in TRAINED if role in jobs}),
    }


def _slowest(jobs: dict[str, Job], seconds: dict[str, float]) -> float:
    return max(sum(time for role, time in seconds.items() if rank in jobs[role].grid) for rank in all_ranks(jobs))


def _fetch_seconds(role: str, job: Job) -> float:
    """For frozen weights that wait in host memory."""
    if role in TRAINED or job.parallel.offload_optimizer == "none":
        return 0.0
    num_bytes = max(total(job.parameters(stage)) for stage in job.distinct_stages) * job.num_bytes
    hardware = job.hardware
    return num_bytes / (hardware.host_memory_bandwidth if hardware.host_link_bandwidth is None else hardware.host_link_bandwidth * speed.LINK_EFFICIENCY)


def _rollout_seconds(config: RlhfConfig, job: Job) -> float:
    """The prompts' first pass, then token by token: each reads all weights and the cache, or is bound by arithmetic or launches
    (Pope et al. 2022, section 2). Pipeline stages take turns, so all of them count. ZeRO 3 gathers all weights for each token."""
    hardware, all_rows, layers = job.hardware, config.ppo.rollout_batch_size // job.grid.dp, job.shape.config.num_layers
    rows = rows_at_once(config, job, config.ppo.rollout_batch_size)
    rate = getattr(hardware.peak_flops, job.dtype) * speed.MATMUL_EFFICIENCY
    weights = sum(total(job.parameters(stage)) for stage in range(job.grid.pp))
    cache = cache_bytes(job, rows, layers) / 2  # half full on average
    token = max(weights * job.num_bytes / hardware.memory_bandwidth, 2.0 * weights * rows / rate) + cache / hardware.memory_bandwidth
    gather = speed.gather_seconds(job)
    prefill = 2.0 * weights * all_rows * config.prompts.max_prompt_length / rate + gather
    steps = config.prompts.max_response_length * all_rows / rows  # a row that ends makes room for the next at once
    return prefill + steps * (token + gather + layers * speed.LAUNCH_SECONDS_PER_LAYER)


def _petaflop_s_days(plan: PpoPlan, attention: bool) -> float:
    """A round passes each response through the policy's sampling, one scoring pass of each model (of the policy where the sampler's
    log-probabilities do not count), and `epochs` updates of two: 2 N a token forward, 6 N an update."""
    ppo, flops = plan.config.ppo, 0.0
    for role, job in plan.jobs.items():
        if role == "rollout":
            continue  # counted with the policy
        size = num_parameters(job.shape, job.scalar_head)
        per_token = job.shape.flops_per_token(job.length, size) if attention else 6.0 * size
        forward = 1 + (role == "policy" and ppo.logprobs == "trainer")
        flops += per_token * job.length * (forward / 3 + ppo.epochs * (role in TRAINED))
    return flops * ppo.rollout_batch_size * ppo.steps / compute.PETAFLOP_S_DAY


def _layout_words(role: str, job: Job) -> str:
    words = [f"{job.grid}", f"ZeRO {job.parallel.zero_stage}" if role in TRAINED else "", job.dtype if job.dtype != "fp32" else ""]
    return ", ".join(filter(None, [*words, "offloaded" if job.parallel.offload_optimizer != "none" else ""]))


def as_json(plan: PpoPlan) -> dict[str, Any]:
    """One object with everything the plan says; bytes, seconds, hours."""
    sizes = {role: num_parameters(job.shape, job.scalar_head) for role, job in plan.jobs.items()}
    saved = [
        memory.checkpoint_bytes(sizes[role], job.dtype, job.optimizer, num_trained(job.shape, job.scalar_head))
        for role, job in plan.jobs.items() if role in TRAINED
    ]
    if plan.config.ppo.ema_decay is not None:
        saved.append(memory.checkpoint_bytes(sizes["policy"], plan.jobs["policy"].dtype, "none"))
    hours, price = plan.seconds_per_step * plan.config.ppo.steps / 3600, plan.hardware.price_per_device_hour
    return {
        "stage": "rlhf",
        "hardware": plan.hardware.name,
        "ranks": plan.ranks,
        "layout": {role: _layout_words(role, job) for role, job in plan.jobs.items()},
        "num_parameters": sizes["policy"],
        "num_parameters_of_roles": sizes,
        "steps": plan.config.ppo.steps,
        "petaflop_s_days": _petaflop_s_days(plan, attention=False),
        "petaflop_s_days_with_attention": _petaflop_s_days(plan, attention=True),
        "memory_bytes_per_rank": plan.bytes_per_rank,
        "device_memory_bytes": int(plan.hardware.memory_bytes),
        "fits": plan.fits,
        "memory": {phase: asdict(parts) for phase, parts in plan.memory.items()},
        "memory_note": memory.CPU_NOTE if plan.hardware.kind == "cpu" else None,
        "checkpoint_bytes": sum(saved),
        "seconds_per_step": plan.seconds_per_step,
        "seconds_of_a_step": plan.seconds,
        "hours": hours,
        "device_hours": hours * plan.ranks,
        "cost": None if price is None else hours * plan.ranks * price,
    }
