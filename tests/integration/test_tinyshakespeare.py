"""A published result: nanoGPT's CPU recipe on character-level tinyshakespeare reached a validation loss of 1.92 in 2,000 iterations."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from statistics import mean

import pytest
import yaml
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import decoders, models

from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from megagpt.pipeline.launch import launch_command
from megagpt.tokenizer.tokenizer import load_tokenizer
from tests.helpers.tiny_run import ROOT, command, finished, megagpt, write_rows

TEXT = ROOT.parent / "shared/data/pretrain_books/tinyshakespeare.txt.gz"
BOUND = 1.94
"""The published 1.921 (another time, with a noisier estimate: 1.88), and 1 % for what differs by chance."""
# 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 iterations, no dropout; AdamW 1e-3 -> 1e-4 by a cosine after 100 iterations.
RECIPE = {
    "model": {"num_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "max_sequence_length": 64},
    "optimizer": {"lr": 1e-3, "min_lr_ratio": 0.1, "warmup_ratio": 0.05, "betas": [0.9, 0.99], "weight_decay": 0.1, "clip_grad": 1.0},
    "batch": {"micro_batch_size": 12, "global_batch_size": 12},
    "data": {"train": "tokens/train", "valid": "tokens/valid"},
    "sequence_length": 64,
    "train_tokens": 2000 * 12 * 64,
    "eval_rows": 0,
    "every": {"log": 500},
}
LAYOUTS = {
    "tp2": {"parallel": {"tensor_parallel_size": 2}},
    "pp2": {"parallel": {"pipeline_parallel_size": 2}, "batch": {"micro_batch_size": 3, "global_batch_size": 12}},
    "dp2": {"parallel": {"data_parallel_size": 2}, "batch": {"micro_batch_size": 6, "global_batch_size": 12}},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tokenizer of single characters, and the first 90 % of the text to train on, the rest to validate on."""
    if not TEXT.exists():
        pytest.skip(f"{TEXT} is missing")
    text, folder = gzip.decompress(TEXT.read_bytes()).decode("utf-8"), tmp_path_factory.mktemp("shakespeare").resolve()
    characters = sorted(set(text))
    tokenizer = HuggingFaceTokenizer(models.BPE({piece: number for number, piece in enumerate(["<|endoftext|>", *characters])}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    cut = int(0.9 * len(text))
    inputs = {name: [write_rows(folder / f"{name}.jsonl", [{"id": name, "text": part}])] for name, part in (("train", text[:cut]), ("valid", text[cut:]))}
    tokenize_documents(TokenizeConfig(run=RunConfig(name="text"), inputs=inputs), load_tokenizer(folder / "tokenizer.json"), folder / "tokens")
    return folder


def validation_loss(folder: Path, name: str, seed: int, changes: dict) -> float:
    run = {"name": name, "seed": seed, "device": "cpu"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"run": run, "tokenizer": str(folder / "tokenizer.json")} | RECIPE | changes))
    words = ["pretrain", "--config", f"{name}.yaml"]
    finished(command(*launch_command(words, 2, None), cwd=folder, timeout=900) if changes else megagpt(*words, cwd=folder, timeout=900))
    rows = [json.loads(line) for line in (folder / f"runs/{name}/pretrain/metrics.jsonl").read_text().splitlines()]
    seconds, loss = rows[-1]["seconds"], rows[-1]["eval_loss"]
    print(f"tinyshakespeare {name}: validation loss {loss:.4f}, training {mean(row['loss'] for row in rows[-101:-1]):.4f}, {seconds:.0f} s")
    return loss


def test_tinyshakespeare_reaches_the_published_loss_on_one_rank(folder):
    losses = [validation_loss(folder, f"seed{seed}", seed, {}) for seed in (1, 2, 3)]
    assert mean(losses) <= BOUND, losses


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tinyshakespeare_reaches_the_published_loss_on_two_ranks(layout, folder):
    assert validation_loss(folder, layout, 1, LAYOUTS[layout]) <= BOUND
