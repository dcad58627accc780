"""LoRA under every kind of layout: gradients of the factors and training equal those of plain PyTorch on the merged weights."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from megagpt.config.schema import LoraConfig, ModelConfig, OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.engine.state import optimizer_tensors
from megagpt.model.layout import Layout
from megagpt.model.param_map import canonical_shapes, factors_of, is_trained
from megagpt.model.shape import ModelShape
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import PlainGPT, PlainRun, plain_init, plain_loss
from tests.helpers.sharded import accumulate, full_forward, sharded_chunks, sharded_model, sharded_train
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import PARITY_RELATIVE, assert_tensors_close

OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-5, weight_decay=0.1, clip_grad=0.2)
ALL, SOME = LoraConfig(rank=3, alpha=4.0), LoraConfig(rank=2, alpha=5.0, targets=("proj", "fc1"))
STEPS = 3


class Case(NamedTuple):
    grid: Grid
    zero: int
    layout: Layout = Layout()
    family: str = "gpt"
    tied: bool = True
    lora: LoraConfig = ALL


CASES = {
    "one_rank": Case(Grid(), 0), "one_rank_some_llama": Case(Grid(), 1, family="llama", tied=False, lora=SOME),
    "tp2": Case(Grid(tp=2), 0), "tp2_llama": Case(Grid(tp=2), 1, family="llama", tied=False), "tp2_sequence": Case(Grid(tp=2), 0, Layout(sequence_parallel=True)),
    "tp2_sequence_zero2_llama": Case(Grid(tp=2), 2, Layout(sequence_parallel=True, recompute="full"), "llama", True),
    "pp2": Case(Grid(pp=2), 2), "pp2_interleaved": Case(Grid(pp=2), 1, Layout(num_chunks=2, recompute="selective"), lora=SOME),
    "dp2_zero1": Case(Grid(dp=2), 1), "dp2_zero2": Case(Grid(dp=2), 2, family="llama"), "cp2": Case(Grid(cp=2), 1, family="llama"),
    "tp2_pp2": Case(Grid(tp=2, pp=2), 0), "tp2_pp2_sequence": Case(Grid(tp=2, pp=2), 2, Layout(sequence_parallel=True), "llama", False),
}  # fmt: skip


def adapted_state(config: ModelConfig, lora: LoraConfig) -> dict[str, Tensor]:
    """Canonical tensors of which none is zero, so that both factors have gradients."""
    state, generator = plain_init(config, seed=1), torch.Generator().manual_seed(5)
    for name, size in canonical_shapes(ModelShape(config, lora)).items():
        if name not in state:
            state[name] = 0.2 * torch.randn(size, generator=generator)
    return state


def merged(state: dict[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
    """Hu et al. 2021, eq. 3."""
    weights = {}
    for name, tensor in state.items():
        if "lora_" not in name:
            factors = factors_of(name, lora)
            weights[name] = tensor if factors is None else tensor + lora.alpha / lora.rank * state[factors[1]] @ state[factors[0]]
    return weights


def plain_lora_train(config: ModelConfig, state: dict[str, Tensor], lora: LoraConfig) -> PlainRun:
    """One process, torch's own AdamW and clipping, autograd through the merged weights."""
    model = PlainGPT(config)
    factors = {name: tensor.clone().requires_grad_() for name, tensor in state.items() if "lora_" in name}
    adamw = torch.optim.AdamW(factors.values(), lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay)
    losses, norms, gradients = [], [], {}
    for batch in tiny_batches(STEPS):
        weights = merged({**state, **factors}, lora)
        loss = plain_loss(lambda tokens: functional_call(model, weights, (tokens,)), *batch)
        adamw.zero_grad()
        loss.backward()
        gradients = gradients or {name: factor.grad.clone() for name, factor in factors.items()}
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(factors.values(), OPTIMIZER.clip_grad).item())
        adamw.step()
    return PlainRun(losses, norms, gradients, {**state, **{name: factor.detach() for name, factor in factors.items()}})


@pytest.mark.parametrize("name", CASES)
def test_lora_gradients_and_training_equal_plain_ones_of_merged_weights(name):
    case = CASES[name]
    config = tiny_model(case.family, case.tied)
    state = adapted_state(config, case.lora)
    expected = plain_lora_train(config, state, case.lora)
    assert min(expected.gradient_norms) > OPTIMIZER.clip_grad  # clipping counts every factor once
    ranks = run_ranks(case.grid.size, sharded_train, config, state, tiny_batches(STEPS), OPTIMIZER, case.grid, case.zero, case.layout, lora=case.lora)
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([rank.gradients for rank in ranks]), expected.gradients)
    trained = merge_ranks([rank.parameters for rank in ranks])
    assert_tensors_close(trained, expected.parameters)
    base = [tensor for tensor in state if "lora_" not in tensor]
    assert len(base) > 20 and all(torch.equal(trained[tensor], state[tensor]) for tensor in base)
