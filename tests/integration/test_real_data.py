"""The chain on real records: Anthropic HH pairs, OpenAssistant rankings and prompts, self-instruct's seed tasks, C4 documents."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from tests.helpers.tiny_run import ROOT, finished, megagpt

SHARED = ROOT.parent / "shared" / "data"
SOURCES = {
    "documents_c4.jsonl.gz": "pretrain_c4/c4_demo.jsonl.gz",
    "demonstrations_seed_tasks.jsonl": "sft_self_instruct/seed_tasks.jsonl",
    "rankings_hh.jsonl.gz": "hh_rlhf/helpful-base.jsonl.gz",
    "rankings_oasst.jsonl": "oasst_trees/kway_rankings.jsonl",
    "prompts_oasst.jsonl": "oasst_prompts/prompt_lottery_en_250_text.jsonl",
}
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real data sets in {SHARED}")

BATCH = {"micro_batch_size": 2, "global_batch_size": 4}
OPTIMIZER = {"lr": 1e-3}
STAGES = {
    "data": {"source": "source", "valid_fraction": 0.01},
    "tokenizer": {"documents": ["data/documents.train.jsonl"], "vocab_size": 1000},
    "tokenize": {"inputs": {name: [f"data/documents.{name}.jsonl"] for name in ("train", "valid")}},
    "pretrain": {
        "model": {"family": "llama", "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "max_sequence_length": 256},
        "parallel": {"tensor_parallel_size": 2},
        "optimizer": OPTIMIZER, "batch": BATCH,
        "data": {"train": "tokenize/train", "valid": "tokenize/valid"}, "sequence_length": 64, "train_tokens": 4 * 4 * 64, "eval_rows": 4,
    },
    "sft": {"optimizer": OPTIMIZER, "batch": {"micro_batch_size": 8, "global_batch_size": 32}, "epochs": 1,
            "data": {"train": ["data/demonstrations.train.jsonl"], "valid": ["data/demonstrations.valid.jsonl"], "max_length": 256, "overlong": "drop"}},
    "reward": {"optimizer": OPTIMIZER, "batch": {"micro_batch_size": 16, "global_batch_size": 128}, "epochs": 1,
               "data": {"train": ["data/rankings.train.jsonl"], "valid": ["data/rankings.valid.jsonl"], "max_length": 128, "overlong": "drop"}},
    "rlhf": {
        "placement": {"policy": {"ranks": [0]}, "reference": {"ranks": [1]}, "reward": {"ranks": [1]}, "value": {"ranks": [0]}},
        "prompts": {"files": ["data/prompts.train.jsonl"], "max_prompt_length": 64, "max_response_length": 16, "eval_prompts": 8},
        "ppo": {"steps": 2, "rollout_batch_size": 8, "minibatch_size": 4, "micro_batch_size": 4},
    },
}
RANKS = {"pretrain": 2, "rlhf": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Read where they are: the names in the source folder are links."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "source").mkdir()
    for name, path in SOURCES.items():
        (folder / "source" / name).symlink_to(SHARED / path)
    for stage, config in STAGES.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "real"}} | config))
    steps = [{"stage": stage, "config": f"{stage}.yaml", "num_ranks": RANKS.get(stage, 1)} for stage in STAGES]
    (folder / "chain.yaml").write_text(yaml.safe_dump({"run": {"name": "real", "device": "cpu"}, "steps": steps}))
    finished(megagpt("run", "--config", "chain.yaml", cwd=folder, timeout=500))
    return folder / "runs/real"


def test_real_data_gives_all_kinds_of_records(run):
    statistics = json.loads((run / "data/statistics.json").read_text())
    for kind, least in {"documents": 250, "demonstrations": 150, "rankings": 2000, "prompts": 200}.items():
        assert statistics[kind]["train"] > least and statistics[kind]["valid"] > 0, kind
    answers = [len(json.loads(line)["answers"]) for line in (run / "data/rankings.train.jsonl").open()]
    assert {2, 3, 4} <= set(answers) and max(answers) > 4
    assert statistics["rankings"]["dropped"]["two answers are equal"] >= 1  # a known defect of HH, see its SOURCE.txt


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "rlhf"])
def test_real_data_trains(run, stage):
    rows = [json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "lr" in row or "policy_loss" in row]
    assert len(steps) >= 2
    for row in rows:
        for name, value in row.items():
            if name == "doctor":  # words
                continue
            assert value is not None and math.isfinite(value), f"{name} in step {row['step']}"
    if stage in ("pretrain", "sft"):
        assert steps[-1]["loss"] < steps[0]["loss"]


def test_real_data_checkpoints_form_a_chain(run):
    manifest = json.loads((run / "manifest.json").read_text())
    for child, role, parent in (("sft", "parent", "pretrain"), ("reward", "parent", "sft"), ("rlhf", "policy", "sft"), ("rlhf", "reward", "reward")):
        assert manifest[child]["parents"][role]["checkpoint"] == manifest[parent]["checkpoint"]
    samples = json.loads((run / "rlhf/samples.json").read_text())
    assert len(samples) == 3 and all(sample["prompt"].strip() for sample in samples)
