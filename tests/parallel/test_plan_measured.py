"""The planner against ourselves: bytes of weights, gradients and optimizer exactly, saved activations, and the peak of a process."""

import ctypes
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.profiler import profile

from megagpt.checkpoint.load import new_chunks
from megagpt.config.schema import LoraConfig, ModelConfig, OptimizerConfig, ParallelConfig
from megagpt.engine.build import Engine
from megagpt.engine.state import optimizer_tensors
from megagpt.kernels.token_logprob import token_logprob
from megagpt.model.gpt import GPT
from megagpt.model.layout import Layout
from megagpt.model.param_map import canonical_shapes, num_parameters
from megagpt.model.shape import ModelShape
from megagpt.model.token_loss import token_nll
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.plan.activations import head_bytes, layer_bytes
from megagpt.plan.hardware import load_hardware
from megagpt.plan.job import Job
from megagpt.plan.memory import checkpoint_bytes, resident, training_phases
from megagpt.runtime.cpu_backend import schedule_scope
from tests.helpers.plain import plain_init
from tests.helpers.sharded import accumulate, sharded_chunks
from tests.helpers.spawn import run_ranks, run_ranks_fresh
from tests.helpers.tiny import tiny_batches, tiny_model
from tests.helpers.tiny_checkpoint import save_tensors

CPU = load_hardware("cpu")
OPTIMIZER = OptimizerConfig(lr=1e-3)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {
    "dp2-zero1": (Grid(dp=2), {"zero_stage": 1}, "fp32"),
    "dp2-zero2": (Grid(dp=2), {"zero_stage": 2}, "fp32"),
    "dp2-zero3": (Grid(dp=2), {"zero_stage": 3}, "fp32"),
    "tp2-sequence": (Grid(tp=2), {"zero_stage": 1, "sequence_parallel": True}, "fp32"),
    "pp2-interleaved": (Grid(pp=2), {"zero_stage": 1, "virtual_pipeline_size": 2}, "fp32"),
    "bf16-dp2": (Grid(dp=2), {"zero_stage": 1}, "bf16"),
}
SMALL = tiny_model("gpt", True, hidden_size=36, num_layers=4)  # sizes that no padding fits
LARGE = ModelConfig(num_layers=8, hidden_size=512, num_attention_heads=8, max_sequence_length=256, vocab_size=8192)


def job_of(
    config: ModelConfig, grid: Grid, options: dict, dtype: str, *, rows: int, scalar_head: bool = False, lora: LoraConfig | None = None
) -> Job:
    parallel = ParallelConfig(tensor_parallel_size=grid.tp, pipeline_parallel_size=grid.pp, **options)
    return Job(
        ModelShape(config, lora), grid, parallel, CPU, rows=rows, length=config.max_sequence_length, num_microbatches=4, dtype=dtype,
        scalar_head=scalar_head, dropout=config.dropout, fused=True,
    )  # fmt: skip


def engine_of(config: ModelConfig, grid: Grid, options: dict, dtype: str, lora: LoraConfig | None = None) -> Engine:
    factors = {name: torch.ones(size) for name, size in canonical_shapes(ModelShape(config, lora)).items() if "lora_" in name}
    chunks = sharded_chunks(config, plain_init(config, seed=1) | factors, grid, layout_of(options, dtype), lora)
    return Engine(chunks, OPTIMIZER, options["zero_stage"])


def layout_of(options: dict, dtype: str) -> Layout:
    return Layout(
        DTYPES[dtype], options.get("sequence_parallel", False), options.get("virtual_pipeline_size", 1), recompute=options.get("recompute", "none")
    )


# ---------------------------------------------------------------- tensors


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Of the memory behind them, once where several share it."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def held_bytes(grid: Grid, options: dict, dtype: str, lora: LoraConfig | None) -> dict[str, int]:
    """What a step of the real engine holds on this rank."""
    engine, found = engine_of(SMALL, grid, options, dtype, lora), {}
    sum_shared = engine._sum_shared_gradients

    def spy() -> None:  # after the last microbatch, before anything is reduced
        found["gradients"] = storage_bytes(p.grad for p, _ in engine.entries if p.grad is not None)
        sum_shared()

    engine._sum_shared_gradients = spy
    accumulate(engine, tiny_batches(1)[0])
    engine.step(OPTIMIZER.lr)
    zero = engine.deepspeed.optimizer
    found["weights"] = storage_bytes(getattr(p, "ds_tensor", p.data) for p, _ in engine.entries)
    masters = zero.fp32_partitioned_groups_flat if options["zero_stage"] == 3 else zero.single_partition_of_fp32_groups
    found["optimizer"] = storage_bytes([*masters, *_moments(zero.optimizer)])
    engine.close()
    return found


