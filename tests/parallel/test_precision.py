"""Sixteen bits: FP16's loss scale, overflows that skip a step on all ranks, and sums of gradients in float32."""

import functools
import math

import pytest
import torch

from megagpt.config.schema import LossScaleConfig, OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import plain_init, plain_train
from tests.helpers.sharded import accumulate, sharded_chunks
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import FP16_GRADIENT_RELATIVE, relative_error

CONFIG = tiny_model("gpt", True, num_layers=2)
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-5, clip_grad=0.3)
LAYOUTS = [(Grid(dp=2), 1), (Grid(dp=2), 2), (Grid(dp=2), 3), (Grid(tp=2), 1), (Grid(pp=2), 1), (Grid(pp=2), 2), (Grid(cp=2), 2)]
CASES = pytest.mark.parametrize(("grid", "zero"), LAYOUTS, ids=[f"tp{g.tp}-cp{g.cp}-dp{g.dp}-pp{g.pp}-zero{zero}" for g, zero in LAYOUTS])


def engine_of(grid: Grid, zero_stage: int, dtype: torch.dtype, loss_scale: LossScaleConfig = LossScaleConfig(), offload: str = "none") -> Engine:
    chunks = sharded_chunks(CONFIG, plain_init(CONFIG, seed=1), grid, Layout(dtype=dtype))
    return Engine(chunks, OPTIMIZER, zero_stage, loss_scale=loss_scale, offload_optimizer=offload)


def spoil_gradients(engine: Engine) -> None:
    """Put an infinity into this rank's gradients, as an overflow in its backward pass would, for the next step only."""
    sum_shared = engine._sum_shared_gradients

    def spoiled():
        del engine._sum_shared_gradients
        next(p.grad for p, _ in engine.entries if p.grad is not None).flatten()[0] = math.inf
        sum_shared()

    engine._sum_shared_gradients = spoiled


def train_with_overflows(grid: Grid, zero_stage: int, dtype: torch.dtype, loss_scale: LossScaleConfig, overflow_at: list[int], num_steps: int, offload="none"):
    """The last rank overflows at the named steps. Each step: (scale before, overflow seen, norm), and whether weights moved."""
    engine = engine_of(grid, zero_stage, dtype, loss_scale, offload)
    seen = []
    for step, batch in enumerate(tiny_batches(num_steps), start=1):
        before, scale = held_here(engine.canonical_parameters()), engine.loss_scale
        if step in overflow_at and engine.groups.whole.rank() == grid.size - 1:
            spoil_gradients(engine)
        accumulate(engine, batch)
        norm = engine.step(OPTIMIZER.lr)
        after = held_here(engine.canonical_parameters())
        moved = any(not torch.equal(before[name], after[name]) for name in before)
        seen.append((scale, engine.overflow, math.isinf(norm), moved))
    engine.close()
    return seen


@CASES
@pytest.mark.parametrize("hysteresis", [1, 2])
def test_loss_scale_overflow_on_one_rank_skips_the_step_on_all(grid, zero, hysteresis):
    scale = LossScaleConfig(initial=1024.0, window=3, hysteresis=hysteresis, minimum=1.0)
    ranks = run_ranks(grid.size, train_with_overflows, grid, zero, torch.float16, scale, [2, 3], 8)
    for seen in ranks:
        assert [overflow for _, overflow, _, _ in seen] == [False, True, True, False, False, False, False, False]
        assert [infinite for _, _, infinite, _ in seen] == [overflow for _, overflow, _, _ in seen]
        assert [moved for *_, moved in seen] == [not overflow for _, overflow, _, _ in seen]
        scales = [before for before, *_ in seen]
        # Halved at once with hysteresis 1, at the second overflow with 2; doubled by the first step after three without one.
        assert scales == ([1024, 1024, 512, 256, 256, 256, 256, 512] if hysteresis == 1 else [1024, 1024, 1024, 512, 512, 512, 512, 1024])


def test_loss_scale_never_falls_below_its_minimum():
    scale = LossScaleConfig(initial=4.0, window=100, hysteresis=1, minimum=2.0)
    (seen,) = run_ranks(1, train_with_overflows, Grid(), 1, torch.float16, scale, [1, 2, 3], 4)
    assert [before for before, *_ in seen] == [4, 2, 2, 2]


@pytest.mark.parametrize(("dtype", "zero"), [(torch.float32, 0), (torch.float32, 1), (torch.float32, 2), (torch.float32, 3), (torch.bfloat16, 1), (torch.bfloat16, 3)])
def test_overflow_skips_the_step_in_every_precision(dtype, zero):
    ranks = run_ranks(2, train_with_overflows, Grid(dp=2), zero, dtype, LossScaleConfig(), [2], 3)
    for seen in ranks:
        assert [overflow for _, overflow, _, _ in seen] == [False, True, False]
        assert [moved for *_, moved in seen] == [True, False, True]


def test_overflow_skips_the_step_with_offload():
    for seen in run_ranks(2, train_with_overflows, Grid(dp=2), 2, torch.float16, LossScaleConfig(initial=1024.0), [2], 3, offload="cpu"):
        assert [(overflow, moved) for _, overflow, _, moved in seen] == [(False, True), (True, False), (False, True)]


def first_gradients(grid: Grid, zero_stage: int, dtype: torch.dtype, loss_scale: LossScaleConfig):
    engine = engine_of(grid, zero_stage, dtype, loss_scale)
    accumulate(engine, tiny_batches(1)[0])
    gradients = held_here(engine.canonical_gradients())
    engine.close()
    return gradients


@functools.cache
def plain_gradients():
    return plain_train(CONFIG, {name: t.half().float() for name, t in plain_init(CONFIG, seed=1).items()}, tiny_batches(1)).gradients


@CASES
def test_fp16_gradients_equal_plain_training(grid, zero):
    scale = LossScaleConfig(initial=256.0)
    gradients = merge_ranks(run_ranks(grid.size, first_gradients, grid, zero, torch.float16, scale))
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):
            assert relative_error(gradient / scale.initial, plain_gradients()[name]) <= FP16_GRADIENT_RELATIVE, name


@CASES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_gradients_of_16_bit_weights_add_up_in_float32(grid, zero, dtype):
    """Sums of several 16-bit numbers need more bits than each of them: most numbers of the result are not representable in 16 bits."""
    gradients = merge_ranks(run_ranks(grid.size, first_gradients, grid, zero, dtype, LossScaleConfig(initial=256.0)))
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        if name.endswith("key.bias"):
            continue  # zero but for rounding
        nonzero = gradient[gradient != 0]
        finer = (nonzero.to(dtype).float() != nonzero).float().mean().item()
        assert finer > 0.3, f"{name}: {finer:.0%} of the numbers are finer than {dtype}"
