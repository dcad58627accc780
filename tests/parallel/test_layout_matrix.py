"""Parity of every further way to cut and compute a model: sequence parallel, interleaved and uneven pipelines, context parallel,
recomputation, offload, 16-bit weights, fused and plain kernels, in a set of cases in which every two of them meet; each equals the plain reference.
"""

import functools

import pytest
import torch

from megagpt.config.check import check_parallel
from megagpt.config.load import ConfigError
from megagpt.config.schema import OptimizerConfig, ParallelConfig, PrecisionConfig
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.gather import merge_ranks
from tests.helpers.pairwise import pairwise_cases
from tests.helpers.plain import PlainRun, plain_init, plain_train
from tests.helpers.sharded import sharded_train
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import BF16_GRADIENT_RELATIVE, BF16_LOSS_RELATIVE, PARITY_RELATIVE, assert_tensors_close, relative_error

OPTIMIZERS = {
    "adamw": OptimizerConfig(name="adamw", lr=1e-2, eps=1e-5, clip_grad=0.3),
    "sgd": OptimizerConfig(name="sgd", lr=0.5, clip_grad=0.3),
}
BATCHES = tiny_batches(steps=3)
FACTORS = {
    "grid": [Grid(), *(Grid(**{axis: 2}) for axis in ("tp", "pp", "cp", "dp")), Grid(tp=2, pp=2), Grid(tp=2, cp=2), Grid(pp=2, cp=2), Grid(pp=2, dp=2),
             Grid(cp=2, dp=2), Grid(tp=2, dp=2)],
    "zero": [0, 1, 2, 3],
    "model": ["gpt-tied", "gpt-untied", "llama-tied", "llama-untied"],
    "sequence_parallel": [False, True],
    "stages": ["equal", "uneven", "interleaved", "interleaved-uneven"],
    "recompute": ["none", "selective", "full"],
    "offload": ["none", "cpu"],
    "dtype": ["fp32", "bf16"],
    "optimizer": ["adamw", "sgd"],
    "kernels": ["fused", "reference"],
}  # fmt: skip
STAGE_LAYERS = {"equal": None, "uneven": [3, 1], "interleaved": None, "interleaved-uneven": [0, 3, 2, 0]}


def the_model(case):
    family, tied = case["model"].split("-")
    return tiny_model(family, tied == "tied", num_layers=5 if case["stages"] == "interleaved-uneven" else 4)


def settings(case) -> tuple[ParallelConfig, PrecisionConfig]:
    grid = case["grid"]
    parallel = ParallelConfig(
        tensor_parallel_size=grid.tp, pipeline_parallel_size=grid.pp, context_parallel_size=grid.cp, zero_stage=case["zero"],
        sequence_parallel=case["sequence_parallel"], virtual_pipeline_size=2 if case["stages"].startswith("interleaved") else 1,
        stage_layers=STAGE_LAYERS[case["stages"]], recompute=case["recompute"], offload_optimizer=case["offload"],
    )
    return parallel, PrecisionConfig(dtype=case["dtype"])


def legal(case) -> bool:
    if case["sequence_parallel"] and case["grid"].tp == 1:
        return False  # allowed, and without effect
    try:
        check_parallel(*settings(case), the_model(case))
    except ConfigError:
        return False
    return True


CASES = pairwise_cases(FACTORS, legal)


def name_of(case) -> str:
    grid = case["grid"]
    parts = [f"{axis}{size}" for axis, size in zip(("tp", "cp", "dp", "pp"), grid.shape) if size > 1] or ["one"]
    parts += [f"zero{case['zero']}", case["model"], case["stages"], f"recompute_{case['recompute']}", case["dtype"], case["optimizer"]]
    parts += ["sp"] * case["sequence_parallel"] + ["offload"] * (case["offload"] == "cpu") + [case["kernels"]]
    return "-".join(parts)


