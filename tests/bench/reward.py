"""Speed and accuracy of reward-model training, side by side: megagpt and TRL's RewardTrainer.

    python tests/bench/reward.py [--rounds 2] [--steps 60]      (inside .venv; about 3 minutes)

Same starting weights (4 layers x 256, vocabulary 8,192), pairs (a prompt of 32 tokens, answers of 16 to 64), batch (16 pairs), order, learning rate,
float32, 2 threads. Answers hold some share of 64 liked tokens, and the one with more of them is preferred, but not always: probability
sigmoid(4 x difference in units of a quarter). Accuracy is on 1,024 pairs that neither saw. Both run once in every round; the ratio is the median over
the rounds. The last line is one JSON object. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import ppo
from pretrain import PEERS, install_peers

PAIRS, HELD_OUT, LR, WARM_UP = 16, 1024, 3e-4, 2
MICRO = 8
"""Pairs in one forward pass of megagpt, which puts those of like length together; TRL's batch is one pass."""
LIKED = 64


def write_pairs(folder: Path, num_train: int) -> None:
    """[chosen, rejected] token ids, prompt included."""
    import torch

    generator = torch.Generator().manual_seed(2)

    def integers(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    def answer() -> tuple[list[int], float]:
        share = float(torch.rand((), generator=generator))
        liked = torch.rand(integers(16, 65, 1)[0], generator=generator) < share
        words = zip(liked.tolist(), integers(300, 300 + LIKED, len(liked)), integers(300 + LIKED, ppo.VOCABULARY - 300, len(liked)))
        return [good if like else other for like, good, other in words], float(liked.float().mean())

    pairs = []
    for _ in range(num_train + HELD_OUT):
        prompt = integers(300 + LIKED, ppo.VOCABULARY - 300, ppo.PROMPT)
        (first, a), (second, b) = answer(), answer()
        first_wins = float(torch.rand((), generator=generator)) < 1 / (1 + math.exp(-16 * (a - b)))
        pairs.append([prompt + first, prompt + second] if first_wins else [prompt + second, prompt + first])
    (folder / "pairs.json").write_text(json.dumps({"train": pairs[:num_train], "held_out": pairs[num_train:]}))


# ---------------------------------------------------------------- the contenders, each in a process of its own


def train_trl(folder: Path, pairs: dict[str, list]) -> tuple[list[float], float]:
    """Seconds of each step, and accuracy on held-out pairs."""
    import torch
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    model = GPT2ForSequenceClassification(ppo.gpt2_config(GPT2Config, num_labels=1))
    model.transformer.load_state_dict(GPT2LMHeadModel.from_pretrained(folder / "policy").transformer.state_dict())
    model.score.weight.data.copy_(load_file(folder / "head.safetensors")["weight"])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    class InOrder(RewardTrainer):
        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    arguments = RewardConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=PAIRS, per_device_eval_batch_size=PAIRS, num_train_epochs=1, learning_rate=LR,
        lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, max_length=None, save_strategy="no", report_to=[], logging_steps=10,
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_dropout=True, center_rewards_coefficient=None, seed=1, disable_tqdm=True,
    )
    train, held_out = (Dataset.from_dict({"chosen_input_ids": [a for a, _ in pairs[side]], "rejected_input_ids": [b for _, b in pairs[side]]}) for side in pairs)
    trainer = InOrder(
        model=model, args=arguments, processing_class=AutoTokenizer.from_pretrained(folder / "policy"), train_dataset=train, eval_dataset=held_out,
        callbacks=[Clock()],
    )
    began = time.perf_counter()
    trainer.train()
    found = trainer.evaluate()
    return [after - before for before, after in zip([began, *ends], ends)], found["eval_accuracy"]


