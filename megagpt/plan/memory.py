"""Bytes of one rank, by part and phase: what DeepSpeed and our engine really allocate, and the ZeRO paper's accounting beside it."""

from __future__ import annotations

from dataclasses import dataclass

from megagpt.engine.sharding import reduce_bucket
from megagpt.plan import activations
from megagpt.plan.job import BYTES, Job, Parameter, total

LIVE_PARAMETERS = 1_000_000_000
"""Numbers that ZeRO 3 keeps gathered at most (`stage3_max_live_parameters`, at its default)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int = 0
    gradients: int = 0
    """Sums over microbatches, float32: whole on every rank until the step, whatever the ZeRO stage."""
    optimizer: int = 0
    """Float32 masters and Adam's moments."""
    average: int = 0
    """Moving average of the float32 weights."""
    activations: int = 0
    kv_cache: int = 0
    buffers: int = 0
    """For reducing gradients and gathering weights."""
    runtime: int = 0
    """Libraries, device context, communication."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def __add__(self, other: Memory) -> Memory:
        """Of two models on the same rank; one process holds both."""
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Memory(**sums | {"runtime": max(self.runtime, other.runtime)})


CPU_NOTE = "ranks on a CPU keep freed memory for speed: a process took 30 to 59 % more than planned"
"""Measured in six layouts; `runtime/distributed.py` says why they keep it."""


def resident(job: Job, stage: int, trained: bool = True) -> Memory:
    """What a rank holds between the phases."""
    parameters = job.parameters(stage)
    runtime = int(job.hardware.runtime_bytes)
    if not trained:
        return Memory(weights=total(parameters) * job.num_bytes, runtime=runtime)
    part = partition(job.trained(stage), job.parallel.zero_stage, job.num_replicas)
    offloads = job.parallel.offload_optimizer != "none"
    optimizer = 0 if offloads else part * state_bytes(job)
    if job.parallel.zero_stage == 3:
        # The sums of gradients of its own part live as long as the engine, in float32 the bucket too.
        bucket = _bucket(job, job.trained(stage)) if job.dtype == "fp32" else 0
        weights = partition(parameters, 3, job.num_replicas) * job.num_bytes
        return Memory(weights=weights, optimizer=optimizer, buffers=bucket + (0 if offloads else 4 * part), runtime=runtime)
    return Memory(weights=_whole(job, stage) * job.num_bytes, optimizer=optimizer, runtime=runtime)


def offloaded_bytes(job: Job) -> int:
    """Optimizer states in host memory or on a drive, of the largest part that a rank offloads."""
    if job.parallel.offload_optimizer == "none":
        return 0
    stages = (partition(job.trained(stage), job.parallel.zero_stage, job.num_replicas) for stage in job.distinct_stages)
    return max(stages) * state_bytes(job)


def state_bytes(job: Job) -> int:
    """Of one number: its float32 master under ZeRO, Adam's two moments."""
    return 4 * ((job.parallel.zero_stage > 0) + 2 * (job.optimizer == "adamw"))


def training_phases(job: Job, stage: int) -> dict[str, Memory]:
    """Peak of each phase of a training step on one pipeline stage, beyond what is resident.

    DeepSpeed's `coalesce_grad_reduction` leaves the float32 gradients of all microbatches whole on each rank; at the end they
    pass through a bucket, and each rank keeps its part of the sums until the step.
    """
    parameters = job.trained(stage)
    gradients = Memory(gradients=4 * total(parameters))
    reduced = 0
    if job.parallel.zero_stage in (1, 2):
        reduced = _bucket(job, parameters)
        if job.parallel.offload_optimizer == "none":
            reduced += 4 * partition(parameters, job.parallel.zero_stage, job.num_replicas)
    return {
        "forward and backward": gradients + Memory(activations=activations.stage_bytes(job, stage), buffers=gathered_bytes(job, stage)),
        "reduce and step": gradients + Memory(buffers=reduced),
    }


def gathered_bytes(job: Job, stage: int) -> int:
    """Whole weights that ZeRO 3 puts together for a pass, forward or backward."""
    return min(total(job.parameters(stage)), LIVE_PARAMETERS) * job.num_bytes if job.parallel.zero_stage == 3 else 0


def partition(parameters: list[Parameter], zero_stage: int, num_replicas: int) -> int:
    """Numbers that one replica keeps the optimizer's states of.

    ZeRO 1 and 2 cut two flat groups (with and without weight decay), padded to twice the replicas; ZeRO 3 cuts each tensor.
    """
    if zero_stage == 0:
        return total(parameters)
    if zero_stage == 3:
        return sum(-(-p.size // num_replicas) * p.count for p in parameters)
    return sum(_padded(parameters, num_replicas)) // num_replicas


def _padded(parameters: list[Parameter], num_replicas: int) -> list[int]:
    groups = [total([p for p in parameters if p.decays is decays]) for decays in (True, False)]
    return [-(-size // (2 * num_replicas)) * 2 * num_replicas for size in groups]


def _whole(job: Job, stage: int) -> int:
    """Numbers in all weights of a rank, those that are trained in ZeRO's flat groups."""
    if job.parallel.zero_stage == 0:
        return total(job.parameters(stage))
    return sum(_padded(job.trained(stage), job.num_replicas)) + total([p for p in job.parameters(stage) if not p.trained])


def _bucket(job: Job, parameters: list[Parameter]) -> int:
    """Bytes of the reduction's bucket."""
    return (job.num_bytes if job.parallel.zero_stage == 2 else 4) * reduce_bucket(total(parameters))


def paper_bytes(num_parameters: float, num_replicas: int, zero_stage: int) -> float:
    """Model states of mixed-precision Adam with 16 bytes a parameter: 2 weights, 2 gradients, 12 optimizer (Rajbhandari et
    al. 2020, section 3.1 and figure 1): optimizer states, then gradients, then weights are shared by the replicas."""
    weights, gradients, optimizer = 2.0, 2.0, 12.0
    if zero_stage >= 1:
        optimizer /= num_replicas
    if zero_stage >= 2:
        gradients /= num_replicas
    if zero_stage >= 3:
        weights /= num_replicas
    return num_parameters * (weights + gradients + optimizer)


def checkpoint_bytes(num_parameters: int, dtype: str, optimizer: str, num_trained: int | None = None) -> int:
    """Tensors on disk (`checkpoint/layout.py`): weights in their type; of those that are trained (default: all) a float32 master where that
    has 16 bits, and with AdamW both moments; each number once, whatever the layout."""
    weight, trained = BYTES[dtype], num_parameters if num_trained is None else num_trained
    return num_parameters * weight + trained * (4 * (weight == 2) + 8 * (optimizer == "adamw"))
