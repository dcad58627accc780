"""The chain's bookkeeping: which steps run, with which command, and what ends it. No stage is really started."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import yaml

from megagpt.config.load import ConfigError, load_config
from megagpt.config.chain import PipelineConfig
from megagpt.config.schema import RunConfig
from megagpt.pipeline import chain
from megagpt.runtime.run_folder import RunFolder

DATA = {"source": "source"}
SFT = {"batch": {"micro_batch_size": 1, "global_batch_size": 2}, "data": {"train": ["data/demonstrations.train.jsonl"], "max_length": 8}}
REWARD = SFT | {"epochs": 3}


class Stages:
    """Stands for `subprocess` in the chain: notes each command and answers with an exit code."""

    def __init__(self):
        self.commands, self.codes = [], {}

    TimeoutExpired = subprocess.TimeoutExpired

    def Popen(self, command, **_):
        return SimpleNamespace(wait=lambda _: self.run(command).returncode)

    def run(self, command):
        self.commands.append(command)
        verb = verb_of(command)
        if self.codes.get(verb, 0) == 0:
            RunFolder(RunConfig(name="toy")).record(verb)
        return SimpleNamespace(returncode=self.codes.get(verb, 0))

    def started(self) -> list[str]:
        verbs, self.commands = [verb_of(command) for command in self.commands], []
        return verbs


def world_of(command: list[str]) -> dict[str, list[int]]:
    """What the launcher is told about hosts and ranks."""
    return json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))


def verb_of(command: list[str]) -> str:
    return command[command.index("megagpt") + 1]


@pytest.fixture
def stages(monkeypatch):
    stages = Stages()
    monkeypatch.setattr(chain, "subprocess", stages)
    return stages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/demonstrations.jsonl").write_text("{}")
    for name, config in (("data", DATA), ("sft", SFT), ("reward", REWARD)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"run": {"name": "other", "seed": 1}} | config))
    steps = [{"stage": name, "config": f"{name}.yaml", "num_ranks": ranks} for name, ranks in (("data", 1), ("sft", 1), ("reward", 2))]
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({"run": {"name": "toy", "seed": 9}, "steps": steps}))
    return tmp_path


def run(folder, *stage_overrides: str, hostfile=None, dry_run: bool = False) -> int:
    config = load_config(PipelineConfig, folder / "chain.yaml")
    return chain.run_chain(config, folder, stage_overrides=list(stage_overrides), hostfile=hostfile, dry_run=dry_run)


def test_pipeline_runs_in_order_and_then_nothing(folder, stages, capsys):
    assert run(folder) == 0 and stages.started() == ["data", "sft", "reward"]
    marks = [json.loads((folder / f"runs/toy/{stage}/finished.json").read_text()) for stage in ("data", "sft", "reward")]
    assert len({mark["key"] for mark in marks}) == 3
    assert run(folder) == 0 and stages.started() == []
    assert capsys.readouterr().out.splitlines()[-1] == "[3/3] reward: finished before, skipped"


def test_pipeline_commands(folder, stages):
    run(folder, "sft.epochs=5")
    data, sft, reward = stages.commands
    assert data[1:4] == ["-m", "megagpt", "data"] and data[4] == "run" and data[5:7] == ["--config", str(folder / "data.yaml")]
    settings = [after for word, after in zip(sft, sft[1:]) if word == "--set"]
    # The pipeline's run section stands above the file's, and what was asked for above all.
    assert {'run.name="toy"', "run.seed=9"} <= set(settings) and settings[-1] == "epochs=5"
    assert reward[1:3] == ["-m", "megagpt.pipeline.ranks"] and world_of(reward) == {"localhost": [0, 1]}
    assert reward[reward.index("--module") :][:3] == ["--module", "megagpt", "reward"]


def test_pipeline_hostfile_is_for_training_only(folder, stages):
    (folder / "hosts").write_text("localhost slots=3\n")
    run(folder, hostfile=folder / "hosts")
    data, sft, reward = stages.commands
    assert data[1:4] == ["-m", "megagpt", "data"]
    assert world_of(sft) == world_of(reward) == {"localhost": [0, 1, 2]}, "this machine alone needs no ssh"
    (folder / "hosts").write_text("localhost slots=1\nelsewhere slots=1\n")
    stages.commands.clear()
    (folder / "runs/toy/sft/finished.json").unlink()
    run(folder, hostfile=folder / "hosts")
    for command in stages.commands:
        assert command[2] == "deepspeed.launcher.runner" and command[command.index("--hostfile") + 1] == str(folder / "hosts")


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda folder: edit(folder / "reward.yaml", epochs=4), ["reward"]),
        (lambda folder: edit(folder / "sft.yaml", epochs=4), ["sft", "reward"]),
        (lambda folder: edit(folder / "data.yaml", min_characters=5), ["data", "sft", "reward"]),
        (lambda folder: (folder / "source/rankings.jsonl").write_text("{}"), ["data", "sft", "reward"]),
        (lambda folder: os.utime(folder / "source/demonstrations.jsonl", (1, 1)), ["data", "sft", "reward"]),
        (lambda folder: (folder / "reward.yaml").write_text("# a comment\n" + (folder / "reward.yaml").read_text()), []),
        (lambda folder: edit(folder / "sft.yaml", epochs=2), []),  # the default, written out
        (lambda folder: (folder / "runs/toy/sft/finished.json").unlink(), ["sft", "reward"]),  # its result may be another one now
    ],
    ids=["last", "middle", "first", "new_file", "touched_file", "comment", "default", "mark_lost"],
)
def test_pipeline_runs_again_what_a_change_touches(folder, stages, change, again):
    run(folder)
    stages.started()
    change(folder)
    assert run(folder) == 0 and stages.started() == again
    assert run(folder) == 0 and stages.started() == []


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder / "chain.yaml", run={"name": "toy", "seed": 9, "timeout_seconds": 60, "wandb_project": "p", "device": "cpu"}),
        lambda folder: edit(folder / "sft.yaml", every={"log": 1, "evaluate": 2, "save": 3, "keep": 4, "keep_every": 5}),
        lambda folder: edit(folder / "sft.yaml", profile={"first_step": 3}),
    ],
    ids=["run", "every", "profile"],
)
def test_pipeline_finished_steps_outlive_a_change_of_what_is_operational(folder, stages, change):
    run(folder)
    stages.started()
    change(folder)
    assert run(folder) == 0 and stages.started() == []


@pytest.mark.parametrize("setting", ["parallel.tensor_parallel_size=2", "run.seed=3", "precision.dtype=bf16", "kernels=reference"])
def test_pipeline_runs_again_what_a_setting_of_a_result_touches(folder, stages, setting):
    run(folder)
    stages.started()
    assert run(folder, f"sft.{setting}") == 0 and stages.started() == ["sft", "reward"]


def edit(file, **settings) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | settings))


def test_pipeline_stops_at_the_stage_that_fails(folder, stages, capsys):
    stages.codes["sft"] = 3
    assert run(folder) == 3 and stages.started() == ["data", "sft"]
    assert capsys.readouterr().err.splitlines() == ["[2/3] sft: failed with exit code 3; the same command starts again here"]
    assert (folder / "runs/toy/data/finished.json").exists() and not (folder / "runs/toy/sft/finished.json").exists()
    stages.codes["sft"] = -9  # killed by a signal: what a shell would answer
    assert run(folder) == 137 and stages.started() == ["sft"]
    stages.codes.clear()
    assert run(folder) == 0 and stages.started() == ["sft", "reward"]


def test_pipeline_believes_no_exit_code_alone(folder, stages, monkeypatch, capsys):
    """DeepSpeed's runner answers 0 when what it started was killed by a signal."""
    answer = stages.run
    monkeypatch.setattr(stages, "run", lambda command, **_: SimpleNamespace(returncode=0) if verb_of(command) == "sft" else answer(command))
    assert run(folder) == 1
    assert "[2/3] sft: failed with exit code 1" in capsys.readouterr().err
    assert not (folder / "runs/toy/sft/finished.json").exists()


