"""Pre-training, SFT and reward training through their commands, cut and computed in other ways than the chain does; each starts from the one before."""

import json
import math
from pathlib import Path

import pytest
import yaml

from megagpt.cli.main import main
from megagpt.pipeline.launch import launch_command
from tests.helpers.tiny_run import command, finished, megagpt, write_source

OPTIMIZER = {"lr": 1e-2, "weight_decay": 0.0}
PRETRAIN = {
    "model": {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 64, "dropout": 0.1},
    "optimizer": OPTIMIZER,
    "batch": {"micro_batch_size": 2, "global_batch_size": 8, "ramp": {"initial_batch_size": 4, "increment": 4, "tokens": 2000}},
    "data": {"train": "tokenize/train", "valid": "tokenize/valid"},
    "sequence_length": 32,
    "train_tokens": 40 * 8 * 32,
    "eval_rows": 0,
}
STAGES = {
    "data": {"source": "source", "valid_fraction": 0.1},
    "tokenizer": {"documents": ["data/documents.train.jsonl"], "vocab_size": 320},
    "tokenize": {"inputs": {name: [f"data/documents.{name}.jsonl"] for name in ("train", "valid")}},
    "pretrain": PRETRAIN | {
        "parallel": {"pipeline_parallel_size": 2, "virtual_pipeline_size": 2, "recompute": "selective"},
        "precision": {"dtype": "fp16", "loss_scale": {"initial": 1024.0, "window": 10}},
    },
    "sft": {
        "parallel": {"context_parallel_size": 2, "zero_stage": 2, "recompute": "full"},
        "precision": {"dtype": "bf16"},
        "optimizer": OPTIMIZER,
        "batch": {"micro_batch_size": 4, "global_batch_size": 8},
        "data": {"train": ["data/demonstrations.train.jsonl"], "valid": ["data/demonstrations.valid.jsonl"], "max_length": 48},
        "epochs": 4,
    },
    "reward": {
        "parallel": {"pipeline_parallel_size": 2, "stage_layers": [3, 1], "recompute": "full", "offload_optimizer": "cpu"},
        "precision": {"dtype": "bf16"},
        "optimizer": OPTIMIZER,
        "batch": {"micro_batch_size": 2, "global_batch_size": 8},
        "data": {"train": ["data/rankings.train.jsonl"], "valid": ["data/rankings.valid.jsonl"], "max_length": 48},
    },
}  # fmt: skip
ONE_RANK = {"pipeline_parallel_size": 1, "virtual_pipeline_size": 1, "recompute": "none"}
SEQUENCE_PARALLEL = ONE_RANK | {"tensor_parallel_size": 2, "sequence_parallel": "true", "recompute": "full"}
VERBS = {"data": ["data", "run"], "tokenizer": ["tokenizer", "train"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages").resolve()
    write_source(folder / "source")
    for stage, config in STAGES.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "r", "device": "cpu"}} | config))
        words = [*VERBS.get(stage, [stage]), "--config", f"{stage}.yaml"]
        finished(megagpt(*words, cwd=folder) if stage in VERBS or stage == "tokenize" else command(*launch_command(words, 2, None), cwd=folder))
    return folder


def rows_of(folder: Path, stage: str, name: str = "r") -> list[dict]:
    return [json.loads(line) for line in (folder / f"runs/{name}/{stage}/metrics.jsonl").read_text().splitlines()]


def test_stage_layouts_pretrain_interleaved_in_fp16(folder):
    steps = [row for row in rows_of(folder, "pretrain") if "loss" in row]
    assert [row["batch_size"] for row in steps[:16]] == [4] * 16 and steps[-1]["batch_size"] == 8
    assert steps[-1]["tokens"] <= PRETRAIN["train_tokens"] < steps[-1]["tokens"] + 8 * 32
    evaluations = [row["eval_loss"] for row in rows_of(folder, "pretrain") if "eval_loss" in row]
    assert evaluations[-1] < 0.8 * evaluations[0]


