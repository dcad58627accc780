"""Speed and memory of pre-training, side by side: megagpt, Hugging Face's GPT-2 in a plain loop, and megagpt on two ranks.

    python tests/bench/pretrain.py [--rounds 3] [--steps 8]      (inside .venv; about 15 minutes)

Same model (14 M parameters), tokens, precision (float32), optimizer and number of threads. All contenders run once in every
round, one after the other, and the printed ratios are medians over the rounds: a machine that is slow for a while slows
them all. Hugging Face gets an environment of its own, `.venv-bench`. The last line is one JSON object. README.md says what
the figures mean and what is left on the table.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-bench"
LAYERS, WIDTH, HEADS, VOCABULARY, LENGTH, ROWS = 6, 384, 6, 8192, 256, 8
NUM_PARAMETERS = 13_891_584
FLOPS_PER_TOKEN = 6 * (12 * LAYERS * WIDTH**2 + VOCABULARY * WIDTH) + 12 * LAYERS * WIDTH * LENGTH
"""Matrix products of forward and backward, the head's among them (Chowdhery et al. 2022, appendix B): 90 MFLOP."""
WARM_UP = 2
CONTENDERS = {
    # name: (interpreter, ranks, threads of each, options of the worker)
    "huggingface": (PEERS / "bin/python", 1, 2, []),
    "megagpt": (Path(sys.executable), 1, 2, []),
    # Replicas of 55 MB have nothing to gain from ZeRO 1, which would send the weights around as well.
    "dp2": (Path(sys.executable), 2, 1, ["--data-parallel", "2", "--zero-stage", "0"]),
    # Two blocks a rank halve the idle time; the head costs as much as 1.3 to 1.8 layers, so it is a block of its own.
    "pp2": (Path(sys.executable), 2, 1, ["--pipeline-parallel", "2", "--micro-batch-size", "2", "--stage-layers", "2", "2", "2", "0"]),
    "tp2": (Path(sys.executable), 2, 1, ["--tensor-parallel", "2"]),
}


# ---------------------------------------------------------------- the contenders, each in processes of its own


def batches(steps: int):
    """[ROWS, LENGTH + 1] random ids for each step: the same for everyone."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator) for _ in range(steps)]


def train_huggingface(steps: int, _: argparse.Namespace) -> list[float]:
    """The loop that everybody writes."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config).train()
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS
    optimizer, seconds = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1), []
    for ids in batches(steps):
        began = time.perf_counter()
        logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return seconds


