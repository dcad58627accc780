"""SFT, reward model and PPO on adapters as a user runs them: each stage starts from the sum, PPO resumes, and what is exported is the sum."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from megagpt.checkpoint.layout import complete_checkpoints
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.model.param_map import canonical_shapes
from megagpt.model.shape import ModelShape
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import demonstrations, finished, megagpt, prompts, rankings, toy_tokenizer, write_rows

OPTIMIZER = {"lr": 1e-2, "min_lr_ratio": 0.1, "weight_decay": 0.0}
EVERY = {"save": 1, "keep": 100}
STAGES = {
    "sft": {
        "parent": "base/sft", "optimizer": OPTIMIZER, "batch": {"micro_batch_size": 8, "global_batch_size": 16}, "lora": {"rank": 4},
        "data": {"train": ["demonstrations.jsonl"], "max_length": 48}, "epochs": 1, "every": EVERY,
    },
    "reward": {
        "optimizer": OPTIMIZER, "batch": {"micro_batch_size": 4, "global_batch_size": 16}, "lora": {"rank": 2, "targets": ["qkv"]},
        "data": {"train": ["rankings.jsonl"], "max_length": 48}, "every": EVERY,
    },
    "dpo": {
        "optimizer": OPTIMIZER, "batch": {"micro_batch_size": 4, "global_batch_size": 16}, "lora": {"rank": 4},
        "data": {"train": ["rankings.jsonl"], "max_length": 48}, "every": EVERY,
    },
    "rlhf": {
        "placement": {role: {"ranks": [0]} for role in ("policy", "reference", "reward", "value")}, "lora": {"rank": 4}, "value_lora": {"rank": 2},
        "policy_optimizer": OPTIMIZER, "value_optimizer": OPTIMIZER, "every": EVERY,
        "prompts": {"files": ["prompts.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 4},
        "ppo": {"steps": 3, "rollout_batch_size": 8, "minibatch_size": 4, "micro_batch_size": 4, "normalise_reward": "running"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with all stages done."""
    folder = tmp_path_factory.mktemp("lora").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(family="llama", num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    for make in (demonstrations, rankings, prompts):
        write_rows(folder / f"{make.__name__}.jsonl", make())
    for stage, config in STAGES.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "whole", "device": "cpu"}} | config))
        out = finished(megagpt(stage, "--config", f"{stage}.yaml", cwd=folder)).stdout
        assert f"LoRA of rank {config['lora']['rank']} on qkv" in out
    assert "[rlhf] reference tp 1 x dp 1 x pp 1 on ranks 0-0, the policy without its adapters" in out
    return folder


def newest(stage_folder: Path) -> Checkpoint:
    return Checkpoint.open(complete_checkpoints(stage_folder)[-1])


def weights(checkpoint: Checkpoint, *, merged: bool) -> dict[str, torch.Tensor]:
    """Of the model alone, without the factors."""
    with checkpoint.tensors("model", merged=merged) as read:
        return {name: read(name) for name in canonical_shapes(ModelShape(checkpoint.model_config), checkpoint.scalar_head)}


def test_lora_stages_start_from_the_sum(folder):
    run = folder / "runs/whole"
    base = newest(folder / "base/sft")
    sft, reward, dpo, policy, value = (newest(run / stage) for stage in ("sft", "reward", "dpo", "rlhf", "rlhf/value"))
    for child, parent in ((sft, base), (reward, sft), (dpo, sft), (policy, sft), (value, reward)):
        start, kept, now = weights(parent, merged=True), weights(child, merged=False), weights(child, merged=True)
        shared = [name for name in now if not name.startswith("scalar_head.")]
        assert all(torch.equal(kept[name], start[name]) for name in shared)
        changed = {name.split(".")[-2] for name in shared if not torch.equal(now[name], kept[name])}
        assert changed == ({"query", "key", "value"} if child is reward else {"query", "key", "value", "output", "gate", "up", "down"})
    assert base.lora is None and sft.lora.rank == 4 and reward.lora.targets == ("qkv",)


def test_lora_is_merged_on_export(folder, tmp_path):
    checkpoint = newest(folder / "runs/whole/sft")
    finished(megagpt("convert", "export", checkpoint.path, tmp_path / "out", cwd=folder))
    exported, expected = load_file(tmp_path / "out/model.safetensors"), weights(checkpoint, merged=True)
    assert not any("lora" in name for name in exported)
    for theirs, ours in (("self_attn.o_proj", "attention.output"), ("mlp.down_proj", "mlp.down"), ("mlp.gate_proj", "mlp.gate"), ("self_attn.v_proj", "attention.value")):
        assert torch.equal(exported[f"model.layers.1.{theirs}.weight"], expected[f"layers.1.{ours}.weight"])


def test_lora_resume_of_ppo_equals_a_run_that_was_not_stopped(folder):
    """Policy, value model and moving average."""
    whole = folder / "runs/whole/rlhf"
    copy = Path(shutil.copytree(folder / "runs/whole", folder / "runs/stopped")) / "rlhf"
    for subfolder in ("", "value", "ema"):
        _, *later = complete_checkpoints(copy / subfolder)
        assert len(later) == 2
        for path in later:
            shutil.rmtree(path)
    words = ("rlhf", "--config", "rlhf.yaml", "--set", "run.name=stopped")
    refused = megagpt(*words, "--set", "lora.rank=3", cwd=folder)
    assert refused.returncode == 2 and "lora = rank=3 alpha=16.0" in refused.stderr and "the checkpoint to resume from has rank=4" in refused.stderr
    assert "[rlhf] goes on after step 1" in finished(megagpt(*words, cwd=folder)).stdout
    for subfolder in ("", "value", "ema"):
        found, expected = (json.loads((complete_checkpoints(path / subfolder)[-1] / "checksums.json").read_text()) for path in (copy, whole))
        tensors = [name for name in expected if name.endswith(".safetensors")]
        assert tensors and all(found[name] == expected[name] for name in tensors)