def test_stage_layouts_sft_with_context_parallel_in_bf16(folder):
    evaluations = [row["eval_loss"] for row in rows_of(folder, "sft") if "eval_loss" in row]
    assert evaluations[-1] < 0.9 * evaluations[0]


def test_stage_layouts_reward_uneven_and_offloaded_in_bf16(folder):
    rows = rows_of(folder, "reward")
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in rows if "loss" in row)
    accuracies = [row["eval_accuracy"] for row in rows if "eval_accuracy" in row]
    assert 0.5 < accuracies[-1] > accuracies[0]


def test_stage_layouts_pretrain_with_sequence_parallel_learns_the_same_in_fp32(folder):
    """Dropout, ramp and evaluation included: the losses of one rank and of two that share the sequence are the same to 1e-4 over all steps."""
    words = ["pretrain", "--config", "pretrain.yaml", "--set", "precision.dtype=fp32", "--set", "data.train=runs/r/tokenize/train",
             "--set", "data.valid=runs/r/tokenize/valid", "--set", "tokenizer=runs/r/tokenizer"]  # fmt: skip
    for name, parallel, num_ranks in (("one", ONE_RANK, 1), ("two", SEQUENCE_PARALLEL, 2)):
        settings = [f"run.name={name}", *(f"parallel.{key}={value}" for key, value in parallel.items())]
        with_settings = [*words, *(word for setting in settings for word in ("--set", setting))]
        finished(command(*launch_command(with_settings, num_ranks, None), cwd=folder))
    one, two = rows_of(folder, "pretrain", "one"), rows_of(folder, "pretrain", "two")
    for name in ("loss", "eval_loss"):
        assert [row[name] for row in two if name in row] == pytest.approx([row[name] for row in one if name in row], rel=1e-4)


def test_stage_layouts_pretrain_on_a_blend_reads_the_same_rows_on_any_number_of_replicas(folder):
    """A weighted blend, split by documents, documents told apart: losses of one rank and of two replicas, and what is said about the data."""
    blend = "[{path: runs/r/tokenize/train, weight: 3}, {path: runs/r/tokenize/valid, weight: 1}]"
    settings = [f"data={{train: {blend}, valid: null, split: [0.7, 0.15, 0.15], reset_at_documents: true}}", "tokenizer=runs/r/tokenizer", "precision.dtype=fp32",
                "train_tokens=2560", *(f"parallel.{key}={value}" for key, value in ONE_RANK.items())]  # fmt: skip
    for name, num_ranks in (("blend1", 1), ("blend2", 2)):
        with_settings = (word for setting in (f"run.name={name}", *settings) for word in ("--set", setting))
        words = ["pretrain", "--config", "pretrain.yaml", *with_settings]
        out = finished(command(*launch_command(words, num_ranks, None), cwd=folder)).stdout
        assert "[pretrain] runs/r/tokenize/train 75.00% (" in out and "; runs/r/tokenize/valid 25.00% (" in out
    one, two = rows_of(folder, "pretrain", "blend1"), rows_of(folder, "pretrain", "blend2")
    for name in ("loss", "eval_loss"):
        assert [row[name] for row in two if name in row] == pytest.approx([row[name] for row in one if name in row], rel=1e-4)
    manifest = json.loads((folder / "runs/blend1/manifest.json").read_text())["pretrain"]
    assert 0 < manifest["test_loss"] < one[0]["eval_loss"]


def test_stage_layouts_dry_run_knows_the_parent(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["reward", "--config", "reward.yaml", "--ranks", "2", "--dry-run"]) == 0, "uneven stages are legal"
    assert main(["sft", "--config", "sft.yaml", "--ranks", "8", "--set", "parallel.context_parallel_size=8", "--dry-run"]) == 2
    assert "parent model.num_query_groups = 4" in capsys.readouterr().err
