"""Seconds of a step: arithmetic, memory traffic, messages between ranks, and the pipeline's idle time.

Two numbers are fitted, on four of the published rows (`tests/unit/plan/test_plan_speed.py` fits them again and checks them on
the rows that were left out); everything else is a size or a data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from megagpt.plan.activations import layer_bytes
from megagpt.plan.job import Job, total, without_recomputation
from megagpt.plan.memory import state_bytes

MATMUL_EFFICIENCY = 0.73
"""Fitted: share of the peak that matrix products reach."""
TRAFFIC_PASSES = 9.5
"""Fitted: times that the bytes of a layer's activations cross the memory bus in forward and backward."""
LINK_EFFICIENCY = 0.8
"""Share of a link's bandwidth that a ring or a copy to the host reaches; assumed."""
UPDATE_BYTES = 32.0
"""Memory traffic of clipping and AdamW for each number: gradient, master and two moments, each read and written in float32."""
LAUNCH_SECONDS_PER_LAYER = 0.25e-3
"""A forward pass starts some 25 kernels a layer, about 10 microseconds each: a floor for small models; a rough figure."""


@dataclass(frozen=True)
class Rates:
    """What is fitted."""

    matmul: float = MATMUL_EFFICIENCY
    traffic: float = TRAFFIC_PASSES


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    compute: float
    """All microbatches through the slowest stage: matrix products and memory traffic."""
    tensor_parallel: float
    """Waiting for the sums within tensor- and context-parallel groups."""
    pipeline: float
    """Messages between stages."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""
    data_parallel: float
    """Reducing gradients and gathering weights; after the last microbatch, nothing is overlapped."""
    optimizer: float
    """The update; where it is offloaded, also the way of gradients, states and weights to the host and back."""

    @property
    def total(self) -> float:
        return self.compute + self.tensor_parallel + self.pipeline + self.bubble + self.data_parallel + self.optimizer


def layer_flops(job: Job) -> float:
    """Forward pass of one layer and microbatch on one rank: 2 operations a weight and token, and 4 s h a token in attention
    (Narayanan et al. 2021, appendix). Sharding divides both."""
    shape, h = job.shape, job.shape.config.hidden_size
    keys, gates = shape.head_size * shape.num_query_groups, 3 if shape.is_llama else 2
    weights = 2 * h * h + 2 * h * keys + gates * h * shape.ffn_hidden_size
    return job.tokens * (2.0 * weights + 4.0 * job.length * h) / job.grid.tp


def head_flops(job: Job) -> float:
    """Forward pass of the output layer on one rank."""
    columns = 1 if job.scalar_head else job.shape.padded_vocab_size(job.grid.tp) / job.grid.tp
    return 2.0 * job.head_tokens * job.shape.config.hidden_size * columns


def bubble_fraction(pp: int, num_microbatches: int, num_chunks: int = 1) -> float:
    """Idle over busy time: (p - 1) / (v m) (Narayanan et al. 2021, sections 2.2.1 and 2.2.2)."""
    return (pp - 1) / (num_chunks * num_microbatches)


def ring_seconds(num_bytes: float, ranks: int, bandwidth: float) -> float:
    """A sum over ranks and its distribution, each (n - 1) / n of the bytes (Rabenseifner's algorithm; NCCL's ring)."""
    return 2.0 * (ranks - 1) / ranks * num_bytes / (bandwidth * LINK_EFFICIENCY)


def step_time(job: Job, rates: Rates = Rates(), kept_layer_bytes: float | None = None) -> StepTime:
    """One step of forward, backward and update.

    Args:
        kept_layer_bytes: activations of one layer without full recomputation, which its memory traffic is taken to be
            proportional to; default: ours.
    """
    grid, m, chunks = job.grid, job.num_microbatches, job.parallel.virtual_pipeline_size
    layers, layer = [sum(job.layers(stage)) for stage in range(grid.pp)], _layer_seconds(job, rates, kept_layer_bytes)
    head = 3 * head_flops(job) / _product_rate(job, rates)
    compute = max(*(count * layer for count in layers), layers[-1] * layer + head)

    hidden = job.tokens * job.shape.config.hidden_size * job.num_bytes
    passes = 3 if job.parallel.recompute == "full" else 2  # forward, again where it is recomputed, backward
    # Shoeybi et al. 2019, figure 4: two sums a pass over a layer.
    inside = passes * (2 * ring_seconds(hidden, grid.tp, job.bandwidth(grid.tp)) + _exchange_seconds(job))
    tensor_parallel = max(layers) * inside
    pipeline = 0.0
    if grid.pp > 1:  # activations forward, gradients back; a message carries each tensor-parallel rank's part
        pipeline = 2 * chunks * hidden / grid.tp / job.bandwidth(2 * grid.tp * grid.cp * grid.dp)
    busy, parameters = m * (compute + tensor_parallel + pipeline), _most_parameters(job)
    updated = parameters / (job.num_replicas if job.parallel.zero_stage > 0 else 1)
    return StepTime(
        m * compute, m * tensor_parallel, m * pipeline, busy * bubble_fraction(grid.pp, m, chunks),
        _data_parallel_seconds(job, parameters), _optimizer_seconds(job, updated),
    )


def forward_seconds(job: Job, step: StepTime) -> float:
    """The forward passes of a step alone: a third of its work, and what ZeRO 3 gathers for them."""
    return (step.compute + step.tensor_parallel + step.pipeline + step.bubble) / 3 + job.num_microbatches * gather_seconds(job)


def gather_seconds(job: Job) -> float:
    """Putting the weights together for one pass, which only ZeRO 3 has to."""
    if job.parallel.zero_stage < 3:
        return 0.0
    return ring_seconds(_most_parameters(job) * job.num_bytes / 2, job.num_replicas, job.bandwidth(job.grid.tp * job.num_replicas))


def _most_parameters(job: Job) -> int:
    """Trained ones of a rank of the largest stage, which the others wait for."""
    return max(total(job.trained(stage)) for stage in job.distinct_stages)


def _layer_seconds(job: Job, rates: Rates, kept_layer_bytes: float | None) -> float:
    """Matrix products and memory traffic of one layer and microbatch. A backward pass is two forward passes; full
    recomputation adds one, selective recomputation that of attention alone."""
    passes, attention = 4 if job.parallel.recompute == "full" else 3, 0.0
    if job.parallel.recompute == "selective":
        attention = 4.0 * job.tokens * job.length * job.shape.config.hidden_size / job.grid.tp
    kept = layer_bytes(without_recomputation(job)) if kept_layer_bytes is None else kept_layer_bytes
    products = (passes * layer_flops(job) + attention) / _product_rate(job, rates)
    return max(products + rates.traffic * passes / 3 * kept / job.hardware.memory_bandwidth, passes * LAUNCH_SECONDS_PER_LAYER)


def _product_rate(job: Job, rates: Rates) -> float:
    return getattr(job.hardware.peak_flops, job.dtype) * rates.matmul


def _exchange_seconds(job: Job) -> float:
    """Ulysses in one layer and pass: queries, keys, values in, the result out (Jacobs et al. 2023, section 3.2)."""
    cp, shape = job.grid.cp, job.shape
    if cp == 1:
        return 0.0
    width = 2 * shape.config.hidden_size + 2 * shape.head_size * shape.num_query_groups
    num_bytes = job.tokens * width * job.num_bytes / job.grid.tp * (cp - 1) / cp
    return num_bytes / (job.bandwidth(job.grid.tp * cp) * LINK_EFFICIENCY)


def _data_parallel_seconds(job: Job, parameters: int) -> float:
    """Float32 gradients to the replicas' owners and 16-bit (or float32) weights back; at ZeRO 3 the weights at each pass."""
    n, zero = job.num_replicas, job.parallel.zero_stage
    if n == 1:
        return 0.0
    back = {0: 4, 3: 0}.get(zero, job.num_bytes)
    return ring_seconds(parameters * (4 + back) / 2, n, job.bandwidth(job.grid.tp * n)) + 2 * job.num_microbatches * gather_seconds(job)


