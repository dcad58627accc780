"""Mixed grids: models with grids of their own in one job neither wait for each other nor change each other's numbers."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config.schema import OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import PlainGPT, plain_init, plain_train
from tests.helpers.sharded import accumulate, full_forward, sharded_model, sharded_train
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tolerance import LOGITS_ABSOLUTE, PARITY_RELATIVE, assert_tensors_close

OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-5, clip_grad=0.3)
POLICY, VALUE, REFERENCE = Grid(dp=2), Grid(offset=2), Grid(offset=3)
POLICY_STEPS, VALUE_STEPS = 3, 5
GPT_CONFIG, LLAMA_CONFIG = tiny_model("gpt", True), tiny_model("llama", False)
GPT_STATE, LLAMA_STATE = plain_init(GPT_CONFIG, seed=1), plain_init(LLAMA_CONFIG, seed=2)
VALUE_STATE = plain_init(LLAMA_CONFIG, seed=3, scalar_head=True)


def squared_values(model, tokens, labels, loss_mask) -> Tensor:
    """A loss for a scalar head: the mean of (value - 1)^2 over the valid tokens."""
    return ((model(tokens) - 1) ** 2 * loss_mask).sum() / loss_mask.sum()


def value_step(engine: Engine, batch) -> tuple[float, float]:
    """One step on one microbatch: (loss, gradient norm)."""

    def loss_function(values: Tensor, part):
        total = ((values - 1) ** 2 * part.loss_mask).sum()
        return total, {"total": total.item()}

    num_valid = batch.loss_mask.sum().item()
    rows, length = batch.tokens.shape
    (report,) = engine.accumulate([batch], loss_function, denominator=num_valid, rows=rows, length=length)
    return report["total"] / num_valid, engine.step(OPTIMIZER.lr)


def three_models(first: Grid | None):
    """Each rank builds and trains the model of its grid; where a grid is to be `first`, the others start when it has finished."""
    for grid in (POLICY, VALUE, REFERENCE):  # groups are made by all ranks together, engines are not
        build_groups(grid)
    rank = dist.get_rank()
    if first is not None and rank not in first:
        dist.recv(torch.empty(1), first.ranks[0])
    result = policy() if rank in POLICY else value() if rank in VALUE else reference()
    if first is not None and rank == first.ranks[0]:
        for other in set(range(4)).difference(first.ranks):
            dist.send(torch.zeros(1), other)
    return result


def policy():
    return sharded_train(GPT_CONFIG, GPT_STATE, tiny_batches(POLICY_STEPS), OPTIMIZER, POLICY, zero_stage=3)


def value():
    engine = Engine(sharded_model(LLAMA_CONFIG, VALUE_STATE, VALUE), OPTIMIZER, zero_stage=1)
    losses, norms = zip(*(value_step(engine, batch) for batch in tiny_batches(VALUE_STEPS)))
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    return list(losses), list(norms), parameters


def reference():
    model = sharded_model(GPT_CONFIG, GPT_STATE, REFERENCE)
    return [full_forward(model, batch.tokens) for batch in tiny_batches(2)]


@pytest.mark.parametrize("first", [POLICY, VALUE, REFERENCE, None], ids=["policy_first", "value_first", "reference_first", "together"])
def test_mixed_grids_train_at_their_own_pace(first):
    policy_0, policy_1, (value_losses, value_norms, value_parameters), reference_logits = run_ranks(4, three_models, first, timeout=60)

    settings = dict(lr=OPTIMIZER.lr, clip=OPTIMIZER.clip_grad)
    expected = plain_train(GPT_CONFIG, GPT_STATE, tiny_batches(POLICY_STEPS), **settings)
    assert policy_0.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
    assert policy_0.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([policy_0.parameters, policy_1.parameters]), expected.parameters)

    expected = plain_train(LLAMA_CONFIG, VALUE_STATE, tiny_batches(VALUE_STEPS), loss_function=squared_values, **settings)
    assert value_losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
    assert value_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(value_parameters, expected.parameters)

    plain = PlainGPT(GPT_CONFIG)
    plain.load_state_dict(GPT_STATE)
    for logits, batch in zip(reference_logits, tiny_batches(2), strict=True):
        torch.testing.assert_close(logits, plain(batch.tokens).detach(), rtol=0, atol=LOGITS_ABSOLUTE)


def two_engines_in_turn(zero_stage: int):
    """A tensor-parallel and a data-parallel model over the same two ranks: (loss, norm) of each step, and the parameters, of each."""
    gpt = Engine(sharded_model(GPT_CONFIG, GPT_STATE, Grid(tp=2)), OPTIMIZER, zero_stage)
    llama = Engine(sharded_model(LLAMA_CONFIG, LLAMA_STATE, Grid(dp=2)), OPTIMIZER, zero_stage)
    gpt_steps, llama_steps = [], []
    for batch in tiny_batches(3):
        gpt_loss, llama_loss = accumulate(gpt, batch), accumulate(llama, batch)  # both hold gradients before either steps
        llama_steps.append((llama_loss, llama.step(OPTIMIZER.lr)))
        gpt_steps.append((gpt_loss, gpt.step(OPTIMIZER.lr)))
    parameters = [held_here(engine.canonical_parameters()) for engine in (gpt, llama)]
    llama.close()
    gpt.close()
    return [gpt_steps, llama_steps], parameters


def each_engine_alone(zero_stage: int):
    runs = [
        sharded_train(GPT_CONFIG, GPT_STATE, tiny_batches(3), OPTIMIZER, Grid(tp=2), zero_stage),
        sharded_train(LLAMA_CONFIG, LLAMA_STATE, tiny_batches(3), OPTIMIZER, Grid(dp=2), zero_stage),
    ]
    return [list(zip(run.losses, run.gradient_norms)) for run in runs], [run.parameters for run in runs]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_mixed_grids_on_the_same_ranks_give_the_numbers_of_each_alone(zero_stage):
    in_turn, alone = run_ranks(2, two_engines_in_turn, zero_stage), run_ranks(2, each_engine_alone, zero_stage)
    for (steps, parameters), (steps_alone, parameters_alone) in zip(in_turn, alone, strict=True):
        assert steps == steps_alone
        for ours, theirs in zip(parameters, parameters_alone, strict=True):
            merge_ranks([ours, theirs])  # which refuses a differing bit
    for steps, (config, state) in zip(in_turn[0][0], ((GPT_CONFIG, GPT_STATE), (LLAMA_CONFIG, LLAMA_STATE)), strict=True):
        expected = plain_train(config, state, tiny_batches(3), lr=OPTIMIZER.lr, clip=OPTIMIZER.clip_grad)
        for step, *numbers in zip(steps, expected.losses, expected.gradient_norms, strict=True):
            assert step == pytest.approx(tuple(numbers), rel=PARITY_RELATIVE)
