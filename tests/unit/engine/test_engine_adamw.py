"""AdamW through the engine equals its formula; which parameters decay."""

import pytest
import torch

from megagpt.config.schema import OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.engine.optimizer import build_optimizer
from megagpt.engine.schedule import learning_rate
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here
from tests.helpers.plain import PlainGPT, plain_init
from tests.helpers.sharded import accumulate, sharded_model
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import ADAMW_RELATIVE, assert_tensors_close

STEPS = 10
CONFIG = tiny_model("gpt", True, num_layers=1)
OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_ratio=0.3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5, clip_grad=0.0)


def gradients_and_parameters(zero_stage: int) -> tuple[list, list, list]:
    """Ten steps on one rank: learning rates, the gradients of each step, the parameters before the first and after the last step."""
    engine = Engine(sharded_model(CONFIG, plain_init(CONFIG, seed=1), Grid()), OPTIMIZER, zero_stage)
    rates, gradients, parameters = [], [], [held_here(engine.canonical_parameters())]
    for step, batch in enumerate(tiny_batches(STEPS), start=1):
        rates.append(learning_rate(OPTIMIZER, step, STEPS))
        accumulate(engine, batch)
        gradients.append(held_here(engine.canonical_gradients()))
        engine.step(rates[-1])
    parameters.append(held_here(engine.canonical_parameters()))
    engine.close()
    return rates, gradients, parameters


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_adamw_equals_its_formula_over_10_steps(zero_stage):
    rates, gradients, (start, end) = run_ranks(1, gradients_and_parameters, zero_stage)[0]
    beta1, beta2 = OPTIMIZER.betas
    expected = {}
    for name, parameter in start.items():
        theta, m, v = parameter.double(), torch.zeros_like(parameter).double(), torch.zeros_like(parameter).double()
        decay = OPTIMIZER.weight_decay if parameter.dim() == 2 else 0.0
        for t, (rate, gradient) in enumerate(zip(rates, gradients), start=1):
            g = gradient[name].double()
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
            theta = theta - rate * (m_hat / (v_hat.sqrt() + OPTIMIZER.eps) + decay * theta)
        expected[name] = theta
    assert min(rates) != max(rates), "the engine follows the schedule"
    assert_tensors_close(end, expected, ADAMW_RELATIVE)


@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_adamw_decays_matrices_only(family):
    model = PlainGPT(tiny_model(family, False), scalar_head=True)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = build_optimizer(model, OPTIMIZER).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert {names[id(p)] for p in decayed["params"]} == {name for name in names.values() if name.endswith("weight") and "norm" not in name}
    assert {names[id(p)] for p in spared["params"]} == {name for name in names.values() if name.endswith("bias") or "norm" in name}
    assert (decayed["betas"], decayed["eps"]) == ((0.8, 0.9), 1e-6)


def test_optimizer_leaves_frozen_parameters_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False))
    model[0].requires_grad_(False)
    (group,) = build_optimizer(model, OPTIMIZER).param_groups
    assert group["params"] == [model[1].weight]


def test_sgd_decays_by_the_same_rule():
    model = torch.nn.Linear(2, 3)
    before, gradient = model.weight.detach().clone(), torch.randn(3, 2)
    optimizer = build_optimizer(model, OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.5))
    model.weight.grad, model.bias.grad = gradient, torch.zeros(3)
    bias = model.bias.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before - 0.1 * (gradient + 0.5 * before))
    assert torch.equal(model.bias.data, bias)
