"""LoRA under every kind of layout: gradients of the factors and training equal those of plain PyTorch on the merged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from megagpt.checkpoint.load import Checkpoint, load_chunks
from megagpt.checkpoint.resume import restore_engine
from megagpt.config.schema import LoraConfig, ModelConfig, OptimizerConfig
from megagpt.data.batch import TokenBatch
from megagpt.engine.build import Engine
from megagpt.engine.state import counters, optimizer_tensors
from megagpt.model.layout import Layout
from megagpt.model.lora import adapters_off
from megagpt.model.param_map import canonical_shapes, factors_of, is_trained
from megagpt.model.shape import ModelShape
from megagpt.parallel.collectives import sum_reports
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import PlainGPT, PlainRun, plain_init, plain_loss
from tests.helpers.sharded import accumulate, full_forward, sharded_chunks, sharded_train
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny import microbatches, tiny_batches, tiny_model
from tests.helpers.tiny_checkpoint import save_tensors
from tests.helpers.tolerance import BF16_GRADIENT_RELATIVE, PARITY_RELATIVE, assert_tensors_close, relative_error

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
    offload: str = "none"


CASES = {
    "one_rank": Case(Grid(), 0), "one_rank_some_llama": Case(Grid(), 1, family="llama", tied=False, lora=SOME),
    "tp2": Case(Grid(tp=2), 0), "tp2_llama": Case(Grid(tp=2), 1, family="llama", tied=False),
    "tp2_sequence": Case(Grid(tp=2), 0, Layout(sequence_parallel=True)),
    "tp2_sequence_zero2_llama": Case(Grid(tp=2), 2, Layout(sequence_parallel=True, recompute="full"), "llama", True),
    "pp2": Case(Grid(pp=2), 2), "pp2_interleaved": Case(Grid(pp=2), 1, Layout(num_chunks=2, recompute="selective"), lora=SOME),
    "dp2_zero1": Case(Grid(dp=2), 1), "dp2_offload": Case(Grid(dp=2), 2, offload="cpu"), "dp2_zero2": Case(Grid(dp=2), 2, family="llama"), "cp2": Case(Grid(cp=2), 1, family="llama"),
    "dp2_zero3": Case(Grid(dp=2), 3, lora=SOME), "dp2_zero3_offload": Case(Grid(dp=2), 3, offload="cpu"),
    "tp2_dp2_sequence_zero3": Case(Grid(tp=2, dp=2), 3, Layout(sequence_parallel=True, recompute="full"), "llama", False),
    "tp2_pp2": Case(Grid(tp=2, pp=2), 0), "tp2_pp2_sequence": Case(Grid(tp=2, pp=2), 2, Layout(sequence_parallel=True), "llama", False),
}  # fmt: skip


def adapted_state(config: ModelConfig, lora: LoraConfig, scalar_head: bool = False) -> dict[str, Tensor]:
    """Canonical tensors of which none is zero, so that both factors have gradients."""
    state, generator = plain_init(config, 1, scalar_head), torch.Generator().manual_seed(5)
    for name, size in canonical_shapes(ModelShape(config, lora), scalar_head).items():
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


def plain_lora_train(config: ModelConfig, state: dict[str, Tensor], lora: LoraConfig, loss_function: Callable[..., Tensor] = plain_loss) -> PlainRun:
    """One process, torch's own AdamW and clipping, autograd through the merged weights."""
    model = PlainGPT(config, scalar_head="scalar_head.weight" in state)
    factors = {name: tensor.clone().requires_grad_() for name, tensor in state.items() if "lora_" in name or "scalar_head" in name}
    adamw = torch.optim.AdamW(factors.values(), lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps, weight_decay=OPTIMIZER.weight_decay)
    losses, norms, gradients = [], [], {}
    for batch in tiny_batches(STEPS):
        weights = merged({**state, **factors}, lora)
        loss = loss_function(lambda tokens: functional_call(model, weights, (tokens,)), *batch)
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
    ranks = run_ranks(
        case.grid.size, sharded_train, config, state, tiny_batches(STEPS), OPTIMIZER, case.grid, case.zero, case.layout,
        lora=case.lora, offload_optimizer=case.offload,
    )  # fmt: skip
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([rank.gradients for rank in ranks]), expected.gradients)
    trained = merge_ranks([rank.parameters for rank in ranks])
    assert_tensors_close(trained, expected.parameters)
    base = [tensor for tensor in state if "lora_" not in tensor]
    assert len(base) > 20 and all(torch.equal(trained[tensor], state[tensor]) for tensor in base)


