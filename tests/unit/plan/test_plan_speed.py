"""The model of a step's time against published iteration times: fitted on some rows, checked on the others."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest

from megagpt.config.schema import ModelConfig, ParallelConfig
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.plan.activations import published_layer_bytes
from megagpt.plan.hardware import load_hardware
from megagpt.plan.job import Job, total
from megagpt.plan.speed import (
    LINK_EFFICIENCY,
    MATMUL_EFFICIENCY,
    TRAFFIC_PASSES,
    Rates,
    bubble_fraction,
    forward_seconds,
    gather_seconds,
    model_flops,
    step_time,
)

A100 = load_hardware("a100-80gb")


@dataclass(frozen=True)
class Row:
    """A published run on A100 80 GB: context 2,048, vocabulary 51,200, bf16 or fp16, dropout, no FlashAttention."""

    layers: int
    hidden: int
    heads: int
    grid: Grid
    chunks: int
    micro: int
    batch: int
    full: bool
    """Full recomputation; otherwise sequence parallelism and selective recomputation."""
    seconds: float
    fitted: bool = False


B22, B175, B530, T1 = (48, 6144, 64), (96, 12288, 96), (105, 20480, 128), (128, 25600, 160)
ROWS = {
    # Korthikanti et al. 2022, tables 3 and 5: batch and layout, then seconds an iteration before and with their techniques.
    "22B, full": Row(*B22, Grid(tp=8), 1, 4, 4, True, 1.42, fitted=True),
    "22B, selective": Row(*B22, Grid(tp=8), 1, 4, 4, False, 1.10, fitted=True),
    "175B, full": Row(*B175, Grid(tp=8, pp=8), 3, 1, 64, True, 18.13),
    "175B, selective": Row(*B175, Grid(tp=8, pp=8), 3, 1, 64, False, 13.75),
    "530B, full": Row(*B530, Grid(tp=8, pp=35), 3, 1, 280, True, 49.05, fitted=True),
    "530B, selective": Row(*B530, Grid(tp=8, pp=35), 3, 1, 280, False, 37.83, fitted=True),
    "1T, full": Row(*T1, Grid(tp=8, pp=64), 1, 1, 512, True, 94.42),
    "1T, selective": Row(*T1, Grid(tp=8, pp=64), 1, 1, 512, False, 71.49),
    # Megatron-LM's README of 2021: batch 1,536, about 32 s, 138 TFLOP/s a GPU.
    "175B on 1,024": Row(*B175, Grid(tp=8, dp=8, pp=16), 1, 1, 1536, True, 32.0),
}
BOUND = 0.10


def seconds(row: Row, rates: Rates) -> float:
    kept = published_layer_bytes(2048, row.micro, row.hidden, row.heads, row.grid.tp, sequence_parallel=not row.full)
    return step_time(job_of(row), rates, kept).total


def job_of(row: Row) -> Job:
    model = ModelConfig(num_layers=row.layers, hidden_size=row.hidden, num_attention_heads=row.heads, max_sequence_length=2048, vocab_size=51200)
    parallel = ParallelConfig(
        tensor_parallel_size=row.grid.tp, pipeline_parallel_size=row.grid.pp, virtual_pipeline_size=row.chunks, zero_stage=1,
        sequence_parallel=not row.full, recompute="full" if row.full else "selective",
    )  # fmt: skip
    num_microbatches = row.batch // (row.micro * row.grid.dp)
    return Job(
        ModelShape(model), row.grid, parallel, A100, rows=row.micro, length=2048, num_microbatches=num_microbatches, dtype="bf16", fused=True
    )  # fmt: skip


def error(name: str, rates: Rates = Rates()) -> float:
    return seconds(ROWS[name], rates) / ROWS[name].seconds - 1


def test_plan_speed_constants_are_the_fit():
    """Least squares of the logarithms over the four fitted rows, on a grid."""
    candidates = (Rates(matmul / 100, traffic / 4) for matmul, traffic in itertools.product(range(66, 84), range(20, 56)))
    best = min(candidates, key=lambda rates: sum(math.log(seconds(row, rates) / row.seconds) ** 2 for row in ROWS.values() if row.fitted))
    assert (best.matmul, best.traffic) == (MATMUL_EFFICIENCY, TRAFFIC_PASSES)


@pytest.mark.parametrize("name", ROWS)
def test_plan_speed_of_published_rows(name):
    row = ROWS[name]
    print(f"{name}: {seconds(row, Rates()):.2f} s, published {row.seconds} s, {error(name):+.1%}, {'fitted' if row.fitted else 'held out'}")
    assert abs(error(name)) < BOUND


def test_plan_speed_published_rows_agree_with_their_utilisation():
    """The seconds above against the MFU that the paper prints beside them (table 5): so that no row is mistyped."""
    for name, utilisation in [("22B, selective", 0.415), ("175B, selective", 0.514), ("530B, selective", 0.560), ("1T, selective", 0.563)]:
        row = ROWS[name]
        assert model_flops(job_of(row)) / (row.grid.size * 312e12 * row.seconds) == pytest.approx(utilisation, rel=0.01), name


def test_plan_speed_bubble():
    """Narayanan et al. 2021, section 2.2: (p - 1) / m, and a v-th of it interleaved."""
    assert bubble_fraction(8, 64) == 7 / 64 and bubble_fraction(8, 64, 3) == 7 / 192 and bubble_fraction(1, 5) == 0
    step = step_time(job_of(ROWS["175B, selective"]))
    assert step.bubble / (step.compute + step.tensor_parallel + step.pipeline) == pytest.approx(7 / 192)


def small(grid: Grid, layers: int = 8, dtype: str = "bf16", **parallel) -> Job:
    model = ModelConfig(num_layers=layers, hidden_size=1024, num_attention_heads=8, max_sequence_length=2048, vocab_size=51200)
    sizes = {"tensor_parallel_size": grid.tp, "pipeline_parallel_size": grid.pp, "context_parallel_size": grid.cp}
    parallel = ParallelConfig(**sizes, **parallel)
    return Job(ModelShape(model), grid, parallel, A100, rows=1, length=2048, num_microbatches=4, dtype=dtype, fused=True)


def test_plan_speed_of_the_largest_stage_bounds_update_and_reduction():
    even, uneven = (step_time(small(Grid(dp=2, pp=2), zero_stage=1, stage_layers=layers)) for layers in ([4, 4], [1, 7]))
    ends = [total(small(Grid(dp=2, pp=2), zero_stage=1, stage_layers=[1, 7]).parameters(stage)) for stage in (0, 1)]
    assert uneven.optimizer / even.optimizer == pytest.approx(uneven.data_parallel / even.data_parallel) and uneven.optimizer > even.optimizer
    assert uneven.optimizer == pytest.approx(32 * max(ends) / 2 / A100.memory_bandwidth)


def test_plan_speed_zero_shards_the_update():
    plain, sharded = (step_time(small(Grid(dp=4), dtype="fp32", zero_stage=zero)).optimizer for zero in (0, 1))
    assert plain == pytest.approx(4 * sharded)


def test_plan_speed_of_an_offloaded_update():
    """Through the host's memory, float32 gradients and the weights over the link; with states on a drive, those and the gradients both ways."""
    job = small(Grid(dp=2), zero_stage=2, offload_optimizer="cpu")
    numbers, link = total(job.parameters(0)) / 2, A100.host_link_bandwidth * LINK_EFFICIENCY
    update = 32 * numbers / A100.host_memory_bandwidth
    assert step_time(job).optimizer == pytest.approx(update + (4 + 2) * numbers / link)
    in_fp32 = small(Grid(dp=2), dtype="fp32", zero_stage=2, offload_optimizer="cpu")
    assert step_time(in_fp32).optimizer == pytest.approx(update + (4 + 4) * numbers / link)

    # ZeRO 3 sends gradients there, back and there again.
    three, drive = (step_time(small(Grid(dp=2), zero_stage=3, offload_optimizer=where)).optimizer for where in ("cpu", "nvme"))
    assert three == pytest.approx(update + (3 * 4 + 2) * numbers / link)
    assert drive - three == pytest.approx(2 * (12 + 4) * numbers / A100.drive_bandwidth)


