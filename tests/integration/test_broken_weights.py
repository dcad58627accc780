"""A run whose weights broke ends with one line and exit code 1, and is no finished stage: nothing later starts from it by itself."""

from __future__ import annotations

import json

import pytest
import yaml

from megagpt.config.schema import ModelConfig, RunConfig
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import demonstrations, megagpt, rankings, toy_tokenizer, write_rows

STEPS = {
    "run": {"name": "toy", "device": "cpu"}, "parent": "base/sft", "optimizer": {"lr": 1e30}, "batch": {"micro_batch_size": 4, "global_batch_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    for verb, rows in (("sft", demonstrations()), ("reward", rankings()), ("dpo", rankings())):
        write_rows(folder / f"{verb}.jsonl", rows)
        (folder / f"{verb}.yaml").write_text(yaml.safe_dump(STEPS | {"data": {"train": [f"{verb}.jsonl"], "max_length": 64}}))
    return folder


@pytest.mark.parametrize(("verb", "what"), [("sft", "held-out loss"), ("reward", "scores of good answers"), ("dpo", "held-out loss")])
def test_broken_weights_end_the_stage_by_name(folder, verb, what):
    broken = megagpt(verb, "--config", f"{verb}.yaml", cwd=folder)
    assert broken.returncode == 1 and "Traceback" not in broken.stderr
    assert broken.stderr.splitlines()[-1] == f"megagpt: {verb}: {what} not finite: the weights are broken; lower optimizer.lr"
    manifest = folder / "runs/toy/manifest.json"
    assert not manifest.exists() or verb not in json.loads(manifest.read_text())
