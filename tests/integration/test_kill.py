"""kill -9 of any one rank at any moment, also during a save: the run goes on as if nothing had happened, to the bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from megagpt.checkpoint.layout import complete_checkpoints, read_state, verify
from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from megagpt.pipeline.launch import launch_command
from tests.helpers.tiny_run import command, documents, finished, kill_group, start, toy_tokenizer, write_rows

STEPS, RANKS = 40, 2
CONFIG = {
    "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "max_sequence_length": 32, "dropout": 0.1},
    "optimizer": {"lr": 1e-2, "warmup_ratio": 0.1},
    "batch": {"micro_batch_size": 2, "global_batch_size": 8},
    "data": {"train": "tokens/train", "valid": "tokens/train"},
    "sequence_length": 32,
    "train_tokens": STEPS * 8 * 32,
    "eval_rows": 8,
    "every": {"save": 3, "evaluate": 10},
}
LAYOUTS = {
    "dp2-zero1": {"zero_stage": 1},
    "tp2-zero2": {"tensor_parallel_size": 2, "zero_stage": 2},
    "pp2-zero1": {"pipeline_parallel_size": 2},
    "dp2-zero3": {"zero_stage": 3},
}
TIME_LIMIT = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kill").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    inputs = {"train": [write_rows(folder / "documents.jsonl", documents(20))]}
    tokenize_documents(TokenizeConfig(run=RunConfig(name="toy"), inputs=inputs), tokenizer, folder / "tokens")
    for name, parallel in LAYOUTS.items():
        config = {"run": {"name": name, "device": "cpu"}, "tokenizer": "tokenizer", "parallel": parallel} | CONFIG
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def words_of(layout: str, run: str) -> list[str]:
    return launch_command(["pretrain", "--config", f"{layout}.yaml", "--set", f"run.name={run}"], RANKS, None)


def result_of(stage: Path) -> tuple[dict, list[dict]]:
    """SHA-256 of every tensor file of the last checkpoint, and the metrics of every step and evaluation but the times."""
    (last,) = complete_checkpoints(stage)[-1:]
    assert read_state(last)["step"] == STEPS and verify(last) == []
    sums = {name: facts["sha256"] for name, facts in json.loads((last / "checksums.json").read_text()).items() if name.endswith(".safetensors")}
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "tokens", "loss", "grad_norm", "lr", "batch_size", "eval_loss")
    return sums, [{name: row[name] for name in kept if name in row} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(folder):
    """layout -> result of a run that nobody killed."""
    known = {}

    def run(layout: str):
        if layout not in known:
            finished(command(*words_of(layout, f"{layout}-undisturbed"), cwd=folder))
            known[layout] = result_of(folder / "runs" / f"{layout}-undisturbed" / "pretrain")
        return known[layout]

    return run


def last_step(stage: Path) -> int:
    """The last step that is in the metrics."""
    try:
        lines = (stage / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(steps, default=0)


def kill_one_rank(launcher: subprocess.Popen, stage: Path, after_step: int, during_save: bool, rank: int, delay: float) -> bool:
    """Wait until the run is past a step, find the rank, wait for a save if asked to, then kill -9. False: the run ended before."""
    if not wait_while_it_runs(launcher, lambda: last_step(stage) >= after_step):
        return False
    ranks = psutil.Process(launcher.pid).children() if launcher.poll() is None else []
    victims = [process for process in ranks if process.is_running() and process.environ().get("RANK") == str(rank)]
    # A save takes some milliseconds, so by now all is ready for the kill.
    if during_save and not wait_while_it_runs(launcher, lambda: saving(stage)):
        return False
    time.sleep(delay)
    for victim in victims:
        if victim.is_running():
            victim.send_signal(signal.SIGKILL)
            launcher.wait(TIME_LIMIT)
            return True
    return False


def wait_while_it_runs(launcher: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """Until something happens (True), or the launcher ends (False)."""
    deadline = time.monotonic() + TIME_LIMIT
    while not happened():
        if launcher.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.0005)
    return True


def saving(stage: Path) -> bool:
    """Is there a checkpoint that is not complete yet?"""
    return any(stage.glob("checkpoints/step_*.tmp"))


def run_with_kills(folder: Path, layout: str, run: str, num_kills: int, draw: random.Random) -> tuple[int, int]:
    """Start again after every kill until the run ends. Every second kill falls into a save. Returns the numbers of kills and of kills in a save."""
    stage, kills, in_save = folder / "runs" / run / "pretrain", 0, 0
    while True:
        with open(folder / f"{run}.log", "ab") as log:
            launcher = start(*words_of(layout, run), cwd=folder, stdout=log, stderr=log)
        try:
            if kills < num_kills:
                # Kills move towards the end, so that each falls into a part of the run that was not yet done.
                target = max(last_step(stage), STEPS * kills // num_kills) + draw.randrange(1, max(2, STEPS // num_kills - 3))
                during_save = kills % 2 == 1
                delay = 0.0 if during_save else draw.uniform(0, 0.2)
                if kill_one_rank(launcher, stage, min(target, STEPS - 1), during_save, draw.randrange(RANKS), delay):
                    kills, in_save = kills + 1, in_save + saving(stage)
                    continue
            assert launcher.wait(TIME_LIMIT) == 0, (folder / f"{run}.log").read_text()[-3000:]
            return kills, in_save
        finally:
            if launcher.poll() is None:
                kill_group(launcher)


def test_kill_of_a_rank_changes_nothing(folder, undisturbed):
    kills, _ = run_with_kills(folder, "dp2-zero1", "killed", 3, random.Random(1))
    assert kills == 3
    assert result_of(folder / "runs/killed/pretrain") == undisturbed("dp2-zero1")


def test_stop_on_request_saves_and_the_same_command_goes_on(folder, undisturbed):
    stage = folder / "runs/stopped/pretrain"
    with open(folder / "stopped.log", "ab") as log:
        launcher = start(*words_of("dp2-zero1", "stopped"), cwd=folder, stdout=log, stderr=log)
    try:
        while last_step(stage) < 10:
            assert launcher.poll() is None, (folder / "stopped.log").read_text()[-3000:]
            time.sleep(0.01)
        launcher.send_signal(signal.SIGUSR1)
        assert launcher.wait(TIME_LIMIT) == 75, (folder / "stopped.log").read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            kill_group(launcher)
    (last,) = complete_checkpoints(stage)[-1:]
    stopped_at = read_state(last)["step"]
    assert 10 <= stopped_at < STEPS
    assert f"pretrain: stopped on request after step {stopped_at}; the same command goes on from there" in (folder / "stopped.log").read_text()
    finished(command(*words_of("dp2-zero1", "stopped"), cwd=folder))
    assert result_of(stage) == undisturbed("dp2-zero1")


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kill_of_a_rank_changes_nothing_twenty_times(layout, folder, undisturbed):
    kills, in_save = run_with_kills(folder, layout, f"{layout}-killed", 5, random.Random(layout))
    assert result_of(folder / f"runs/{layout}-killed/pretrain") == undisturbed(layout)
    print(f"{layout}: {kills} kills, {in_save} of them left a half-written checkpoint")
    assert kills == 5 and in_save > 0