def test_parity_layout_cases_are_few_and_cover_every_value():
    assert len(CASES) <= 60
    for factor, values in FACTORS.items():
        assert {str(case[factor]) for case in CASES} == {str(value) for value in values}


@functools.cache
def plain_reference(config, optimizer: str, dtype: torch.dtype) -> PlainRun:
    settings = OPTIMIZERS[optimizer]
    return plain_train(
        config, in_dtype(plain_init(config, seed=1), dtype), BATCHES, optimizer=settings.name, lr=settings.lr, eps=settings.eps,
        weight_decay=settings.weight_decay, betas=settings.betas, clip=settings.clip_grad,
    )


def in_dtype(state, dtype):
    """The same weights rounded to what the model holds, computed with in float32."""
    return {name: tensor.to(dtype).float() for name, tensor in state.items()}


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_parity_of_layouts_with_plain_training(case):
    config, (parallel, precision) = the_model(case), settings(case)
    layout = Layout.of(parallel, precision)
    ranks = run_ranks(
        case["grid"].size, sharded_train, config, plain_init(config, seed=1), BATCHES, OPTIMIZERS[case["optimizer"]], case["grid"], case["zero"],
        layout, kernels=case["kernels"], offload_optimizer=case["offload"],
    )
    expected = plain_reference(config, case["optimizer"], layout.dtype)
    gradients, parameters = merge_ranks([rank.gradients for rank in ranks]), merge_ranks([rank.parameters for rank in ranks])
    if case["dtype"] == "fp32":
        for rank in ranks:
            assert rank.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
            assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
        assert_tensors_close(gradients, expected.gradients)
        assert_tensors_close(parameters, expected.parameters)
        return
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=BF16_LOSS_RELATIVE)
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=BF16_GRADIENT_RELATIVE)
    for name, gradient in gradients.items():
        if not name.endswith("key.bias"):  # zero but for rounding
            assert relative_error(gradient, expected.gradients[name]) <= BF16_GRADIENT_RELATIVE, name


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_parity_of_a_context_of_2048_over_two_ranks(family):
    config = tiny_model(family, True, num_layers=2, max_sequence_length=2048)
    batches = tiny_batches(steps=2, rows=4, seq=2048)
    ranks = run_ranks(2, sharded_train, config, plain_init(config, seed=1), batches, OPTIMIZERS["sgd"], Grid(cp=2), 1, Layout(recompute="selective"))
    settings = OPTIMIZERS["sgd"]
    expected = plain_train(config, plain_init(config, seed=1), batches, optimizer="sgd", lr=settings.lr, clip=settings.clip_grad)
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([rank.parameters for rank in ranks]), expected.parameters)


EIGHT_RANKS = {
    "tp2-pp2-dp2": (Grid(tp=2, pp=2, dp=2), 2, Layout(sequence_parallel=True, num_chunks=2)),
    "tp2-cp2-dp2": (Grid(tp=2, cp=2, dp=2), 3, Layout(sequence_parallel=True, recompute="full")),
    "cp2-pp2-dp2": (Grid(cp=2, pp=2, dp=2), 1, Layout(recompute="selective")),
    "tp2-cp2-pp2": (Grid(tp=2, cp=2, pp=2), 1, Layout(stage_layers=(3, 1))),
    "pp4-dp2": (Grid(pp=4, dp=2), 0, Layout()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGHT_RANKS)
def test_parity_of_eight_ranks_with_plain_training(name):
    grid, zero, layout = EIGHT_RANKS[name]
    config = tiny_model("gpt", True)
    ranks = run_ranks(8, sharded_train, config, plain_init(config, seed=1), BATCHES, OPTIMIZERS["sgd"], grid, zero, layout, timeout=240)
    expected = plain_reference(config, "sgd", torch.float32)
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([rank.gradients for rank in ranks]), expected.gradients)
    assert_tensors_close(merge_ranks([rank.parameters for rank in ranks]), expected.parameters)
