"""`megagpt reward` with frozen lower layers, as a user runs it: activations on disk that a second run finds, an exact resume, a whole checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from megagpt.checkpoint.layout import complete_checkpoints
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import ModelConfig, RunConfig
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import demonstrations, finished, megagpt, rankings, toy_tokenizer, write_rows

LAYERS, KEPT, TRAINABLE = 4, 3, 1


def tensors(path: Path, kind: str = "model") -> dict[str, torch.Tensor]:
    names = json.loads((path / f"{kind}.index.json").read_text())
    with Checkpoint.open(path).tensors(kind) as read:
        return {name: read(name) for name in names}


def is_frozen(name: str) -> bool:
    layer = re.match(r"layers\.(\d+)\.", name)
    return int(layer[1]) < KEPT - TRAINABLE if layer else name.startswith("embedding")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """The parent, the stage's folder, and what the first run printed and one that lost the last checkpoint."""
    folder = tmp_path_factory.mktemp("frozen").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=LAYERS, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    parent = make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    for name, rows in {"rankings": rankings(), "demonstrations": demonstrations()}.items():
        write_rows(folder / f"{name}.jsonl", rows)
    config = {
        "run": {"name": "toy", "device": "cpu"}, "parent": "base/sft", "optimizer": {"lr": 1e-2}, "epochs": 2,
        "keep_layers": KEPT, "trainable_layers": TRAINABLE, "pooling": "mean", "activations": "kept", "batch": {"micro_batch_size": 4, "global_batch_size": 8},
        "data": {"train": ["rankings.jsonl"], "valid_fraction": 0.3, "max_length": 48}, "normalise_on": ["demonstrations.jsonl"],
        "every": {"save": 4, "keep": 9},
    }  # fmt: skip
    (folder / "reward.yaml").write_text(yaml.safe_dump(config))
    stage, printed = folder / "runs/toy/reward", []
    printed.append(finished(megagpt("reward", "--config", "reward.yaml", cwd=folder)).stdout)
    newest = complete_checkpoints(stage)[-1]
    shutil.copytree(newest, folder / "first")
    shutil.rmtree(newest)
    printed.append(finished(megagpt("reward", "--config", "reward.yaml", cwd=folder)).stdout)
    return parent, stage, printed


def test_frozen_stage_trains_the_top_and_saves_the_whole_model(runs):
    parent, stage, _ = runs
    before, after = tensors(parent), tensors(complete_checkpoints(stage)[-1])
    saved = Checkpoint.open(complete_checkpoints(stage)[-1])
    assert saved.model_config.num_layers == KEPT and saved.state["pooling"] == "mean" and not any(name.startswith(f"layers.{KEPT}.") for name in after)
    assert all(torch.equal(after[name], before[name]) for name in after if is_frozen(name))
    assert not any(torch.equal(after[name], before[name]) for name in after if name in before and not is_frozen(name))
    assert not any(is_frozen(name.split(".", 1)[1]) for name in tensors(complete_checkpoints(stage)[-1], "optimizer"))
    accuracy = json.loads((stage / "evaluation.json").read_text())["pair_accuracy"]["value"]
    assert accuracy > 0.6  # the toy world's rule is learned from the top alone


def test_frozen_stage_computes_activations_once_and_resumes_to_the_bit(runs):
    _, stage, (first, again) = runs
    assert "activations of 0 groups" in first and "those of 0 are to be computed" in again and "goes on after step" in again
    newest = complete_checkpoints(stage)[-1]
    for kind in ("model", "optimizer"):
        one, other = tensors(stage.parents[2] / "first", kind), tensors(newest, kind)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