def train_megagpt(folder: Path, pairs: dict[str, list]) -> tuple[list[float], float]:
    """Seconds of each step, and accuracy on held-out pairs."""
    import numpy as np

    from megagpt.checkpoint.layout import find_checkpoint
    from megagpt.checkpoint.load import Checkpoint, load_chunks
    from megagpt.config.schema import BatchConfig, RecordsConfig, RecordSource, RewardConfig, RewardOptimizerConfig, RunConfig
    from megagpt.data.batch import EncodedRow
    from megagpt.data.ranking import EncodedGroup
    from megagpt.data.ranking_batch import replica_batches
    from megagpt.data.records import Ranking
    from megagpt.engine.build import Engine
    from megagpt.model.layout import Layout
    from megagpt.parallel.grid import Grid
    from megagpt.parallel.groups import build_groups
    from megagpt.reward.evaluate import pair_accuracy
    from megagpt.reward.trainer import score_groups, train_step
    from megagpt.runtime.distributed import start
    from megagpt.runtime.run_folder import RunFolder

    config = RewardConfig(
        run=RunConfig(name="bench", root=str(folder), seed=1), parent=str(folder / "imported"), batch=BatchConfig(micro_batch_size=MICRO, global_batch_size=PAIRS),
        optimizer=RewardOptimizerConfig(lr=LR, schedule="constant", warmup_ratio=0.0), data=RecordsConfig(train=[RecordSource(path="pairs")], max_length=96),
    )  # fmt: skip
    world = start("cpu")
    groups, layout = build_groups(Grid(), config.run.timeout_seconds), Layout.of(config.parallel, config.precision)
    parent = Checkpoint.open(find_checkpoint(config.parent, RunFolder(config.run)))
    engine = Engine.of_stage(load_chunks(parent, groups, world.device, layout, scalar_head=True, seed=1), config)

    def encoded(pair: list[list[int]]) -> EncodedGroup:
        rows = tuple(EncodedRow(np.array(tokens, dtype=np.int32), np.ones(len(tokens), dtype=bool)) for tokens in pair)
        return EncodedGroup(rows, ((0, 1),), Ranking((), ("chosen", "rejected"), (0, 1)))

    train, held_out = ([encoded(pair) for pair in pairs[side]] for side in pairs)
    seconds = []
    for first in range(0, len(train), PAIRS):
        began = time.perf_counter()
        members = train[first : first + PAIRS]
        train_step(engine, replica_batches(members, groups, MICRO, 0, world.device), members, LR, None)
        seconds.append(time.perf_counter() - began)
    return seconds, pair_accuracy(held_out, score_groups(engine, held_out, PAIRS, 0, world.device))


def work(options: argparse.Namespace) -> None:
    """One contender: prints its seconds a step, its accuracy, and the largest memory of its process."""
    import torch

    torch.set_num_threads(2)
    pairs = json.loads((options.folder / "pairs.json").read_text())
    seconds, accuracy = {"trl": train_trl, "megagpt": train_megagpt}[options.worker](options.folder, pairs)
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("RESULT " + json.dumps({"seconds": statistics.median(seconds[WARM_UP:]), "accuracy": accuracy, "peak_bytes": peak}), flush=True)


# ---------------------------------------------------------------- the comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each contender in each round")
    parser.add_argument("--worker", choices=("trl", "megagpt"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    install_peers("trl==", "datasets==", "accelerate==")
    with tempfile.TemporaryDirectory() as name:
        folder, this = Path(name), str(Path(__file__))
        ppo.run(PEERS / "bin/python", str(Path(ppo.__file__)), "--worker", "prepare", "--folder", name)
        ppo.run(sys.executable, "-m", "megagpt", "convert", "import", f"{name}/policy", f"{name}/imported")
        ppo.write_head(folder)
        write_pairs(folder, (WARM_UP + options.steps) * PAIRS)
        found: dict[str, list[dict[str, float]]] = {"trl": [], "megagpt": []}
        for number in range(1, options.rounds + 1):
            for contender, python in (("trl", PEERS / "bin/python"), ("megagpt", sys.executable)):
                out = ppo.run(python, this, "--worker", contender, "--folder", name)
                result = json.loads(next(line for line in out.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
                found[contender].append(result)
                spread = 1.96 * math.sqrt(result["accuracy"] * (1 - result["accuracy"]) / HELD_OUT)
                print(
                    f"round {number}/{options.rounds}  {contender:<8} {result['seconds']:6.3f} s a step  {result['peak_bytes'] / 2**20:6.0f} MiB"
                    f"  accuracy {result['accuracy']:.3f} +- {spread:.3f}", flush=True,
                )  # fmt: skip
    pairs = list(zip(found["trl"], found["megagpt"], strict=True))
    print(json.dumps({
        "steps_per_s_ratio": round(statistics.median(trl["seconds"] / ours["seconds"] for trl, ours in pairs), 2),
        "peak_memory_ratio": round(statistics.median(ours["peak_bytes"] / trl["peak_bytes"] for trl, ours in pairs), 3),
        "accuracy_difference": round(statistics.median(ours["accuracy"] - trl["accuracy"] for trl, ours in pairs), 4),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