def train_megagpt(steps: int, options: argparse.Namespace) -> list[float]:
    """What the pre-training stage does in a step."""
    import torch

    from megagpt.checkpoint.load import new_chunks
    from megagpt.config.schema import ModelConfig, OptimizerConfig
    from megagpt.data.batch import encoded_row
    from megagpt.engine.build import Engine
    from megagpt.engine.sharding import useful_zero_stage
    from megagpt.engine.token_steps import count_targets, replica_batches, train_step
    from megagpt.model.layout import Layout
    from megagpt.model.param_map import num_parameters
    from megagpt.model.shape import ModelShape
    from megagpt.parallel.grid import Grid
    from megagpt.parallel.groups import build_groups
    from megagpt.runtime.distributed import start

    config = ModelConfig(num_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, max_sequence_length=LENGTH, vocab_size=VOCABULARY)
    assert num_parameters(ModelShape(config)) == NUM_PARAMETERS
    world = start("cpu")
    torch.set_num_threads(options.threads)
    grid = Grid(tp=options.tensor_parallel, dp=options.data_parallel, pp=options.pipeline_parallel)
    layers = options.stage_layers
    layout = Layout(stage_layers=tuple(layers), num_chunks=len(layers) // grid.pp) if layers else Layout()
    chunks = new_chunks(config, build_groups(grid), world.device, layout, seed=0)
    engine = Engine(chunks, OptimizerConfig(lr=1e-4), useful_zero_stage(options.zero_stage, grid))
    micro, seconds = options.micro_batch_size or ROWS // grid.dp, []
    for ids in batches(steps):
        began = time.perf_counter()
        rows = [encoded_row(row.numpy()) for row in ids]
        train_step(engine, replica_batches(rows, engine, micro, 0, world.device), count_targets(rows), 1e-4, None)
        seconds.append(time.perf_counter() - began)
    return seconds


def work(options: argparse.Namespace) -> None:
    """One contender: prints its seconds a step and the largest memory of this process."""
    import torch

    torch.set_num_threads(options.threads)
    seconds = (train_huggingface if options.worker == "huggingface" else train_megagpt)(WARM_UP + options.steps, options)
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    if os.environ.get("RANK", "0") == "0":
        print("RESULT " + json.dumps({"seconds": statistics.median(seconds[WARM_UP:]), "peak_bytes": peak}), flush=True)


# ---------------------------------------------------------------- the comparison


def ceiling(threads: int = 2) -> float:
    """Tokens/s if all arithmetic ran at the speed of one matrix product of the model's MLP on this machine, now."""
    import torch

    torch.set_num_threads(threads)
    a, b, seconds = torch.randn(ROWS * LENGTH, WIDTH), torch.randn(WIDTH, 4 * WIDTH), []
    out = torch.empty(ROWS * LENGTH, 4 * WIDTH)
    for _ in range(30):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    return 2 * ROWS * LENGTH * WIDTH * 4 * WIDTH / statistics.median(seconds) / FLOPS_PER_TOKEN


def install_peers(*more: str) -> None:
    """The peers' environment, with the versions that setup.py pins; `more` names packages as `trl==`."""
    missing = [name for name in more if not list(PEERS.glob(f"lib/*/site-packages/{name.rstrip('=').replace('-', '_')}-*"))]
    if (PEERS / "bin/python").exists() and not missing:
        return
    pins = subprocess.run([sys.executable, ROOT / "setup.py", "pins", "build", "run", "test", "peers"], capture_output=True, text=True, check=True)
    pins = pins.stdout.split()
    if not (PEERS / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    wanted = [pin for pin in pins if pin.startswith(("torch==", "numpy==", "transformers==", *more))]
    print(f"installing {' '.join(wanted)} into {PEERS.name} ...", file=sys.stderr, flush=True)
    subprocess.run([PEERS / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(name: str, steps: int) -> dict[str, float]:
    """One contender, once."""
    python, ranks, threads, options = CONTENDERS[name]
    words = [str(Path(__file__)), "--worker", name, "--steps", str(steps), "--threads", str(threads), *options]
    command = [str(python), *words]
    if ranks > 1:
        world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()
        launcher = ["deepspeed.launcher.launch", "--world_info", world, "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--no_local_rank"]
        command = [str(python), "-m", *launcher, "--log_level", "error", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    found = [line for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    if result.returncode != 0 or not found:
        raise SystemExit(f"{name} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return json.loads(found[0].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each contender in each round")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="leave the others out")
    for name in ("tensor", "data", "pipeline"):
        parser.add_argument(f"--{name}-parallel", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--zero-stage", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--micro-batch-size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stage-layers", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    if "huggingface" in options.only:
        install_peers()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
    limit = ceiling()
    print(f"ceiling: {limit:.0f} tokens/s (every FLOP at the speed of a matrix product)")
    for number in range(1, options.rounds + 1):
        for name in options.only:
            found[name].append(run(name, options.steps))
            speed, peak = ROWS * LENGTH / found[name][-1]["seconds"], found[name][-1]["peak_bytes"]
            print(f"round {number}/{options.rounds}  {name:<12} {speed:7.0f} tokens/s  {speed / limit:4.0%} of the ceiling  {peak / 2**20:6.0f} MiB", flush=True)

    def ratio(key: str, above: str, below: str) -> float | None:
        if above not in found or below not in found:
            return None
        return round(statistics.median(a[key] / b[key] for a, b in zip(found[above], found[below], strict=True)), 3)

    figures = {"tokens_per_s_ratio": ratio("seconds", "huggingface", "megagpt"), "peak_memory_ratio": ratio("peak_bytes", "megagpt", "huggingface")}
    figures |= {name: ratio("seconds", "megagpt", name) for name in ("dp2", "pp2", "tp2")}
    for name, value in figures.items():
        print(f"{name:<20} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
