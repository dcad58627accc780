"""Training that is saved and resumed: bit-equal under the same layout, equal under any other, every tensor of the optimizer with it."""

import functools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from megagpt.checkpoint.layout import CheckpointError
from megagpt.checkpoint.load import Checkpoint
from megagpt.checkpoint.resume import restore_engine
from megagpt.config.schema import LossScaleConfig, ModelConfig, OptimizerConfig
from megagpt.engine.build import Engine
from megagpt.engine.state import counters, optimizer_tensors
from megagpt.model.layout import Layout
from megagpt.parallel.grid import Grid
from tests.helpers.gather import held_here, merge_ranks
from tests.helpers.plain import plain_init
from tests.helpers.sharded import accumulate, sharded_chunks
from tests.helpers.spawn import RankFailure, run_ranks
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tiny_checkpoint import save_tensors
from tests.helpers.tolerance import BF16_LOSS_RELATIVE, PARITY_RELATIVE

CONFIG = tiny_model("gpt", True)
ADAM, SGD = OptimizerConfig(lr=1e-3, eps=1e-5), OptimizerConfig(name="sgd", lr=1e-1)
STEPS, MORE_STEPS = 3, 10


class Setup(NamedTuple):
    """How one run is laid out."""

    grid: Grid
    zero: int = 1
    layout: Layout = Layout()
    offload: str = "none"
    optimizer: OptimizerConfig = ADAM
    config: ModelConfig = CONFIG


class Result(NamedTuple):
    losses: list[float]
    norms: list[float]
    tensors: dict[str, torch.Tensor]
    """Weights and what the optimizer holds, of this rank's stage."""
    counted: dict


ODD = tiny_model("gpt", True, hidden_size=6, num_attention_heads=2, num_query_groups=2)
"""Its biases have 6 and 18 numbers, which 4 replicas cannot share evenly."""
BF16, FP16 = Layout(dtype=torch.bfloat16), Layout(dtype=torch.float16)
SAME = {
    "dp2-zero0": Setup(Grid(dp=2), 0), "dp2-zero1": Setup(Grid(dp=2), 1), "dp2-zero2": Setup(Grid(dp=2), 2), "dp2-zero3": Setup(Grid(dp=2), 3),
    "dp4-zero3-uneven": Setup(Grid(dp=4), 3, config=ODD), "tp2": Setup(Grid(tp=2)), "pp2-interleaved": Setup(Grid(pp=2), 2, Layout(num_chunks=2)), "cp2": Setup(Grid(cp=2), 2),
    "tp2-pp2-zero0": Setup(Grid(tp=2, pp=2), 0), "bf16-zero1": Setup(Grid(dp=2), 1, BF16), "bf16-zero2": Setup(Grid(dp=2), 2, BF16),
    "bf16-zero3": Setup(Grid(dp=2), 3, BF16), "fp16-zero2": Setup(Grid(dp=2), 2, FP16), "offload-zero2": Setup(Grid(dp=2), 2, offload="cpu"),
    "offload-zero3": Setup(Grid(dp=2), 3, offload="cpu"), "sgd-zero1": Setup(Grid(dp=2), 1, optimizer=SGD), "sgd-bf16": Setup(Grid(dp=2), 1, BF16, optimizer=SGD),
}
OTHER = {
    "tp2": Setup(Grid(tp=2)), "pp2": Setup(Grid(pp=2), 2), "dp2-zero1": Setup(Grid(dp=2), 1), "dp2-zero3": Setup(Grid(dp=2), 3),
    "tp2-pp2-zero0": Setup(Grid(tp=2, pp=2), 0), "dp4-zero3": Setup(Grid(dp=4), 3),
}
WIDE = tiny_model("gpt", True, hidden_size=112)
"""DeepSpeed moves no group of states to a drive that has less than 1 MiB on a rank."""
DRIVE = {"nvme": Setup(Grid(dp=2), 3, offload="nvme", config=WIDE), "nvme-bf16": Setup(Grid(dp=2), 3, BF16, offload="nvme", config=WIDE)}
BOTH_WAYS = [("tp2", "pp2"), ("pp2", "dp2-zero1"), ("dp2-zero1", "tp2"), ("dp2-zero1", "dp2-zero3"), ("tp2-pp2-zero0", "dp2-zero1"), ("dp4-zero3", "tp2")]


def engine_of(setup: Setup, seed: int, folder: Path) -> Engine:
    chunks = sharded_chunks(setup.config, plain_init(setup.config, seed), setup.grid, setup.layout)
    return Engine(
        chunks, setup.optimizer, setup.zero, loss_scale=LossScaleConfig(initial=256.0, window=2), offload_optimizer=setup.offload,
        offload_path=str(folder / "drive") if setup.offload == "nvme" else None,
    )


def result_of(engine: Engine, losses=(), norms=()) -> Result:
    tensors = held_here(engine.canonical_parameters()) | held_here(optimizer_tensors(engine))
    return Result(list(losses), list(norms), tensors, counters(engine))


