"""Speed and memory of the fused CPU kernels, side by side with eager PyTorch and torch.compile.

    python tests/bench/kernels.py [--rounds 9] [--only log_prob gae …]      (inside .venv; about a minute)

For float32 and bfloat16, with 1 and 2 threads: milliseconds of forward, and of forward and backward, medians over rounds in which all contenders
run one after the other. The last line is one JSON object: how many times as fast as eager each op is, forward and backward, in float32 with 2
threads (for adamw: as torch's own fused one, on large tensors; for gae: as a Python loop), and the share of eager's extra memory that log_prob
takes. csrc/README.md holds the figures of a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from megagpt.kernels import reference
from megagpt.kernels.adamw import FusedAdamW
from megagpt.kernels.bias_gelu import bias_gelu
from megagpt.kernels.gae import gae
from megagpt.kernels.masked_softmax import masked_softmax
from megagpt.kernels.norm import rms_norm
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
    logits, ids = (torch.randn(512, 32_000) * 3).to(dtype), torch.randint(32_000, (512,))

    def eager(x: Tensor, ids: Tensor) -> Tensor:
        return x.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def fused(x: Tensor, ids: Tensor) -> Tensor:
        return token_logprob(x, ids, implementation="fused")

    return {name: differentiated(f, logits, ids) for name, f in contenders(eager, fused).items()}


def rms_norm_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    x, weight = torch.randn(2048, 1024).to(dtype), torch.ones(1024, dtype=dtype)

    def eager(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (1024,), weight, 1e-5)

    def fused(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, implementation="fused")

    return {name: differentiated(f, x, weight) for name, f in contenders(eager, fused).items()}


def masked_softmax_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    scores, hidden = torch.randn(8, 8, 256, 256).to(dtype), torch.ones(256, 256, dtype=torch.bool).triu(1)

    def eager(x: Tensor) -> Tensor:
        return (x * 0.125).masked_fill(hidden, float("-inf")).softmax(-1)

    def fused(x: Tensor) -> Tensor:
        return masked_softmax(x, scale=0.125, causal=True, implementation="fused")

    return {name: differentiated(f, scores) for name, f in contenders(eager, fused).items()}


def bias_gelu_op(dtype: torch.dtype) -> dict[str, tuple[Work, Work]]:
    x, bias = torch.randn(2048, 4096).to(dtype), torch.randn(4096).to(dtype)

    def eager(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias, approximate="tanh")

    def fused(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu(x, bias, approximate="tanh", implementation="fused")

    return {name: differentiated(f, x, bias) for name, f in contenders(eager, fused).items()}


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
    rewards, values, mask = torch.randn(64, 1024), torch.randn(64, 1024), torch.ones(64, 1024)

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
    "adamw": lambda _: adamw_of(8, 2**20),
    "adamw_small": lambda _: adamw_of(200, 4096),
    "gae": gae_op,
}
FLOAT32_ONLY = ("adamw", "adamw_small", "gae")
BASE = {"adamw": "torch fused", "adamw_small": "torch fused"}
"""What the JSON's ratio is against, where that is not eager."""
COMPILE = True


# ---------------------------------------------------------------- measuring


def milliseconds(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Medians over rounds; the contenders of a round meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 2):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if number >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) * 1e3 for name, values in seconds.items()}


def extra_bytes(work: Work) -> int:
    """Most memory held at once beyond what was there before."""
    with profile(profile_memory=True) as record:
        kept = work()
    events = sorted((event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    del kept
    return max(itertools.accumulate(event.nbytes() for event in events))


def main() -> None:
    global COMPILE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=OPS, default=list(OPS), help="leave the others out")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, whose first calls take a minute")
    options = parser.parse_args()
    COMPILE = not options.no_compile
    ratios: dict[str, float] = {}
    print(f"{'op':<16}{'type':<10}{'threads':<9}{'contender':<13}{'forward':>10}{'+ backward':>12}{'as fast as eager':>18}")
    for name in options.only:
        for dtype, threads in itertools.product((torch.float32, torch.bfloat16), (1, 2)):
            if dtype != torch.float32 and name in FLOAT32_ONLY:
                continue
            torch.manual_seed(0)
            torch.set_num_threads(threads)
            works = OPS[name](dtype)
            forward = milliseconds({who: pair[0] for who, pair in works.items()}, options.rounds)
            both = milliseconds({who: pair[1] for who, pair in works.items()}, options.rounds)
            for who in works:
                ratio = f"{both['eager'] / both[who]:.2f}"
                print(f"{name:<16}{str(dtype)[6:]:<10}{threads:<9}{who:<13}{forward[who]:>7.2f} ms{both[who]:>9.2f} ms{ratio:>18}", flush=True)
            if dtype == torch.float32 and threads == 2:
                ratios[name] = round(both[BASE.get(name, "eager")] / both["fused"], 2)
                if name == "log_prob":
                    ratios["log_prob_memory"] = round(extra_bytes(works["fused"][1]) / extra_bytes(works["eager"][1]), 3)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