def _moments(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for state in optimizer.state.values():
        yield from (state["exp_avg"], state["exp_avg_sq"])


LORA = LoraConfig(rank=3, targets=("qkv", "fc2"))


@pytest.mark.parametrize(("name", "lora"), [*((name, None) for name in LAYOUTS), *((name, LORA) for name in LAYOUTS)])
def test_plan_tensor_bytes_are_exactly_those_of_the_engine(name, lora):
    grid, options, dtype = LAYOUTS[name]
    job = job_of(SMALL, grid, options, dtype, rows=2, lora=lora)
    for rank, measured in enumerate(run_ranks(grid.size, held_bytes, grid, options, dtype, lora)):
        stage = grid.coordinates(rank).pp
        planned = resident(job, stage) + training_phases(job, stage)["forward and backward"]
        assert {part: getattr(planned, part) for part in measured} == measured


def saved_checkpoint_bytes(folder: Path, dtype: str) -> int:
    """Of all tensors in the files of a checkpoint after one step."""
    engine = engine_of(SMALL, Grid(), {"zero_stage": 1}, dtype)
    accumulate(engine, tiny_batches(1)[0])
    engine.step(OPTIMIZER.lr)
    weights = ((name, tensor.to(DTYPES[dtype])) for name, tensor in engine.canonical_parameters())
    path = save_tensors(folder, 1, weights, engine.groups, SMALL, optimizer=optimizer_tensors(engine))
    engine.close()
    return sum(_tensor_bytes(file) for file in path.glob("*.safetensors"))


def _tensor_bytes(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())


@pytest.mark.parametrize("dtype", DTYPES)
def test_plan_checkpoint_bytes_are_those_of_a_saved_checkpoint(dtype, tmp_path):
    assert run_ranks(1, saved_checkpoint_bytes, tmp_path, dtype) == [checkpoint_bytes(num_parameters(ModelShape(SMALL)), dtype, "adamw")]


# ---------------------------------------------------------------- activations


def saved_bytes(config: ModelConfig, grid: Grid, options: dict, dtype: str) -> int:
    """What autograd keeps of one forward pass, weights apart."""
    model, saved = model_of(config, grid, options, dtype), []
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), schedule_scope():
        loss_of(model, config)
    return storage_bytes(t for t in saved if t.untyped_storage().data_ptr() not in weights)


def kept_bytes(config: ModelConfig, grid: Grid, options: dict, dtype: str) -> int:
    """What is left in memory of one forward pass while its loss is there; sees a recomputed layer's input, which autograd does not keep
    itself, but not what gloo's threads release, so only for one rank."""
    model = model_of(config, grid, options, dtype)
    with profile(profile_memory=True) as record, schedule_scope():
        loss = loss_of(model, config)
    assert loss.requires_grad, "else there would be nothing to keep"
    return sum(allocations(record))


def allocations(record: profile) -> Iterator[int]:
    """Bytes of each allocation, and minus those of each release, in order."""
    events = (event for event in record.profiler.kineto_results.events() if event.name() == "[memory]")
    yield from (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))


def model_of(config: ModelConfig, grid: Grid, options: dict, dtype: str) -> GPT:
    (model,) = sharded_chunks(config, plain_init(config, seed=1), grid, layout_of(options, dtype))
    return model.train(config.dropout > 0)


def loss_of(model: GPT, config: ModelConfig) -> Tensor:
    tokens = torch.randint(config.vocab_size, (2, config.max_sequence_length))
    logits = model(tokens, dropout_key=(1, 1) if config.dropout else None, row_ids=range(2) if config.dropout else ())
    return token_nll(model, logits, tokens, torch.ones(tokens.shape))


