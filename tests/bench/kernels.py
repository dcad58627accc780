"""Speed and memory of the fused kernels, side by side with eager PyTorch and torch.compile.

    python tests/bench/kernels.py [--rounds 9] [--only log_prob gae …]      (inside .venv; about a minute)
    python tests/bench/kernels.py --device cuda                             on a GPU: every op, on tensors that its caches cannot hold

For float32 and bfloat16, with 1 and 2 threads on a CPU: milliseconds of forward, and of forward and backward, medians over rounds in which all
contenders run one after the other. The last line is one JSON object: how many times as fast as eager each op is, forward and backward, in float32
with 2 threads (for adamw: as torch's own fused one, on large tensors; for gae: as a Python loop), and the share of eager's extra memory that
log_prob takes. On a GPU a round is RUNS calls in a row, the ratios are those of bfloat16 where an op has it, and the fused kernels' bytes a second are
printed: the fewest bytes that the op can move, over its time. csrc/README.md holds the figures of quiet machines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from megagpt.kernels import reference
from megagpt.kernels.adamw import FusedAdamW
from megagpt.kernels.bias_dropout_add import bias_dropout_add
from megagpt.kernels.bias_gelu import bias_gelu
from megagpt.kernels.bias_swiglu import bias_swiglu
from megagpt.kernels.gae import gae
from megagpt.kernels.masked_softmax import masked_softmax
from megagpt.kernels.norm import layer_norm, rms_norm
from megagpt.kernels.ppo_loss import ppo_policy_loss
from megagpt.kernels.rotary import rotary, rotary_table
from megagpt.kernels.sample import sample
from megagpt.kernels.token_logprob import token_logprob

Work = Callable[[], object]


def differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Work, Work]:
    """(forward alone, forward and backward) of a function of tensors; the gradient of the output is all ones."""
    leaves = [tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    ones = torch.ones_like(function(*leaves))

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*leaves)

    return forward, lambda: torch.autograd.grad(function(*leaves), wanted, ones)


# ---------------------------------------------------------------- each op: contender -> (forward, forward and backward)


def log_prob(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    rows = sized(512, 8192)
    logits, ids = (torch.randn(rows, 32_000) * 3).to(dtype), torch.randint(32_000, (rows,))

    def eager(x: Tensor, ids: Tensor) -> Tensor:
        return x.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def fused(x: Tensor, ids: Tensor) -> Tensor:
        return token_logprob(x, ids, implementation="fused")

    return {name: differentiated(f, logits, ids) for name, f in contenders(eager, fused).items()}


def rms_norm_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    rows, width = sized((2048, 1024), (32_768, 4096))
    x, weight = torch.randn(rows, width).to(dtype), torch.ones(width, dtype=dtype)

    def eager(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (width,), weight, 1e-5)

    def fused(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, implementation="fused")

    return {name: differentiated(f, x, weight) for name, f in contenders(eager, fused).items()}


def layer_norm_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    """With the residual addition before it."""
    rows, width = sized((2048, 1024), (32_768, 4096))
    x, residual = torch.randn(2, rows, width).to(dtype).unbind()
    weight, bias = torch.ones(width, dtype=dtype), torch.zeros(width, dtype=dtype)

    def eager(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + residual, (width,), weight, bias)

    def fused(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm(x, weight, bias, residual=residual, implementation="fused")[0]

    return {name: differentiated(f, x, residual, weight, bias) for name, f in contenders(eager, fused).items()}


def masked_softmax_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    batch, length = sized((8, 256), (16, 1024))
    scores, hidden = torch.randn(batch, 8, length, length).to(dtype), torch.ones(length, length, dtype=torch.bool).triu(1)

    def eager(x: Tensor) -> Tensor:
        return (x * 0.125).masked_fill(hidden, float("-inf")).softmax(-1)

    def fused(x: Tensor) -> Tensor:
        return masked_softmax(x, scale=0.125, causal=True, implementation="fused")

    return {name: differentiated(f, scores) for name, f in contenders(eager, fused).items()}


def bias_gelu_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    rows, width = sized((2048, 4096), (16_384, 8192))
    x, bias = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)

    def eager(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias, approximate="tanh")

    def fused(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu(x, bias, approximate="tanh", implementation="fused")

    return {name: differentiated(f, x, bias) for name, f in contenders(eager, fused).items()}


def bias_swiglu_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    rows, width = sized((2048, 4096), (16_384, 8192))
    x = torch.randn(rows, 2 * width).to(dtype)

    def eager(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    def fused(x: Tensor) -> Tensor:
        return bias_swiglu(x, implementation="fused")

    return {name: differentiated(f, x) for name, f in contenders(eager, fused).items()}


def bias_dropout_add_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    """Eager PyTorch draws from a stream of its own."""
    positions, width = sized((512, 1024), (8192, 4096))
    (x, residual), bias, rows = torch.randn(2, positions, 4, width).to(dtype).unbind(), torch.randn(width).to(dtype), torch.arange(4)

    def eager(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        return residual + F.dropout(x + bias, 0.1)

    def fused(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        return bias_dropout_add(x, bias, residual, 0.1, 1, rows, implementation="fused")

    return {name: differentiated(f, x, residual, bias) for name, f in contenders(eager, fused).items()}


def rotary_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    length, heads = sized((512, 8), (4096, 32))
    x, positions, table = torch.randn(length, 8, heads, 128).to(dtype), torch.arange(length)[:, None].expand(-1, 8), rotary_table(length, 128)

    def eager(x: Tensor) -> Tensor:
        return reference.rotary(x, positions, *table, False)

    def fused(x: Tensor) -> Tensor:
        return rotary(x, positions, table, implementation="fused")

    return {name: differentiated(f, x) for name, f in contenders(eager, fused).items()}


def ppo_loss_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    shape = sized((64, 1024), (16_384, 4096))
    new, old, advantages, mask = torch.randn(shape), torch.randn(shape), torch.randn(shape), torch.ones(shape)

    def eager(new: Tensor) -> Tensor:
        return reference.ppo_policy_loss(new, old, advantages, mask, 0.2)[0]

    def fused(new: Tensor) -> Tensor:
        return ppo_policy_loss(new, old, advantages, mask, 0.2, implementation="fused")[0]

    return {name: differentiated(f, new) for name, f in contenders(eager, fused).items()}


def sample_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    """Eager PyTorch as it is mostly written: softmax in float32 and torch.multinomial."""
    logits = torch.randn(sized(64, 8192), 32_000).to(dtype)
    draws = torch.rand(logits.size(0), dtype=torch.float64)

    def eager(logits: Tensor) -> Tensor:
        return logits.float().softmax(-1).multinomial(1)

    def fused(logits: Tensor) -> Tensor:
        return sample(logits, draws, implementation="fused")[0]

    return {name: (partial(f, logits),) * 2 for name, f in contenders(eager, fused).items()}


def sized(on_cpu: Any, on_gpu: Any) -> Any:
    """Sizes for the device of this run."""
    return on_gpu if DEVICE == "cuda" else on_cpu


def contenders(eager: Callable[..., Tensor], fused: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    found = {"eager": eager, "fused": fused}
    return found | {"compile": torch.compile(eager)} if COMPILE else found


def adamw_of(count: int, size: int) -> dict[str, tuple[Work, Work]]:
    def optimizer(make: Callable[..., torch.optim.Optimizer], **settings) -> tuple[Work, Work]:
        weights = [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]
        for weight in weights:
            weight.grad = torch.randn(size)
        step = make(weights, lr=1e-4, weight_decay=0.1, **settings).step
        return step, step

    return {"eager": optimizer(torch.optim.AdamW, foreach=True), "torch fused": optimizer(torch.optim.AdamW, fused=True), "fused": optimizer(FusedAdamW)}


def gae_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    shape = sized((64, 1024), (16_384, 1024))
    rewards, values, mask = torch.randn(shape), torch.randn(shape), torch.ones(shape)

    def run(function: Callable[..., object], **options) -> tuple[Work, Work]:
        def work() -> object:
            return function(rewards, values, mask, gamma=1.0, gae_lambda=0.95, **options)

        return work, work

    return {"eager": run(reference.gae), "fused": run(gae, implementation="fused")}


OPS: dict[str, Callable[[torch.dtype], dict[str, tuple[Work, Work]]]] = {
    "log_prob": log_prob,
    "rms_norm": rms_norm_op,
    "masked_softmax": masked_softmax_op,
    "bias_gelu": bias_gelu_op,
    "adamw": lambda _: adamw_of(8, sized(2**20, 2**24)),
    "adamw_small": lambda _: adamw_of(200, 4096),
    "gae": gae_op,
    "layer_norm": layer_norm_op,
    "bias_swiglu": bias_swiglu_op,
    "bias_dropout_add": bias_dropout_add_op,
    "rotary": rotary_op,
    "ppo_loss": ppo_loss_op,
    "sample": sample_op,
}
FLOAT32_ONLY = ("adamw", "adamw_small", "gae", "ppo_loss")
ON_CPU = ("log_prob", "rms_norm", "masked_softmax", "bias_gelu", "adamw", "adamw_small", "gae")
"""What is asked about on a CPU."""
FEWEST_BYTES: dict[str, Callable[[int], float]] = {
    # Elements of the op's first tensor times their size -> bytes, forward and backward: every large tensor once each way.
    "log_prob": lambda size: 3 * size,  # x | x, its gradient
    "rms_norm": lambda size: 5 * size,  # x, y | x, two gradients
    "masked_softmax": lambda size: (0.5 + 1 + 0.5 + 0.5 + 1) * size,  # half of x, y | halves of y and of its gradient, x's gradient
    "bias_gelu": lambda size: 5 * size,
    "layer_norm": lambda size: 7 * size,  # x, residual, sum, y | sum, two gradients
    "bias_swiglu": lambda size: 4 * size,  # x, half of it | x, half of it, x's gradient
    "bias_dropout_add": lambda size: 5 * size,
    "rotary": lambda size: 4 * size,
    "adamw": lambda size: 7 * size,
    "adamw_small": lambda size: 7 * size,
    "gae": lambda size: 5 * size,
    "ppo_loss": lambda size: 7 * size,  # four inputs, the slope | the slope, the gradient
    "sample": lambda size: size,
}
BASE = {"adamw": "torch fused", "adamw_small": "torch fused"}
"""What the JSON's ratio is against, where that is not eager."""
COMPILE = True
DEVICE = "cpu"
RUNS = 20
"""Calls that are timed together on a GPU, so that it never waits for the next."""


