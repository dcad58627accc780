"""SFT, reward training, DPO and PPO go on where they were stopped: the same checkpoints and metrics as of a stage that nobody stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor

from megagpt.checkpoint.layout import complete_checkpoints
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.runtime.distributed import free_port
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import command, demonstrations, finished, megagpt, prompts, rankings, toy_tokenizer, write_rows
from tests.helpers.tolerance import KL_ABSOLUTE, PPO_METRIC_RELATIVE, assert_tensors_close
from tests.helpers.token_files import write_token_files

OPTIMIZER = {"lr": 1e-2, "min_lr_ratio": 0.1, "weight_decay": 0.0}
ON_ONE_RANK = {role: {"ranks": [0]} for role in ("policy", "reference", "reward", "value")}
STAGES = {
    "sft": {
        "parent": "base/sft", "optimizer": OPTIMIZER, "batch": {"micro_batch_size": 4, "global_batch_size": 8},
        "data": {"train": ["demonstrations.jsonl"], "max_length": 48}, "epochs": 2,
    },
    "reward": {
        "parent": "base/sft", "optimizer": OPTIMIZER, "batch": {"micro_batch_size": 2, "global_batch_size": 8},
        "data": {"train": ["rankings.jsonl"], "max_length": 48},
    },
    "dpo": {
        "parent": "base/sft", "optimizer": OPTIMIZER, "batch": {"micro_batch_size": 2, "global_batch_size": 8}, "dropout": 0.1,
        "data": {"train": ["rankings.jsonl"], "max_length": 48},
    },
    "rlhf": {
        "policy": "base/sft", "reward": "base/reward", "placement": ON_ONE_RANK, "policy_optimizer": OPTIMIZER, "value_optimizer": OPTIMIZER,
        "prompts": {"files": ["prompts.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 4},
        "ppo": {"steps": 4, "rollout_batch_size": 8, "minibatch_size": 4, "micro_batch_size": 2, "epochs": 2, "normalise_reward": "running"},
        "pretrain_mix": {"data": "texts", "rows_per_response": 1}, "kl": {"coefficient": 0.1, "target": 0.5, "horizon": 40},
    },
}  # fmt: skip
STOPPED_AFTER = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    base = RunConfig(name="base", root=str(folder))
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size, dropout=0.1)
    make_checkpoint(base, "sft", model, tokenizer, seed=1)
    make_checkpoint(base, "reward", model, tokenizer, seed=2, reward_mean=0.0, reward_std=1.0)
    make_checkpoint(RunConfig(name="other", root=str(folder)), "reward", model, tokenizer, seed=3, reward_mean=0.5, reward_std=2.0)
    write_token_files(folder / "texts", [[5 + (7 * i + j * j) % 280 for j in range(61)] for i in range(30)])
    for make in (demonstrations, rankings, prompts):
        write_rows(folder / f"{make.__name__}.jsonl", make())
    for stage, config in STAGES.items():
        every = {"save": 1, "keep": 100, "evaluate": 2}
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "whole", "device": "cpu"}, "every": every} | config))
    return folder


def steps_of(stage_folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in complete_checkpoints(stage_folder)]


def result_of(stage_folder: Path) -> tuple[dict, list[dict], dict]:
    """SHA-256 of every tensor file of the last checkpoints, the metrics but the times, and the last state but paths."""
    sums, states = {}, {}
    for saved in (stage_folder, stage_folder / "value", stage_folder / "ema"):
        for path in complete_checkpoints(saved)[-1:]:
            checksums = json.loads((path / "checksums.json").read_text())
            sums |= {f"{saved.name}/{name}": facts["sha256"] for name, facts in checksums.items() if name.endswith(".safetensors")}
            states[saved.name] = json.loads((path / "state.json").read_text())
    rows = map(json.loads, (stage_folder / "metrics.jsonl").read_text().splitlines())
    machine = ("seconds", "tokens_per_s", "tflops_per_device")
    return sums, [{k: v for k, v in row.items() if k not in machine and not k.endswith("_seconds") and not k.startswith("memory_")} for row in rows], states


@pytest.mark.parametrize("stage", STAGES)
def test_stage_resume_equals_a_stage_that_was_not_stopped(stage, folder):
    whole = the_whole(folder, stage)
    copy = stopped(folder, stage, f"stopped-{stage}")
    out = finished(megagpt(stage, "--config", f"{stage}.yaml", "--set", f"run.name=stopped-{stage}", cwd=folder)).stdout
    assert f"[{stage}] goes on after step {STOPPED_AFTER}" in out
    assert not list(copy.rglob("*.tmp"))
    assert result_of(copy) == result_of(whole)


def the_whole(folder: Path, stage: str) -> Path:
    """Folder of the stage that nobody stopped."""
    if not complete_checkpoints(folder / "runs/whole" / stage):
        finished(megagpt(stage, "--config", f"{stage}.yaml", cwd=folder))
    return folder / "runs/whole" / stage


def stopped(folder: Path, stage: str, name: str, source: str = "whole", after: int = STOPPED_AFTER) -> Path:
    """A copy as a kill after some steps would leave it, in the middle of the next save."""
    copy = Path(shutil.copytree(folder / "runs" / source, folder / "runs" / name)) / stage
    last = steps_of(copy)[-1]
    assert last > after
    for saved in (copy, copy / "value", copy / "ema"):
        for step in range(after + 1, last + 1):
            path = saved / "checkpoints" / f"step_{step}"
            if path.exists():
                path.rename(path.with_suffix(".tmp")) if step == after + 1 else shutil.rmtree(path)
    return copy


ELSEWHERE = {
    "policy_tp2": {"policy": {"ranks": [0, 1], "tp": 2}, "reference": {"ranks": [2]}, "reward": {"ranks": [2]}, "value": {"ranks": [2], "zero": 0}},
    "policy_zero2": {"policy": {"ranks": [1, 2], "zero": 2}, "rollout": {"ranks": [1, 2], "tp": 2}, "reference": {"ranks": [0]}, "reward": {"ranks": [0]}, "value": {"ranks": [1, 2], "pp": 2}},
    "auto": "auto",
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_ppo_goes_on_under_another_placement(where, folder):
    """Weights, moments, average, prompts and controllers of all models come over from one rank, and back to it."""
    whole, copy = the_whole(folder, "rlhf"), stopped(folder, "rlhf", f"moved-{where}")
    settings = ["--set", f"run.name=moved-{where}", "--set", f"placement={json.dumps(ELSEWHERE[where])}"]
    ranks = ["torchrun", "--nproc-per-node", 3, "--master-port", free_port(), "-m", "megagpt"]
    finished(command(*ranks, "rlhf", "--config", "rlhf.yaml", *settings, cwd=folder, OMP_NUM_THREADS=1))
    assert_as_if_it_had_stayed(copy, whole)

    back = stopped(folder, "rlhf", f"back-{where}", source=f"moved-{where}", after=STOPPED_AFTER + 1)  # a step that three ranks made
    out = finished(megagpt("rlhf", "--config", "rlhf.yaml", "--set", f"run.name=back-{where}", cwd=folder)).stdout
    assert f"[rlhf] goes on after step {STOPPED_AFTER + 1}" in out
    assert_as_if_it_had_stayed(back, whole)


def assert_as_if_it_had_stayed(stage: Path, whole: Path) -> None:
    """The same metrics and models but for rounding."""
    (sums, ours, _), (other_sums, theirs, _) = result_of(stage), result_of(whole)
    assert sums.keys() and sums != other_sums and len(ours) == len(theirs)  # not the same bits: it did compute under another layout
    for row, expected in zip(ours, theirs, strict=True):
        assert row.pop("doctor", None) == expected.pop("doctor", None)
        assert row == pytest.approx(expected, rel=PPO_METRIC_RELATIVE, abs=KL_ABSOLUTE)
    for saved in ("", "value", "ema"):
        moved, stayed = (tensors_of(complete_checkpoints(folder / saved)[-1]) for folder in (stage, whole))
        assert_tensors_close(moved, stayed, relative=PPO_METRIC_RELATIVE)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """All but the key biases: their gradient is nothing but rounding, which Adam makes as large as any."""
    tensors = {name: tensor for file in checkpoint.glob("model-*.safetensors") for name, tensor in load_file(file).items()}
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("attention.key.bias")}


def test_doctor_pauses_a_run_goes_back_and_lets_it_pass(folder):
    """A policy of random weights whose answers never end."""

    def run(*settings: str):
        words = [word for setting in settings for word in ("--set", setting)]
        return megagpt("rlhf", "--config", "rlhf.yaml", "--set", "run.name=ill", "--set", "doctor.max_endless=0.01", *words, cwd=folder)

    stage = folder / "runs/ill/rlhf"
    paused = run("doctor.endless=pause", "held_out_reward=other/reward")
    assert paused.returncode == 1 and paused.stderr.strip().splitlines()[-1].count("paused by the doctor (endless: ") == 1
    assert steps_of(stage) == [1]
    evaluation = json.loads((stage / "metrics.jsonl").read_text().splitlines()[0])
    assert evaluation["eval_held_out_reward"] == pytest.approx(-0.25, abs=0.5) and evaluation["eval_held_out_reward"] != evaluation["eval_reward"]
    went_back = run("doctor.endless=rollback", "doctor.max_rollbacks=2")
    assert went_back.returncode == 1 and steps_of(stage) == [1, 2]
    assert went_back.stdout.count("doctor: step 1: back from step 2, and on with other prompts (endless: ") == 2
    told = [row["step"] for row in map(json.loads, (stage / "metrics.jsonl").read_text().splitlines()) if row.get("doctor", "").startswith("back from step 2")]
    assert told == [1, 1]  # what was said of the steps that are gone went with them
    assert json.loads((complete_checkpoints(stage)[-1] / "state.json").read_text())["skipped_rounds"] == 2
    out = finished(run("doctor.repeat=2")).stdout
    assert steps_of(stage) == [1, 2, 3, 4] and "doctor: step 3: endless: " in out
    assert "answers preferred to those of the start by the reward model on " in out
    rows = list(map(json.loads, (stage / "metrics.jsonl").read_text().splitlines()))
    assert 0 <= json.loads((stage.parent / "manifest.json").read_text())["rlhf"]["win_rate"] == rows[-1]["eval_win_rate"] <= 1
    said = [row["step"] for row in rows if row.get("doctor", "").startswith("endless: ")]
    assert said == sorted(said) and set(said) <= {1, 2, 3, 4}
    assert [row["step"] for row in rows if "policy_loss" in row] == [1, 2, 3, 4]
    samples = [json.loads(line) for line in (stage / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == sorted(4 * [0, 2, 4]) and {"prompt", "answer", "score", "kl", "length"} < samples[0].keys()
    page = finished(megagpt("report", folder / "runs/ill", cwd=folder)) and (folder / "runs/ill/report.html").read_text()
    assert (stage / "plots/phases.png").exists() and "The doctor spoke" in page and "Answers on held-out prompts after round 4" in page


def test_stage_resume_with_fewer_steps_than_were_made_ends_at_once(folder):
    if not (folder / "runs/whole/sft").exists():
        finished(megagpt("sft", "--config", "sft.yaml", cwd=folder))
    copy = Path(shutil.copytree(folder / "runs/whole", folder / "runs/fewer")) / "sft"
    last = steps_of(copy)[-1]
    finished(megagpt("sft", "--config", "sft.yaml", "--set", "run.name=fewer", "--set", "epochs=1", cwd=folder))
    assert steps_of(copy)[-1] == last
    assert json.loads((copy.parent / "manifest.json").read_text())["sft"]["output"].endswith(f"step_{last}")
