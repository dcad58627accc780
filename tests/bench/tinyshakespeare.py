"""Time of a step at a size where everything but arithmetic dominates: megagpt's training step against a plain PyTorch loop.

    python tests/bench/tinyshakespeare.py [--rounds 5] [--steps 200] [--profile]      (inside .venv; about 2 minutes)

nanoGPT's CPU recipe for character-level tinyshakespeare (4 layers, width 128, context 64, batch 12, float32, 2 threads), on random
ids. Both train the same model in the same process, in turn; the ratio is the median over the rounds. `--profile` shows where
megagpt's step spends its time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, WIDTH, HEADS, LENGTH, ROWS, VOCABULARY, LR = 4, 128, 4, 64, 12, 72, 1e-3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, s, _ = x.shape
        q, k, v = (part.view(b, s, HEADS, -1).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Plain(nn.Module):
    """The model, as one writes it in an afternoon."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        return self.norm(self.blocks(x)) @ self.tokens.weight.T


def plain_stepper():
    """ids [ROWS, LENGTH + 1] -> one update."""
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.1)

    def step(ids):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step, sum(parameter.numel() for parameter in model.parameters())


def megagpt_stepper():
    """The same, as the pre-training stage does it."""
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

    world = start("cpu")
    config = ModelConfig(num_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, max_sequence_length=LENGTH, vocab_size=VOCABULARY)
    chunks = new_chunks(config, build_groups(Grid()), world.device, Layout(), seed=0)
    engine = Engine(chunks, OptimizerConfig(lr=LR, betas=(0.9, 0.99)), useful_zero_stage(1, Grid()))

    def step(ids):
        rows = [encoded_row(row.numpy()) for row in ids]
        return train_step(engine, replica_batches(rows, engine, ROWS, 0, world.device), count_targets(rows), LR, None)["loss"]

    return step, num_parameters(ModelShape(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="of each contender in each round")
    parser.add_argument("--profile", action="store_true", help="print where a step of megagpt spends its time")
    options = parser.parse_args()
    steppers = {}
    for name, make in (("megagpt", megagpt_stepper), ("plain", plain_stepper)):
        steppers[name], numbers = make()
        print(f"{name}: {numbers:,} parameters")
    torch.set_num_threads(2)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=generator) for _ in range(options.steps)]
    ratios = []
    for number in range(options.rounds + 1):  # the first round warms up
        seconds = {}
        for name, step in steppers.items():
            began = time.perf_counter()
            for ids in batches:
                step(ids)
            seconds[name] = (time.perf_counter() - began) / options.steps
        if number:
            ratios.append(seconds["megagpt"] / seconds["plain"])
            print(f"round {number}: " + ", ".join(f"{name} {1000 * value:.1f} ms a step" for name, value in seconds.items()) + f", ratio {ratios[-1]:.2f}")
    if options.profile:
        with cProfile.Profile() as profile:
            for ids in batches:
                steppers["megagpt"](ids)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    print(json.dumps({"time_ratio": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()