# ---------------------------------------------------------------- measuring


def milliseconds(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Medians over rounds; the contenders of a round meet the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    time_one = milliseconds_on_gpu if DEVICE == "cuda" else milliseconds_on_cpu
    for number in range(rounds + 2):
        for name, work in works.items():
            found = time_one(work)
            if number >= 2:
                taken[name].append(found)
    return {name: statistics.median(values) for name, values in taken.items()}


def milliseconds_on_cpu(work: Work) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def milliseconds_on_gpu(work: Work) -> float:
    work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(RUNS):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / RUNS


def extra_bytes(work: Work) -> int:
    """Most memory held at once beyond what was there before."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as record:
        kept = work()
    events = sorted((event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    del kept
    return max(itertools.accumulate(event.nbytes() for event in events))


def copy_speed() -> float:
    """Bytes a second, read and written, of a copy that no cache can hold."""
    source = torch.empty(2**28)
    target = torch.empty_like(source)
    return 2 * source.nbytes / statistics.median(milliseconds_on_gpu(lambda: target.copy_(source)) for _ in range(5)) * 1e3


def bytes_of(name: str, dtype: torch.dtype) -> float:
    """FEWEST_BYTES of an op at the size that it has on a GPU."""
    elements = {
        "log_prob": 8192 * 32_000, "sample": 8192 * 32_000, "masked_softmax": 16 * 8 * 1024**2, "bias_swiglu": 2 * 16_384 * 8192,
        "adamw_small": 200 * 4096, "gae": 16_384 * 1024, "ppo_loss": 16_384 * 4096,
    }  # fmt: skip
    return FEWEST_BYTES[name](elements.get(name, 2**27) * dtype.itemsize)


def main() -> None:
    global COMPILE, DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=OPS, help="leave the others out")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, whose first calls take a minute")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    DEVICE = options.device
    if DEVICE == "cuda":
        torch.set_default_device("cuda")
        copied = copy_speed()
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: a copy moves {copied / 1e9:.0f} GB/s")
    ratios: dict[str, float] = {}
    print(f"{'op':<18}{'type':<10}{'threads':<9}{'contender':<13}{'forward':>10}{'+ backward':>12}{'as fast as eager':>18}")
    for name in options.only or (ON_CPU if DEVICE == "cpu" else OPS):
        for dtype, threads in itertools.product((torch.float32, torch.bfloat16), (1, 2) if DEVICE == "cpu" else (0,)):
            if dtype != torch.float32 and name in FLOAT32_ONLY:
                continue
            torch.manual_seed(0)
            # On a GPU in one type only: compiling an op takes longer there than timing it.
            COMPILE = not options.no_compile and (DEVICE == "cpu" or dtype != torch.float32 or name in FLOAT32_ONLY)
            if threads:
                torch.set_num_threads(threads)
            works = OPS[name](dtype)
            forward = milliseconds({who: pair[0] for who, pair in works.items()}, options.rounds)
            both = milliseconds({who: pair[1] for who, pair in works.items()}, options.rounds)
            for who in works:
                ratio = f"{both['eager'] / both[who]:.2f}"
                speed = ""
                if DEVICE == "cuda" and who == "fused":
                    achieved = bytes_of(name, dtype) / both[who] * 1e3
                    speed = f"  {achieved / 1e9:5.0f} GB/s, {achieved / copied:.0%} of the copy"
                times = f"{forward[who]:>8.3f} ms{both[who]:>9.3f} ms"
                print(f"{name:<18}{str(dtype)[6:]:<10}{threads or '-':<9}{who:<13}{times}{ratio:>17}{speed}", flush=True)
            if (dtype == torch.float32 and threads == 2) or DEVICE == "cuda":
                ratios[name] = round(both[BASE.get(name, "eager")] / both["fused"], 2)
                if name == "log_prob":
                    ratios["log_prob_memory"] = round(extra_bytes(works["fused"][1]) / extra_bytes(works["eager"][1]), 3)
            torch._dynamo.reset()
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