def _optimizer_seconds(job: Job, numbers: float) -> float:
    """The update of this rank's part, which begins when all gradients are reduced and overlaps with nothing.

    Offloaded, float32 gradients go to the host and the new weights come back in their own type. ZeRO 3 of DeepSpeed 0.19 sends each
    gradient, fetches it again for the norm and sends it a second time. On a drive, states and gradients are written and read once.
    """
    hardware, offload = job.hardware, job.parallel.offload_optimizer
    if offload == "none":
        return UPDATE_BYTES * numbers / hardware.memory_bandwidth
    seconds = UPDATE_BYTES * numbers / hardware.host_memory_bandwidth
    if hardware.host_link_bandwidth is not None:
        gradients = 4 * (3 if job.parallel.zero_stage == 3 else 1)
        seconds += (gradients + job.num_bytes) * numbers / (hardware.host_link_bandwidth * LINK_EFFICIENCY)
    if offload == "nvme":
        seconds += 2 * (state_bytes(job) + 4) * numbers / hardware.drive_bandwidth
    return seconds


def model_flops(job: Job) -> float:
    """Of a step on all ranks, recomputation not counted; what model FLOP/s utilisation refers to (Chowdhery et al. 2022,
    appendix B)."""
    ranks = job.grid.tp * job.grid.cp * job.grid.dp
    return 3.0 * job.num_microbatches * ranks * (layer_flops(job) * job.shape.config.num_layers + head_flops(job))