SEQUENCE, FULL = {"sequence_parallel": True}, {"recompute": "full"}
PASSES = {
    "gpt": ("gpt", 0.0, Grid(), {}, "fp32"), "gpt-bf16": ("gpt", 0.0, Grid(), {}, "bf16"), "llama": ("llama", 0.0, Grid(), {}, "fp32"),
    "llama-bf16": ("llama", 0.0, Grid(), {}, "bf16"), "gpt-selective": ("gpt", 0.0, Grid(), {"recompute": "selective"}, "bf16"),
    "gpt-dropout": ("gpt", 0.1, Grid(), {}, "fp32"), "llama-dropout": ("llama", 0.1, Grid(), {}, "fp32"),
    "gpt-dropout-selective": ("gpt", 0.1, Grid(), {"recompute": "selective"}, "fp32"),
    "gpt-full": ("gpt", 0.0, Grid(), FULL, "bf16"), "llama-full": ("llama", 0.0, Grid(), FULL, "fp32"),
    "gpt-full-dropout": ("gpt", 0.1, Grid(), FULL, "fp32"),
    "gpt-tp2": ("gpt", 0.0, Grid(tp=2), {}, "bf16"), "gpt-tp2-sequence": ("gpt", 0.0, Grid(tp=2), SEQUENCE, "bf16"),
    "llama-tp2-sequence": ("llama", 0.0, Grid(tp=2), SEQUENCE, "bf16"), "gpt-tp2-sequence-dropout": ("gpt", 0.1, Grid(tp=2), SEQUENCE, "fp32"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_plan_activations_are_those_that_autograd_keeps(name):
    family, dropout, grid, options, dtype = PASSES[name]
    sizes = [tiny_model(family, True, hidden_size=64, num_layers=layers, max_sequence_length=128, dropout=dropout) for layers in (1, 3)]
    measure = kept_bytes if options == FULL else saved_bytes
    one, three = (run_ranks(grid.size, measure, config, grid, options, dtype)[0] for config in sizes)
    job = job_of(sizes[0], grid, options, dtype, rows=2)
    assert layer_bytes(job) == pytest.approx((three - one) / 2, rel=0.002)
    logits = 2 * 128 * job.shape.padded_vocab_size(grid.tp) // grid.tp * job.num_bytes  # their gradient comes later
    embedding = 2 * 128 * 64 * job.num_bytes // job.sequence_shards if dropout else 0  # its mask
    table = 4 * 128 * job.shape.head_size if family == "llama" else 0  # cosines and sines of all positions, kept for good
    assert head_bytes(job) - logits + embedding + table == pytest.approx(one - (three - one) / 2, rel=0.05)


def loss_peak_bytes(dtype: str, implementation: str, rows: int, columns: int) -> int:
    """Most memory that logits [rows, columns] and everything made of them take until their gradient is there."""
    source = torch.randn(rows, columns, dtype=DTYPES[dtype], requires_grad=True)
    with profile(profile_memory=True) as record:
        token_logprob(source * 1, torch.zeros(rows, dtype=torch.int64), implementation=implementation).sum().backward()
    return max(itertools.accumulate(allocations(record)))


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_plan_logits_peak_is_that_of_the_loss(dtype, implementation):
    config = tiny_model("gpt", True, hidden_size=4, num_attention_heads=1, max_sequence_length=64, vocab_size=16384)
    job = replace(job_of(config, Grid(), {}, dtype, rows=1), fused=implementation == "fused")
    assert head_bytes(job) == pytest.approx(loss_peak_bytes(dtype, implementation, 64, 16384), rel=0.01)


# ---------------------------------------------------------------- the whole process


M_MMAP_MAX = -4


def process_peak(grid: Grid, options: dict, dtype: str) -> int:
    """Most resident bytes of this process, from its start to its second step, where freed tensors go back to the kernel at once."""
    ctypes.CDLL(None).mallopt(M_MMAP_MAX, 65536)  # the default, which `runtime/distributed.py` lowers to 0
    chunks = new_chunks(LARGE, build_groups(grid), torch.device("cpu"), layout_of(options, dtype), seed=1)
    engine = Engine(chunks, OPTIMIZER, options["zero_stage"])
    for batch in tiny_batches(2, rows=16, seq=LARGE.max_sequence_length, vocab=LARGE.vocab_size):
        accumulate(engine, batch)
        engine.step(OPTIMIZER.lr)
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_plan_process_peak(name, monkeypatch):
    """Tensors are given back to the kernel as they are freed. By itself glibc keeps blocks of up to 32 MB, in pieces: up to 37 % more."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    grid, options, dtype = LAYOUTS[name]
    job = job_of(LARGE, grid, options, dtype, rows=16 // (4 * grid.dp))
    for rank, peak in enumerate(run_ranks_fresh(grid.size, process_peak, grid, options, dtype, timeout=120)):
        stage = grid.coordinates(rank).pp
        planned = max((resident(job, stage) + extra).total for extra in training_phases(job, stage).values())
        print(f"{name} rank {rank}: peak {peak / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB, {planned / peak - 1:+.1%}")
        assert planned == pytest.approx(peak, rel=0.10)
