"""The stage as a user runs it without a critic and without a reward model: a function of one's own scores the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import complete_checkpoints
from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import ModelConfig, RunConfig
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import finished, megagpt, prompts, toy_tokenizer, write_rows

CONFIG = {
    "run": {"name": "toy", "device": "cpu"}, "policy": "base/sft", "reward": None, "reward_function": "my_rewards:shortness",
    "placement": {"policy": {"ranks": [0]}, "reference": {"ranks": [0]}}, "policy_optimizer": {"lr": 1e-2, "weight_decay": 0.0},
    "prompts": {"files": ["prompts.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 4},
    "ppo": {"steps": 2, "rollout_batch_size": 8, "samples_per_prompt": 4, "minibatch_size": 4, "micro_batch_size": 4, "advantage": "rloo"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rloo").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    write_rows(folder / "prompts.jsonl", prompts())
    (folder / "rlhf.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "my_rewards.py").write_text(
        "def shortness(prompts, answers):\n    return [-len(answer) for answer in answers]\n\n\ndef broken(prompts, answers):\n    return [1 / 0]\n"
    )
    return folder


def test_rlhf_without_critic_and_reward_model(folder):
    absent = ("--set", "judge.url=http://127.0.0.1:9/v1", "--set", "judge.model=m")  # nobody listens there: no reason to lose a run
    out = finished(megagpt("rlhf", "--config", "rlhf.yaml", *absent, cwd=folder)).stdout
    assert "[rlhf] no verdict: judge.url = http://127.0.0.1:9/v1/chat/completions: " in out
    stage = folder / "runs/toy/rlhf"
    assert not (stage / "value").exists()
    for saved in (stage, stage / "ema"):
        (checkpoint,) = complete_checkpoints(saved)
        assert checkpoint.name == "step_2" and Checkpoint.open(checkpoint).language_model()
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "policy_loss" in row]
    assert len(trained) == 2 and all(row["reward"] < 0 and row["policy_entropy"] > 0 and "value_loss" not in row for row in trained)

    events = [event for event in json.loads((stage / "timeline.json").read_text())["traceEvents"] if event["ph"] == "X"]
    done = {"generate policy", "score reference", "advantages", "train policy", "wait", "save", "evaluation"}
    assert {event["name"] for event in events} == done and all(event["ts"] >= 0 and event["dur"] > 0 for event in events)
    assert {event["args"]["round"] for event in events if event["cat"] == "train"} == {1, 2}
    assert (stage / "plots/timeline.png").stat().st_size > 10_000

    # The same run with other models cannot go on from there, and must not begin anew without a word.
    refused = megagpt("rlhf", "--config", "rlhf.yaml", "--set", "ppo.ema_decay=null", cwd=folder)
    assert refused.returncode == 2
    assert "models = ['policy']: the checkpoint to resume from has ['policy', 'moving average']" in refused.stderr


def test_rlhf_with_a_reward_function_that_breaks(folder):
    broken = megagpt("rlhf", "--config", "rlhf.yaml", "--set", "run.name=broken", "--set", "reward_function=my_rewards:broken", cwd=folder)
    assert broken.returncode == 1
    assert "reward_function = my_rewards:broken: ZeroDivisionError: division by zero; the first prompt was" in broken.stdout
    assert "reward_function = my_rewards:broken: failed on rank 0" in broken.stderr and "Traceback" not in broken.stderr