def test_pipeline_mark_goes_before_the_stage_starts(folder, stages):
    """A stage that is run again and killed must not count as finished."""
    run(folder)
    edit(folder / "sft.yaml", epochs=7)
    stages.codes["sft"] = 1
    run(folder)
    edit(folder / "sft.yaml", epochs=2)  # back to what was finished once
    stages.codes.clear()
    stages.started()
    assert run(folder) == 0 and stages.started() == ["sft", "reward"]


def test_pipeline_wrong_configuration_is_found_before_the_first_stage(folder, stages):
    edit(folder / "reward.yaml", epoch=3)
    with pytest.raises(ConfigError, match=r"reward.yaml: unknown key 'epoch'; did you mean 'epochs'\?"):
        run(folder)
    (folder / "reward.yaml").write_text((folder / "sft.yaml").read_text())
    with pytest.raises(ConfigError, match="hosts: cannot read the hostfile"):
        run(folder, hostfile=folder / "hosts")
    assert stages.started() == [] and not (folder / "runs").exists()


def test_pipeline_dry_run_starts_and_writes_nothing(folder, stages, capsys):
    assert run(folder, dry_run=True) == 0
    assert stages.started() == [] and not (folder / "runs").exists()
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"\[(\d)/3\] (\w+): ", line).groups() for line in lines] == [("1", "data"), ("2", "sft"), ("3", "reward")]
    assert "-m megagpt data run --config" in lines[0] and "megagpt.pipeline.ranks" in lines[2]


