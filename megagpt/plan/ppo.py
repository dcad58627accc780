"""The plan of PPO with four models, each on its own grid."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.config.check import check_model, check_rlhf
from megagpt.config.schema import ModelConfig, ParallelConfig, RlhfConfig
from megagpt.engine.sharding import useful_zero_stage
from megagpt.model.param_map import num_parameters
from megagpt.model.shape import ModelShape
from megagpt.parallel.placement import TRAINED, build_grids, placed_roles
from megagpt.plan import activations, compute, memory, speed
from megagpt.plan.hardware import Hardware
from megagpt.plan.job import Job, total
from megagpt.plan.memory import Memory
from megagpt.plan.parents import starting_model


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
    needed = 1 + max(rank for role in placed_roles(config.placement) for rank in getattr(config.placement, role).ranks)
    return plan_placement(config, models_of(config, folder), hardware, ranks or needed)


def models_of(config: RlhfConfig, folder: Path) -> dict[str, ModelConfig]:
    """Role -> sizes of its model: the reference is the policy's start, the value model starts from the reward model."""
    policy = starting_model(config.policy, config.run, folder)
    reward = policy if config.reward is None else starting_model(config.reward, config.run, folder)
    return {"policy": policy, "reference": policy, "reward": reward, "value": reward}


def plan_placement(config: RlhfConfig, models: dict[str, ModelConfig], hardware: Hardware, ranks: int) -> PpoPlan:
    """The same, once the models are known."""
    grids = build_grids(config.placement, ranks)
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    jobs, ppo = {}, config.ppo
    for role, grid in grids.items():
        trained = role in TRAINED
        check_model(models[role], grid.tp, grid.pp, f"placement.{role}")
        zero = useful_zero_stage(getattr(config.placement, role).zero, grid) if trained else 0
        jobs[role] = Job(
            ModelShape(models[role]), grid, ParallelConfig(tensor_parallel_size=grid.tp, pipeline_parallel_size=grid.pp, zero_stage=zero), hardware,
            rows=ppo.micro_batch_size, length=config.prompts.max_prompt_length + config.prompts.max_response_length,
            num_microbatches=ppo.minibatch_size // (ppo.micro_batch_size * grid.dp), scalar_head=role in ("reward", "value"),
            optimizer=getattr(config, f"{role}_optimizer").name if trained else "none", fused=config.kernels != "reference",
        )  # fmt: skip
    return PpoPlan(config, jobs, _memory(config, jobs), _seconds(config, jobs))


# ---------------------------------------------------------------- memory


def _memory(config: RlhfConfig, jobs: dict[str, Job]) -> dict[str, Memory]:
    """Peaks over all ranks. All models of a rank stay there through all phases; what is added changes."""
    held = {tuple(sorted((role, job.grid.coordinates(rank).pp) for role, job in jobs.items() if rank in job.grid)) for rank in _all_ranks(jobs)}
    worst: dict[str, Memory] = {}
    for roles in held:
        base = sum((memory.resident(jobs[role], stage, role in TRAINED) for role, stage in roles), start=Memory())
        if config.ppo.ema_decay is not None and "policy" in dict(roles):
            base += Memory(weights=memory.resident(jobs["policy"], dict(roles)["policy"]).weights)  # the moving average
        for phase, extra in _phases(config, jobs, dict(roles)).items():
            worst[phase] = max(worst.get(phase, base), base + extra, key=lambda found: found.total)
    return worst


def _all_ranks(jobs: dict[str, Job]) -> set[int]:
    return {rank for job in jobs.values() for rank in job.grid.ranks}


def _phases(config: RlhfConfig, jobs: dict[str, Job], roles: dict[str, int]) -> dict[str, Memory]:
    """What each phase adds on a rank that holds these roles: role -> pipeline stage."""
    scoring = [_scoring_memory(jobs[role], stage) for role, stage in roles.items()]
    phases = {"rollout": Memory(), "score": max(scoring, key=lambda found: found.total)}
    if "policy" in roles:
        phases["rollout"] = _rollout_memory(config, jobs["policy"], roles["policy"])
    for role in TRAINED:
        if role in roles:
            update = memory.training_phases(jobs[role], roles[role]).values()
            phases[f"update {role}"] = max(update, key=lambda found: found.total)
    return phases