def test_plan_speed_of_an_offloaded_update_on_a_cpu_is_that_of_any_other():
    """The device is the host: nothing is sent."""
    here, offloaded = (replace(small(Grid(dp=2), zero_stage=2, offload_optimizer=where), hardware=load_hardware("cpu")) for where in ("none", "cpu"))
    assert step_time(here) == step_time(offloaded)


def test_plan_speed_of_zero_3_gathers_weights_at_each_pass():
    two, three = small(Grid(dp=4), zero_stage=2), small(Grid(dp=4), zero_stage=3)
    gather = 3 / 4 * 2 * total(three.parameters(0)) / (A100.intra_node_bandwidth * LINK_EFFICIENCY)
    assert gather_seconds(two) == 0 and gather_seconds(three) == pytest.approx(gather)
    assert forward_seconds(three, step_time(three)) == pytest.approx(forward_seconds(two, step_time(two)) + 4 * gather)
    # ZeRO 2 gathers once after the update, ZeRO 3 in both passes over each of four microbatches.
    assert step_time(three).data_parallel == pytest.approx(step_time(two).data_parallel + 7 * gather)


def test_plan_speed_of_ulysses_exchanges_forward_and_backward():
    """Jacobs et al. 2023, section 3.2: four tensors of all tokens, of which each of two ranks sends half of its part."""
    tensors = 4 * 1024 * 1024 * 2 / 2
    for recompute, passes in (("none", 2), ("full", 3)):
        step = step_time(small(Grid(cp=2), zero_stage=1, recompute=recompute))
        assert step.tensor_parallel == pytest.approx(4 * 8 * passes * tensors / (A100.intra_node_bandwidth * LINK_EFFICIENCY))