def test_pipeline_two_at_the_same_time_are_refused(folder, stages, monkeypatch):
    def second_start(command, **_):
        with pytest.raises(ConfigError, match="run.name = toy: another `megagpt run` works in runs/toy; wait for it or choose another name"):
            run(folder)
        return answer(command)

    answer = stages.run
    monkeypatch.setattr(stages, "run", second_start)
    assert run(folder) == 0
    assert run(folder) == 0, "the lock is gone with the first one"


# ---------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_pipeline_hands_a_stop_on_to_its_step_and_answers_75(folder, monkeypatch, capsys, number):
    """A real step that ends with 75 when it is told to; the signal comes to the chain alone."""
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); open('began', 'w'); time.sleep(20)"
    monkeypatch.setattr(chain, "_command", lambda *_: [sys.executable, "-c", script])
    sender = threading.Thread(target=lambda: send_once_there(folder / "began", number))
    sender.start()
    assert run(folder) == 75
    sender.join()
    assert capsys.readouterr().err.splitlines() == ["[1/3] data: stopped on request; the same command goes on here"]


def send_once_there(file, number):
    deadline = time.monotonic() + 15
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), number)


def test_pipeline_starts_no_further_step_once_it_was_asked_to_stop(folder, stages, monkeypatch):
    answer = stages.run

    def ends_well_all_the_same(command):
        os.kill(os.getpid(), signal.SIGUSR1)
        return answer(command)

    monkeypatch.setattr(stages, "run", ends_well_all_the_same)
    assert run(folder) == 75 and stages.started() == ["data"]
    monkeypatch.setattr(stages, "run", answer)
    assert run(folder) == 0 and stages.started() == ["sft", "reward"]


def test_pipeline_step_that_stopped_on_request_is_no_failure(folder, stages, capsys):
    stages.codes["sft"] = 75
    assert run(folder) == 75
    assert "stopped on request" in capsys.readouterr().err


def test_pipeline_interrupted_step_goes_on_from_its_checkpoints(folder, stages):
    stages.codes["sft"] = 75
    run(folder)
    saved = checkpoint_of(folder, "sft")
    run(folder)
    run(folder, "sft.epochs=9")  # the stage itself refuses what does not fit
    assert saved.exists()
    run(folder, "data.min_characters=5")
    assert not saved.exists(), "made from other data"


def test_pipeline_step_that_goes_on_is_told_so_under_resume_never(folder, stages):
    edit(folder / "chain.yaml", run={"name": "toy", "seed": 9, "resume": "never"})

    def resumes() -> list[str]:
        commands, stages.commands = stages.commands, []
        return [[word for word in command if word.startswith("run.resume=")][-1].partition("=")[2].strip('"') for command in commands]

    stages.codes["sft"] = 75
    run(folder)
    assert resumes() == ["never", "never"]
    stages.codes.clear()
    run(folder)
    assert resumes() == ["auto", "never"], "sft goes on, reward begins"
    run(folder, "sft.epochs=9")
    assert resumes() == ["never", "never"], "what was finished begins anew"


def test_pipeline_finished_step_starts_anew_where_something_changed(folder, stages):
    run(folder)
    saved = {stage: checkpoint_of(folder, stage) for stage in ("sft", "reward")}
    run(folder)
    assert saved["sft"].exists() and saved["reward"].exists()
    stages.codes["reward"] = 1
    run(folder, "sft.epochs=9")
    assert not saved["sft"].exists() and not saved["reward"].exists()


def test_pipeline_step_that_starts_from_nothing_keeps_aside_what_it_had(folder, stages, capsys):
    run(folder)
    checkpoint_of(folder, "sft")
    capsys.readouterr()
    run(folder, "sft.epochs=9")
    aside = "starts from nothing, since its inputs are not what they were; what it had left is now runs/toy"
    assert [line for line in capsys.readouterr().out.splitlines() if "from nothing" in line] == [f"sft: {aside}/sft.old", f"reward: {aside}/reward.old"]
    old = folder / "runs/toy/sft.old/checkpoints"
    assert (old / "step_3").is_dir()
    checkpoint_of(folder, "sft").rename(folder / "runs/toy/sft/checkpoints/step_4")
    run(folder)
    assert [path.name for path in old.iterdir()] == ["step_4"], "the latest takes the place of the one before"


def test_pipeline_steps_after_one_that_runs_again_start_anew(folder, stages):
    """Also where the chain is killed in between, and although nothing was changed."""
    run(folder)
    saved = {stage: checkpoint_of(folder, stage) for stage in ("sft", "reward")}
    (folder / "runs/toy/sft/finished.json").unlink()
    stages.codes["sft"] = -9
    run(folder)
    assert saved["sft"].exists() and saved["reward"].exists()
    stages.codes.clear()
    run(folder)
    assert saved["sft"].exists() and not saved["reward"].exists()


def checkpoint_of(folder, stage):
    path = folder / f"runs/toy/{stage}/checkpoints/step_3"
    path.mkdir(parents=True)
    return path