def _rollout_memory(config: RlhfConfig, job: Job, stage: int) -> Memory:
    """As many rows of a replica as it answers at once, in an evaluation as in a round: keys and values of every layer and token, and
    the prompts' first pass."""
    rows, shape = _rows_at_once(config, job, max(config.ppo.rollout_batch_size, config.prompts.eval_prompts)), job.shape
    prompts = rows * config.prompts.max_prompt_length
    passing = prompts * (2 * shape.ffn_hidden_size // job.grid.tp + 2 * shape.config.hidden_size) * job.num_bytes
    cache = _cache_bytes(job, rows, sum(job.layers(stage)))
    return Memory(kv_cache=cache, activations=passing + 2 * rows * shape.vocab_size * 4, buffers=memory.gathered_bytes(job, stage))


def _rows_at_once(config: RlhfConfig, job: Job, rows: int) -> int:
    """Of one replica, when all replicas together answer so many."""
    return min(rows // job.grid.dp, config.ppo.generation_batch_size or rows)


def _cache_bytes(job: Job, rows: int, num_layers: int) -> int:
    """Keys and values, prompt and response."""
    return job.shape.cache_bytes(rows, job.length, num_layers=num_layers, tp=job.grid.tp, num_bytes=job.num_bytes)


def _scoring_memory(job: Job, stage: int) -> Memory:
    """A forward pass keeps nothing but what is in work."""
    head = activations.head_bytes(job) if stage == job.grid.pp - 1 else 0
    return Memory(activations=max(activations.passing_bytes(job), head), buffers=memory.gathered_bytes(job, stage))


# ---------------------------------------------------------------- time


def _seconds(config: RlhfConfig, jobs: dict[str, Job]) -> dict[str, float]:
    """Of one round. Roles on the same ranks work one after the other, roles on different ranks at the same time."""
    ppo = config.ppo
    updates = ppo.epochs * (ppo.rollout_batch_size // ppo.minibatch_size)
    passes = dict.fromkeys(jobs, ppo.rollout_batch_size / ppo.minibatch_size)
    if ppo.logprobs == "sampler":
        passes["policy"] = ppo.micro_batch_size * jobs["policy"].grid.dp / ppo.minibatch_size  # for the gap alone
    steps = {role: speed.step_time(job) for role, job in jobs.items()}
    return {
        "rollout": _rollout_seconds(config, jobs["policy"]),
        "score": _slowest(jobs, {role: speed.forward_seconds(job, steps[role]) * passes[role] for role, job in jobs.items()}),
        "update": _slowest(jobs, {role: steps[role].total * updates for role in TRAINED if role in jobs}),
    }


def _slowest(jobs: dict[str, Job], seconds: dict[str, float]) -> float:
    return max(sum(time for role, time in seconds.items() if rank in jobs[role].grid) for rank in _all_ranks(jobs))


def _rollout_seconds(config: RlhfConfig, job: Job) -> float:
    """The prompts' first pass, then token by token: each reads all weights and the cache, or is bound by arithmetic or launches
    (Pope et al. 2022, section 2). Pipeline stages take turns, so all of them count. ZeRO 3 gathers all weights for each token."""
    hardware, all_rows, layers = job.hardware, config.ppo.rollout_batch_size // job.grid.dp, job.shape.config.num_layers
    rows = _rows_at_once(config, job, config.ppo.rollout_batch_size)
    rate = getattr(hardware.peak_flops, job.dtype) * speed.MATMUL_EFFICIENCY
    weights = sum(total(job.parameters(stage)) for stage in range(job.grid.pp))
    cache = _cache_bytes(job, rows, layers) / 2  # half full on average
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
        size = num_parameters(job.shape, job.scalar_head)
        per_token = job.shape.flops_per_token(job.length, size) if attention else 6.0 * size
        forward = 1 + (role == "policy" and ppo.logprobs == "trainer")
        flops += per_token * job.length * (forward / 3 + ppo.epochs * (role in TRAINED))
    return flops * ppo.rollout_batch_size * ppo.steps / compute.PETAFLOP_S_DAY


def as_json(plan: PpoPlan) -> dict[str, Any]:
    """One object with everything the plan says; bytes, seconds, hours."""
    sizes = {role: num_parameters(job.shape, job.scalar_head) for role, job in plan.jobs.items()}
    saved = [memory.checkpoint_bytes(sizes[role], plan.jobs[role].dtype, plan.jobs[role].optimizer) for role in TRAINED if role in sizes]
    if plan.config.ppo.ema_decay is not None:
        saved.append(memory.checkpoint_bytes(sizes["policy"], plan.jobs["policy"].dtype, "none"))
    hours, price = plan.seconds_per_step * plan.config.ppo.steps / 3600, plan.hardware.price_per_device_hour
    return {
        "stage": "rlhf",
        "hardware": plan.hardware.name,
        "ranks": plan.ranks,
        "layout": {role: f"{job.grid}" + (f", ZeRO {job.parallel.zero_stage}" if role in TRAINED else "") for role, job in plan.jobs.items()},
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