def train(setup: Setup, folder: Path, resumed: bool, num_steps: int) -> tuple[Result, Result]:
    """From the beginning, saving after STEPS, or from there. Returns (as it is at that step, as it is at the end)."""
    engine, batches = engine_of(setup, 99 if resumed else 1, folder), tiny_batches(STEPS + MORE_STEPS)
    losses, norms, middle = [], [], None
    if resumed:  # other weights than those that were saved, so that all of them must come from the checkpoint
        restore_engine(Checkpoint.open(folder / "checkpoints" / f"step_{STEPS}"), engine)
        middle = result_of(engine)
    for step in range(STEPS + 1 if resumed else 1, num_steps + 1):
        losses.append(accumulate(engine, batches[step - 1]))
        norms.append(engine.step(setup.optimizer.lr))
        if step == STEPS:
            middle = result_of(engine)
            weights = ((name, tensor.to(setup.layout.dtype)) for name, tensor in engine.canonical_parameters())
            save_tensors(folder, step, weights, engine.groups, setup.config, optimizer=optimizer_tensors(engine), state={"optimizer": counters(engine)})
    end = result_of(engine, losses, norms)
    engine.close()
    return middle, end


def on_ranks(setup: Setup, folder: Path, resumed: bool, num_steps: int = STEPS + MORE_STEPS) -> tuple[Result, Result]:
    """`train` on the ranks of the setup's grid, tensors merged; the numbers are the same on every rank."""
    per_rank = run_ranks(setup.grid.size, train, setup, folder, resumed, num_steps)
    return tuple(part[0]._replace(tensors=merge_ranks([rank.tensors for rank in part])) for part in zip(*per_rank, strict=True))


def assert_same_tensors(ours: Result, theirs: Result) -> None:
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], tensor), name
    assert ours.counted == theirs.counted


def assert_resumes_bit_equal(setup: Setup, folder: Path) -> tuple[Result, Result]:
    """Returns (as it was saved, as the run ended that went on without a stop)."""
    saved, straight = on_ranks(setup, folder, resumed=False)
    loaded, resumed = on_ranks(setup, folder, resumed=True)
    assert_same_tensors(loaded, saved)
    assert_same_tensors(resumed, straight)
    assert resumed.losses == straight.losses[STEPS:] and resumed.norms == straight.norms[STEPS:]
    return saved, straight


@pytest.mark.parametrize("name", SAME)
def test_resume_on_the_same_layout_is_bit_equal(name, tmp_path):
    saved, _ = assert_resumes_bit_equal(SAME[name], tmp_path)
    kinds = {tensor.partition(".")[0] for tensor in saved.tensors}
    assert {"exp_avg", "exp_avg_sq"} <= kinds if SAME[name].optimizer is ADAM else "exp_avg" not in kinds
    assert ("master" in kinds) == (SAME[name].layout.dtype != torch.float32)


@pytest.fixture(scope="module")
def async_io():
    """DeepSpeed's op for drives, compiled here before two ranks try to at once."""
    if not AsyncIOBuilder().is_compatible():
        pytest.skip("libaio and its headers are not installed (Debian, Ubuntu: apt-get install libaio-dev)")
    AsyncIOBuilder().load()


@pytest.mark.slow  # the op takes some minutes to compile
@pytest.mark.parametrize("name", DRIVE)
def test_resume_with_states_on_a_drive_is_bit_equal(name, async_io, tmp_path):
    _, straight = assert_resumes_bit_equal(DRIVE[name], tmp_path)
    assert {path.name.partition("-")[0] for path in (tmp_path / "drive").rglob("*.swp")} > {"exp_avg", "exp_avg_sq"}
    _, in_memory = on_ranks(DRIVE[name]._replace(offload="none"), tmp_path / "memory", resumed=False)
    # The norm is summed up in another order: that moves the weights' last bits, which are larger with 16.
    assert straight.losses == pytest.approx(in_memory.losses, rel=BF16_LOSS_RELATIVE if DRIVE[name].layout is BF16 else PARITY_RELATIVE)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """setup -> (where it saved, as it was then, how it went on), each trained once."""

    @functools.cache
    def once(name: str) -> tuple[Path, Result, Result]:
        folder = tmp_path_factory.mktemp(name)
        return folder, *on_ranks(OTHER[name], folder, resumed=False)

    return once


@pytest.mark.parametrize(("earlier", "later"), [*BOTH_WAYS, *(pair[::-1] for pair in BOTH_WAYS)])
def test_resume_on_another_layout_gives_the_same_losses(earlier, later, straight):
    folder, saved, went_on = straight(earlier)
    loaded, resumed = on_ranks(OTHER[later], folder, resumed=True)
    assert_same_tensors(loaded, saved)
    assert resumed.losses == pytest.approx(went_on.losses[STEPS:], rel=PARITY_RELATIVE)


@pytest.mark.parametrize("later", [Setup(Grid(tp=2), 1, BF16), Setup(Grid(pp=2), 2, BF16), Setup(Grid(dp=2), 3, BF16)], ids=["tp2", "pp2", "dp2-zero3"])
def test_resume_of_bf16_on_another_layout_keeps_every_bit(later, tmp_path):
    saved, _ = on_ranks(SAME["bf16-zero1"], tmp_path, resumed=False, num_steps=STEPS)
    loaded, _ = on_ranks(later, tmp_path, resumed=True, num_steps=STEPS)
    assert_same_tensors(loaded, saved)


def test_resume_of_adamw_from_a_run_with_sgd_is_refused(tmp_path):
    on_ranks(SAME["sgd-zero1"], tmp_path, resumed=False, num_steps=STEPS)
    with pytest.raises(RankFailure, match=f"{CheckpointError.__name__}: .*holds no tensor 'exp_avg.embedding.tokens.weight'"):
        on_ranks(SAME["dp2-zero1"], tmp_path, resumed=True, num_steps=STEPS)
