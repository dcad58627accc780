"""kill -9 of one rank in each phase of PPO: the same command goes on, and ends with the same bits as a run that nobody killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import complete_checkpoints, read_state, verify
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.pipeline.launch import launch_command
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import command, finished, prompts, toy_tokenizer, write_rows

STEPS, SAVED, KILLED_IN = 5, 2, 4
"""Rounds; how often they are saved; the round of the kill, which the checkpoint of round 2 goes before."""
OPTIMIZER = {"lr": 1e-2, "min_lr_ratio": 0.1, "weight_decay": 0.0}
CONFIG = {
    "run": {"device": "cpu"}, "policy": "base/sft", "reward": "base/reward", "reward_function": "deadly:nothing",
    "every": {"save": SAVED, "evaluate": 3, "log": 1}, "policy_optimizer": OPTIMIZER, "value_optimizer": OPTIMIZER,
    "placement": {"policy": {"ranks": [0]}, "reference": {"ranks": [1]}, "reward": {"ranks": [1]}, "value": {"ranks": [1]}},
    "prompts": {"files": ["prompts.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 4},
    "ppo": {"steps": STEPS, "rollout_batch_size": 16, "minibatch_size": 4, "micro_batch_size": 2, "epochs": 2, "normalise_reward": "running"},
    "kl": {"coefficient": 0.1, "target": 0.5, "horizon": 40},
}  # fmt: skip
DEADLY = '''
"""A reward function whose module kills the rank that imports it, in the middle of what the environment names."""
import contextlib, json, os, signal
from megagpt.runtime import timeline

def nothing(prompts, answers):
    return [0.0] * len(answers)

target, span = json.loads(os.environ.get("KILL", "null")), timeline.Timeline.span

@contextlib.contextmanager
def deadly(self, kind, role="", part=None):
    with span(self, kind, role, part):
        yield
        if [os.environ["RANK"], self._step, kind, role, part] == target:
            os.kill(os.getpid(), signal.SIGKILL)  # the work is done, and nobody has heard of it

timeline.Timeline.span = deadly
'''
PHASES = {
    "generate": ["0", KILLED_IN, "generate", "policy", 1],
    "score": ["1", KILLED_IN, "score", "reward", 2],
    "score_value": ["1", KILLED_IN, "score", "value", 0],
    "train_policy": ["0", KILLED_IN, "train", "policy", None],
    "train_value": ["1", KILLED_IN, "train", "value", None],
    "save_policy": ["0", KILLED_IN, "save", "", None],
    "save_value": ["1", KILLED_IN, "save", "", None],
}
"""The rank, the round, the kind of work, the model and the part of the rollout."""
IN_CI = "train_policy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill_ppo").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    base = RunConfig(name="base", root=str(folder))
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size, dropout=0.1)
    make_checkpoint(base, "sft", model, tokenizer, seed=1)
    make_checkpoint(base, "reward", model, tokenizer, seed=2, reward_mean=0.0, reward_std=1.0)
    write_rows(folder / "prompts.jsonl", prompts())
    (folder / "rlhf.yaml").write_text(yaml.safe_dump(CONFIG | {"run": CONFIG["run"] | {"name": "undisturbed"}}))
    (folder / "deadly.py").write_text(DEADLY)
    return folder


def run(folder: Path, name: str, **environment: str):
    return command(*launch_command(["rlhf", "--config", "rlhf.yaml", "--set", f"run.name={name}"], 2, None), cwd=folder, **environment)


def result_of(stage: Path) -> tuple[dict[str, str], list[dict]]:
    """SHA-256 of every tensor file of the last checkpoints, and the metrics of every round and evaluation but the times, and
    but the memory, which each process measures in its second round."""
    sums = {}
    for saved in (stage, stage / "value", stage / "ema"):
        (last,) = complete_checkpoints(saved)[-1:]
        assert read_state(last)["step"] == STEPS and verify(last) == []
        checksums = json.loads((last / "checksums.json").read_text())
        sums |= {f"{saved.name}/{name}": facts["sha256"] for name, facts in checksums.items() if name.endswith(".safetensors")}
    rows = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return sums, [{name: value for name, value in row.items() if not name.endswith("seconds") and not name.startswith("memory_")} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(folder):
    finished(run(folder, "undisturbed"))
    return result_of(folder / "runs/undisturbed/rlhf")


@pytest.mark.parametrize("phase", [phase if phase == IN_CI else pytest.param(phase, marks=pytest.mark.slow) for phase in PHASES])
def test_kill_in_a_phase_of_ppo_changes_nothing(folder, undisturbed, phase):
    stage = folder / "runs" / phase / "rlhf"
    killed = run(folder, phase, KILL=json.dumps(PHASES[phase]))
    assert killed.returncode != 0 and not (stage.parent / "manifest.json").exists()
    steps = [read_state(path)["step"] for path in complete_checkpoints(stage)]
    assert steps[:1] == [SAVED] and max(steps) <= KILLED_IN
    out = finished(run(folder, phase)).stdout
    assert f"[rlhf] goes on after step {SAVED}" in out or (phase.startswith("save") and f"[rlhf] goes on after step {KILLED_IN}" in out)
    assert result_of(stage) == undisturbed