# ---------------------------------------------------------------- a scalar head, which is trained whole


def squared_error(scalars: Tensor, tokens: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    return ((scalars - labels / 50).square() * loss_mask).sum()


def scalar_train(config: ModelConfig, state: dict[str, Tensor], grid: Grid, zero: int) -> PlainRun:
    engine = Engine(sharded_chunks(config, state, grid, Layout(), ALL), OPTIMIZER, zero)
    losses, norms, gradients = [], [], {}

    def loss_function(scalars: Tensor, part: TokenBatch):
        total = squared_error(scalars, part.tokens, part.labels, part.loss_mask)
        return total, {"loss": total.item()}

    for batch in tiny_batches(STEPS):
        parts = [TokenBatch(*part, torch.arange(4)) for part in microbatches(batch, 0, 1)]
        reports = engine.accumulate(parts, loss_function, denominator=float(batch.loss_mask.sum()), rows=4, length=16)
        losses.append(sum_reports(engine.groups, reports, ("loss",))["loss"] / float(batch.loss_mask.sum()))
        gradients = gradients or held_here(engine.canonical_gradients())
        norms.append(engine.step(OPTIMIZER.lr))
    parameters = held_here(engine.canonical_parameters())
    engine.close()
    return PlainRun(losses, norms, gradients, parameters)


@pytest.mark.parametrize(("grid", "zero"), [(Grid(), 0), (Grid(tp=2), 2), (Grid(pp=2), 1), (Grid(pp=2), 0)], ids=["one", "tp2", "pp2_zero1", "pp2_zero0"])
def test_lora_trains_a_scalar_head_beside_the_adapters(grid, zero):
    config = tiny_model("gpt", False)
    state = adapted_state(config, ALL, scalar_head=True)
    expected = plain_lora_train(config, state, ALL, lambda model, *batch: squared_error(model(batch[0]), *batch) / batch[2].sum())
    assert {name for name in expected.gradients if "lora_" not in name} == {"scalar_head.weight", "scalar_head.bias"}
    ranks = run_ranks(grid.size, scalar_train, config, state, grid, zero)
    for rank in ranks:
        assert rank.losses == pytest.approx(expected.losses, rel=PARITY_RELATIVE)
        assert rank.gradient_norms == pytest.approx(expected.gradient_norms, rel=PARITY_RELATIVE)
    assert_tensors_close(merge_ranks([rank.gradients for rank in ranks]), expected.gradients)
    assert_tensors_close(merge_ranks([rank.parameters for rank in ranks]), expected.parameters)


# ---------------------------------------------------------------- checkpoints

CPU = torch.device("cpu")
BF16 = Layout(dtype=torch.bfloat16)


def saved_base(folder: Path, config: ModelConfig) -> Path:
    """On one rank: a model without adapters."""
    return save_tensors(folder, 1, plain_init(config, seed=1).items(), build_groups(Grid()), config)


def new_adapters(path: Path, grid: Grid, layout: Layout) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
    """Adapters put on a saved model: those of this rank's stage; and logits, with them and of the saved model."""
    checkpoint, groups = Checkpoint.open(path), build_groups(grid)
    plain, adapted = (load_chunks(checkpoint, groups, CPU, layout, scalar_head=False, seed=7, lora=lora)[0] for lora in (None, ALL))
    engine = Engine(adapted, OPTIMIZER, zero_stage=1)
    adapters = held_here((name, tensor) for name, tensor in engine.canonical_parameters() if "lora_" in name)
    tokens = tiny_batches(1)[0].tokens
    logits = full_forward(adapted, tokens), full_forward(plain, tokens)
    engine.close()
    return adapters, *logits


def test_lora_starts_as_the_model_that_it_is_put_on_under_every_layout(tmp_path):
    config = tiny_model("llama", False)
    (path,) = run_ranks(1, saved_base, tmp_path, config)
    found, where = {}, {"one": (Grid(), Layout()), "tp2": (Grid(tp=2), Layout()), "pp2": (Grid(pp=2), Layout()), "bf16": (Grid(tp=2), BF16)}
    for name, (grid, layout) in where.items():
        ranks = run_ranks(grid.size, new_adapters, path, grid, layout)
        found[name] = merge_ranks([rank[0] for rank in ranks])
        outputs = [rank[1:] for rank in ranks if rank[1] is not None]
        assert outputs and all(torch.equal(adapted, plain) for adapted, plain in outputs)
    assert {name for name in found["one"]} == {name for name in canonical_shapes(ModelShape(config, ALL)) if "lora_" in name}
    for name, tensor in found["one"].items():
        assert torch.equal(tensor, found["tp2"][name]) and torch.equal(tensor, found["pp2"][name])
        assert (tensor.abs().max() == 0) == name.endswith("lora_b")
        if name.endswith("lora_a"):
            assert tensor.std() == pytest.approx(tensor.size(1) ** -0.5, rel=0.3)


class Held(NamedTuple):
    """Of an engine on one rank."""

    tensors: dict[str, Tensor]
    """Weights and what the optimizer holds, of its stage."""
    losses: list[float]
    adapted: Tensor | None
    """Logits with the adapters …"""
    switched_off: Tensor | None
    """… and without."""
    with_gradients: set[str]
    """Tensors that had a gradient after the last microbatch, before anything was reduced."""


def train_on(folder: Path, config: ModelConfig, grid: Grid, zero: int, layout: Layout, resumed: bool) -> tuple[Held, Held]:
    """Two steps from random adapters, saved, and two more; or, resumed, these alone. Returns (as it is after two, at the end)."""
    state = adapted_state(config, ALL)
    if resumed:  # other weights than those that were saved, so that all of them must come from the checkpoint
        state = {name: 2 * tensor for name, tensor in state.items()}
    engine, batches, losses, moments = Engine(sharded_chunks(config, state, grid, layout, ALL), OPTIMIZER, zero), tiny_batches(4), [], []
    sum_shared, with_gradients = engine._sum_shared_gradients, set()

    def spy() -> None:
        with_gradients.update(piece for p, entry in engine.entries if p.grad is not None for piece in entry.pieces)
        sum_shared()

    engine._sum_shared_gradients = spy
    if resumed:
        restore_engine(Checkpoint.open(folder / "checkpoints/step_2"), engine)
        moments.append(held(engine, losses, batches[0].tokens, with_gradients))
    for step in (3, 4) if resumed else (1, 2, 3, 4):
        losses.append(accumulate(engine, batches[step - 1]))
        engine.step(OPTIMIZER.lr)
        if step in (2, 4):
            moments.append(held(engine, losses, batches[0].tokens, with_gradients))
        if step == 2:
            weights = ((name, tensor.to(layout.dtype)) for name, tensor in engine.canonical_parameters())
            facts = {"optimizer": counters(engine), "lora": ALL.model_dump(mode="json")}
            save_tensors(folder, 2, weights, engine.groups, config, optimizer=optimizer_tensors(engine), state=facts)
    engine.close()
    return tuple(moments)


def held(engine: Engine, losses: list[float], tokens: Tensor, with_gradients: set[str]) -> Held:
    tensors = held_here(engine.canonical_parameters()) | held_here(optimizer_tensors(engine))
    with engine.scope():
        adapted = full_forward(engine.model, tokens)
        with adapters_off(engine.model):
            switched_off = full_forward(engine.model, tokens)
    return Held(tensors, list(losses), adapted, switched_off, with_gradients)


def merged_logits(path: Path, grid: Grid, layout: Layout) -> Tensor | None:
    """Of the checkpoint as the next stage loads it, without any adapters."""
    (model,) = load_chunks(Checkpoint.open(path), build_groups(grid), CPU, layout, scalar_head=False)
    assert not any(".lora." in name for name, _ in model.named_parameters())
    return full_forward(model, tiny_batches(1)[0].tokens)


def base_logits(config: ModelConfig, layout: Layout) -> Tensor:
    (model,) = sharded_chunks(config, plain_init(config, seed=1), Grid(), layout)
    return full_forward(model, tiny_batches(1)[0].tokens)


SAVED = {
    "tp2": (Grid(tp=2), 0, Layout()), "dp2_zero2": (Grid(dp=2), 2, Layout()), "bf16": (Grid(dp=2), 1, BF16), "pp2": (Grid(pp=2), 1, Layout()),
    "dp2_zero3": (Grid(dp=2), 3, Layout()), "bf16_zero3": (Grid(dp=2), 3, BF16),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_lora_checkpoint_resumes_exactly_and_is_merged_for_others(name, tmp_path):
    grid, zero, layout = SAVED[name]
    config = tiny_model("gpt" if name == "pp2" else "llama", tied=True)
    (saved, straight), (loaded, resumed) = (
        [Held(merge_ranks([rank.tensors for rank in moment]), *moment[-1][1:]) for moment in zip(*ranks, strict=True)]
        for ranks in (run_ranks(2, train_on, tmp_path, config, grid, zero, layout, resumed) for resumed in (False, True))
    )
    for ours, theirs in ((loaded, saved), (resumed, straight)):
        assert ours.tensors.keys() == theirs.tensors.keys() and all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in theirs.tensors)
    assert resumed.losses == straight.losses[2:] and torch.equal(resumed.adapted, straight.adapted)

    # Nothing but the factors has a gradient, moments, or a float32 master.
    kinds = ("exp_avg", "exp_avg_sq") + (("master",) if layout is BF16 else ())
    shapes = canonical_shapes(ModelShape(config, ALL))
    factors = [key for key in shapes if is_trained(key, ModelShape(config, ALL))]
    assert {key for key in straight.tensors if key not in shapes} == {f"{kind}.{key}" for kind in kinds for key in factors}
    assert straight.with_gradients and straight.with_gradients <= set(factors)
    if grid.pp == 1:
        assert straight.with_gradients == set(factors)

    # Switched off it is the base, to the bit; merged it is the whole.
    (base,) = run_ranks(1, base_logits, config, layout)
    tolerance = BF16_GRADIENT_RELATIVE if layout is BF16 else PARITY_RELATIVE
    assert relative_error(straight.adapted, base) > 5 * tolerance and relative_error(straight.adapted, base) > 0.1
    assert torch.equal(straight.switched_off, base) or (grid.tp > 1 and relative_error(straight.switched_off, base) <= tolerance)
    path = tmp_path / "checkpoints/step_2"
    for other in (Grid(), Grid(tp=2)):
        assert relative_error(run_ranks(other.size, merged_logits, path, other, layout)[-1], saved.adapted) <= tolerance


def restored(folder: Path, config: ModelConfig, grid: Grid, zero: int) -> dict[str, Tensor]:
    engine = Engine(sharded_chunks(config, adapted_state(config, ALL), grid, Layout(), ALL), OPTIMIZER, zero)
    restore_engine(Checkpoint.open(folder / "checkpoints/step_2"), engine)
    tensors = held_here(engine.canonical_parameters()) | held_here(optimizer_tensors(engine))
    engine.close()
    return tensors


def test_lora_checkpoint_goes_on_under_another_layout(tmp_path):
    config = tiny_model("llama", False)
    saved, _ = zip(*run_ranks(2, train_on, tmp_path, config, Grid(tp=2), 0, Layout(), False))
    expected = merge_ranks([rank.tensors for rank in saved])
    for grid, zero in ((Grid(pp=2), 2), (Grid(dp=2), 1), (Grid(dp=2), 3), (Grid(), 0)):
        found = merge_ranks(run_ranks(grid.size, restored, tmp_path, config, grid, zero))
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
