"""The model of a step's time against published iteration times: fitted on some rows, checked on the others."""

import itertools
import math
from dataclasses import dataclass

import pytest

from megagpt.config.schema import ModelConfig, ParallelConfig
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from megagpt.plan.activations import published_layer_bytes
from megagpt.plan.hardware import load_hardware
from megagpt.plan.job import Job
from megagpt.plan.speed import MATMUL_EFFICIENCY, TRAFFIC_PASSES, Rates, bubble_fraction, model_flops, step_time

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
        ModelShape(model), row.grid, parallel, A100, rows=row.micro, length=2048, num_microbatches=num_microbatches, dtype="bf16", fused_loss=True
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
