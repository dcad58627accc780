"""`megagpt run`: a miniature chain through the real launcher, killed on its way, resumed, repeated, changed.

One run is shared by all cases, in this order. In the middle of pre-training, the first start is killed, itself alone; the second one is
killed with all that it started; the third goes on to the end; the fourth has nothing to do; the fifth meets a changed reward model and a
gate that cannot be passed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from megagpt.runtime.distributed import free_port
from tests.helpers.tiny_run import command, finished, kill_group, megagpt, start, write_source

OPTIMIZER = {"lr": 1e-2, "weight_decay": 0.0}
STAGES = {
    "data": {"source": "source", "valid_fraction": 0.1},
    "tokenizer": {"documents": ["data/documents.train.jsonl"], "vocab_size": 320},
    "tokenize": {"inputs": {name: [f"data/documents.{name}.jsonl"] for name in ("train", "valid")}},
    "pretrain": {
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 64, "dropout": 0.1},
        "parallel": {"data_parallel_size": 2, "zero_stage": 2},
        "optimizer": OPTIMIZER,
        "batch": {"micro_batch_size": 2, "global_batch_size": 8},
        "data": {"train": "tokenize/train", "valid": "tokenize/valid"},
        "sequence_length": 32,
        "train_tokens": 60 * 8 * 32,
        "eval_rows": 8,
        "every": {"log": 20, "save": 10},
        "gates": {"max_loss_over_unigram": 1.0},
    },
    "sft": {
        "optimizer": OPTIMIZER,
        "batch": {"micro_batch_size": 4, "global_batch_size": 8},
        "data": {"train": ["data/demonstrations.train.jsonl"], "valid": ["data/demonstrations.valid.jsonl"], "max_length": 48},
        "epochs": 4,
        "gates": {"max_loss_over_start": 0.9},
    },
    "reward": {
        "parallel": {"pipeline_parallel_size": 2},
        "optimizer": OPTIMIZER,
        "batch": {"micro_batch_size": 2, "global_batch_size": 8},
        "data": {"train": ["data/rankings.train.jsonl"], "valid": ["data/rankings.valid.jsonl"], "max_length": 48},
        "every": {"save": 2},
    },
    "rlhf": {
        "placement": {"policy": {"ranks": [0]}, "reference": {"ranks": [1]}, "reward": {"ranks": [1]}, "value": {"ranks": [0]}},
        "prompts": {"files": ["data/prompts.train.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 8},
        "ppo": {"steps": 2, "rollout_batch_size": 8, "minibatch_size": 4, "micro_batch_size": 4},
        "gates": {"max_kl": 1000},
    },
}
RANKS = {"pretrain": 2, "reward": 2, "rlhf": 2}
NAMES = list(STAGES)
KILLED_AFTER = 25
"""Steps of pre-training after which the second start is killed; two checkpoints are there then."""


def write_stage(folder: Path, stage: str, config: dict) -> None:
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "chain"}} | config))


def start_until(folder: Path, step: int) -> subprocess.Popen:
    """The chain, come to this step of pre-training."""
    with open(folder / "chain.log", "w") as log:
        process = start(sys.executable, "-m", "megagpt", "run", "--config", "chain.yaml", cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 300
    while steps_done(folder / "runs/chain", "pretrain") < step:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "chain.log").read_text()[-3000:]
        time.sleep(0.02)
    return process


def left_over(folder: Path, killed: subprocess.Popen) -> list[str]:
    """What still works in the folder some seconds after a kill."""
    killed.wait()
    deadline = time.monotonic() + 15
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def steps_done(run: Path, stage: str) -> int:
    file = run / stage / "metrics.jsonl"
    return json.loads(lines[-1])["step"] if file.exists() and (lines := file.read_text().splitlines()) and lines[-1].endswith("}") else 0


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended, or is not ours
    return found


def written(run: Path) -> dict[str, int]:
    """When each stage finished."""
    return {stage: (run / stage / "finished.json").stat().st_mtime_ns for stage in NAMES if (run / stage / "finished.json").exists()}


def weights(checkpoint: Path) -> dict:
    return {name: tensor for file in sorted(checkpoint.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def newest(stage_folder: Path) -> Path:
    return max((stage_folder / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step_")))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain").resolve()
    write_source(folder / "source")
    for stage, config in STAGES.items():
        write_stage(folder, stage, config)
    steps = [{"stage": stage, "config": f"{stage}.yaml", "num_ranks": RANKS.get(stage, 1)} for stage in NAMES]
    (folder / "chain.yaml").write_text(yaml.safe_dump({"run": {"name": "chain", "seed": 7, "device": "cpu"}, "steps": steps}))
    run = folder / "runs/chain"
    seen = SimpleNamespace(folder=folder, run=run)

    process = start_until(folder, 2)
    seen.processes = processes_of(folder)
    process.kill()
    seen.left_by_kill, seen.killed_first_at = left_over(folder, process), steps_done(run, "pretrain")

    process = start_until(folder, KILLED_AFTER)
    kill_group(process)
    seen.left_by_group_kill, seen.killed_at = left_over(folder, process), steps_done(run, "pretrain")
    seen.before = written(run)
    seen.checkpoints_before = sorted(path.name for path in (run / "pretrain/checkpoints").iterdir())

    seen.resumed = megagpt("run", "--config", "chain.yaml", cwd=folder)
    seen.after = written(run)
    return seen


def test_chain_kill_leaves_no_process(chain):
    """Not even a kill -9 of `megagpt run` alone: ranks that go on would write into the folder of the next start."""
    assert sum("megagpt pretrain" in line for line in chain.processes) == 3, "the launcher and two ranks were running"
    assert chain.left_by_kill == [] and chain.left_by_group_kill == []


def test_chain_kill_leaves_no_finished_mark(chain):
    assert 2 <= chain.killed_first_at < 60
    assert KILLED_AFTER <= chain.killed_at < 60, "killed in the middle"
    assert list(chain.before) == ["data", "tokenizer", "tokenize"]
    assert "step_10" in chain.checkpoints_before, "the next may still be on its way to the disk"


def test_chain_resumes_after_a_kill(chain):
    lines = finished(chain.resumed).stdout.splitlines()
    heads = [line for line in lines if line.startswith("[") and "/7]" in line]
    assert heads[:3] == [f"[{number}/7] {stage}: finished before, skipped" for number, stage in enumerate(NAMES[:3], 1)]
    assert [head.split(": ")[1] for head in heads[3::2]] == ["2 ranks", "1 rank", "2 ranks", "2 ranks"]
    assert list(chain.after) == NAMES and all(chain.after[stage] == chain.before[stage] for stage in chain.before)


def test_chain_killed_and_resumed_equals_undisturbed(chain, tmp_path):
    """The interrupted stage once more, on its own, in a run that was never disturbed: the same bits."""
    run = chain.run
    overrides = {"run.name": "quiet", "run.seed": 7, "run.device": "cpu", "tokenizer": run / "tokenizer"}
    overrides |= {"data.train": run / "tokenize/train", "data.valid": run / "tokenize/valid"}
    words = [word for name, value in overrides.items() for word in ("--set", f"{name}={value}")]
    launcher = ["deepspeed", "--log_level", "error", "--num_accelerators", 2, "--master_port", free_port(), "--no_local_rank", "--module"]
    finished(command(*launcher, "megagpt", "pretrain", "--config", "pretrain.yaml", *words, cwd=chain.folder))
    quiet, disturbed = (newest(chain.folder / "runs" / name / "pretrain") for name in ("quiet", "chain"))
    assert quiet.name == disturbed.name == "step_60"
    ours, theirs = weights(disturbed), weights(quiet)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_chain_leaves_what_the_run_folder_promises(chain):
    manifest = json.loads((chain.run / "manifest.json").read_text())
    assert list(manifest) == NAMES
    for stage in ("pretrain", "sft", "reward", "rlhf"):
        assert (chain.run / stage / "config.yaml").exists() and list((chain.run / stage / "tensorboard").iterdir())
    finished(megagpt("checkpoint", "verify", newest(chain.run / "rlhf")))
    assert (chain.run / "report.html").stat().st_size > 10_000
    assert [path.name for path in (chain.run / "rlhf/value/checkpoints").iterdir()] == ["step_2"]
    assert {path.name for path in (chain.run / "pretrain/checkpoints").iterdir()} == {"step_50", "step_60"}  # every.keep is 2
    assert len(list((chain.run / "reward/checkpoints").iterdir())) == 2, "every.save in reward training"

    parents = {"sft": {"parent": "pretrain"}, "reward": {"parent": "sft"}, "rlhf": {"policy": "sft", "reward": "reward"}}
    for stage, roles in parents.items():
        for role, parent in roles.items():
            assert manifest[stage]["parents"][role]["checkpoint"] == manifest[parent]["checkpoint"]
    assert len({entry["tokenizer"] for entry in manifest.values() if "tokenizer" in entry}) == 1


def test_chain_losses_fall(chain):
    def values(stage: str, name: str) -> list[float]:
        rows = [json.loads(line) for line in (chain.run / stage / "metrics.jsonl").read_text().splitlines()]
        return [row[name] for row in rows if name in row]

    losses = values("pretrain", "loss")
    assert len(losses) == 60 and losses[-1] < 0.6 * losses[0]
    start, end = values("pretrain", "eval_loss")
    assert end < 0.6 * start
    start, *_, end = values("sft", "eval_loss")  # at the start and after each epoch
    assert end < 0.9 * start
    assert values("reward", "accuracy")[-1] > values("reward", "accuracy")[0]
    assert len(values("rlhf", "reward")) == 2 and len(values("rlhf", "eval_kl")) == 2
    gates = json.loads((chain.run / "gates.json").read_text())
    assert [(gate["stage"], gate["name"], gate["verdict"]) for gate in gates] == [
        ("pretrain", "loss_over_unigram", "passed"),
        ("pretrain", "loss_over_start", "passed"),
        ("sft", "response_loss_over_start", "passed"),
        ("rlhf", "kl", "passed"),
    ]


def test_chain_second_start_skips_everything(chain):
    began = time.monotonic()
    result = finished(megagpt("run", "--config", "chain.yaml", cwd=chain.folder))
    assert result.stdout.count("finished before, skipped") == 7
    assert written(chain.run) == chain.after
    assert time.monotonic() - began < 30


def test_chain_dry_run_says_what_would_run(chain):
    words = ["run", "--config", "chain.yaml", "--dry-run", "--stage-set", "reward.epochs=2"]
    result = finished(megagpt(*words, cwd=chain.folder))
    lines = result.stdout.splitlines()
    assert [line.endswith("finished before, skipped") for line in lines] == [True] * 5 + [False] * 2
    assert "megagpt.pipeline.ranks" in lines[5] and "megagpt reward --config reward.yaml" in lines[5] and "--set epochs=2" in lines[5]
    assert written(chain.run) == chain.after


def test_chain_runs_changed_stages_and_those_after_them_and_fails_by_a_gate(chain):
    write_stage(chain.folder, "reward", STAGES["reward"] | {"epochs": 2})
    result = megagpt("run", "--config", "chain.yaml", "--stage-set", "rlhf.gates.min_reward_gain_std=1000", cwd=chain.folder)
    assert result.returncode == 1, result.stdout + result.stderr
    assert result.stdout.count("finished before, skipped") == 5
    after = written(chain.run)
    assert [stage for stage in NAMES if after[stage] != chain.after[stage]] == ["reward", "rlhf"]
    assert "[rlhf] gate FAILED: reward_gain_std = " in result.stdout
    assert "1 FAILED (rlhf reward_gain_std)" in result.stdout
    gates = {gate["name"]: gate["verdict"] for gate in json.loads((chain.run / "gates.json").read_text())}
    assert gates["reward_gain_std"] == "failed" and gates["kl"] == "passed"
    assert "report.html" in result.stdout


def test_chain_stops_at_a_stage_that_fails(chain, tmp_path):
    """And says where: in another folder there is no `source`."""
    result = megagpt("run", "--config", chain.folder / "chain.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "megagpt: source: no such folder; source must be `python-docs` or a folder of files",
        "[1/7] data: failed with exit code 2; the same command starts again here",
    ]
    assert not (tmp_path / "runs/chain/data/finished.json").exists()
