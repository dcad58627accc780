"""What a run leaves on disk: files that are whole or absent, the run folder's manifest and gates, the stage's metrics."""

import contextlib
import errno
import hashlib
import io
import json
import resource
import signal
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megagpt.config.schema import RecordsConfig, RunConfig
from megagpt.runtime import atomic
from megagpt.runtime.log import StageLog, left_out
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.tiny_run import environment_of

# ---------------------------------------------------------------- atomic writes


def test_atomic_writes_replace_and_leave_nothing_else(tmp_path):
    file = tmp_path / "a.json"
    atomic.write_json(file, {"ä": 1})
    atomic.write_json(file, {"ä": [2.5, None]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": [2.5, None]} and "ä" in file.read_text(encoding="utf-8")
    atomic.write_bytes(tmp_path / "b", b"\0\xff")
    assert atomic.sha256_file(tmp_path / "b") == hashlib.sha256(b"\0\xff").hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_atomic_kill_between_write_and_rename_leaves_the_old_file(tmp_path, where):
    """A real process, killed by SIGKILL at the worst moment."""
    (tmp_path / "state.json").write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from megagpt.runtime import atomic
os.{where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
atomic.write_text(Path("state.json"), "new" * 100000)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment_of(), check=False)
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / "state.json").read_text() == "old"


def test_atomic_write_on_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(tmp_path / "state.json", "new")
    assert (tmp_path / "state.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, object()])
def test_atomic_json_that_cannot_be_written_leaves_the_old_file(tmp_path, value):
    atomic.write_json(tmp_path / "a.json", [1])
    with pytest.raises((ValueError, TypeError)):
        atomic.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


# ---------------------------------------------------------------- run folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return RunFolder(RunConfig(name="toy"))


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_run_folder_resolves_paths(run, tmp_path):
    assert str(run.resolve("data/a.jsonl")) == "data/a.jsonl"  # nowhere: as it stands, for the message of whoever opens it
    within = touch(tmp_path / "runs/toy/data/a.jsonl")
    assert run.resolve("data/a.jsonl").resolve() == within
    here = touch(tmp_path / "data/a.jsonl")
    assert run.resolve("data/a.jsonl").resolve() == here  # as it stands comes first
    assert run.resolve(str(within)) == within


def test_run_folder_resolves_prefixes_of_token_files(run, tmp_path):
    touch(tmp_path / "runs/toy/tokenize/train.idx")
    assert str(run.resolve("tokenize/train", ".idx")) == "runs/toy/tokenize/train"
    assert str(run.resolve("tokenize/valid", ".idx")) == "tokenize/valid"
    touch(tmp_path / "tokenize/train.idx")
    assert str(run.resolve("tokenize/train", ".idx")) == "tokenize/train"


def test_run_folder_resolves_records(run, tmp_path):
    touch(tmp_path / "runs/toy/data/a.jsonl")
    records = RecordsConfig(train=["data/a.jsonl", "elsewhere.jsonl"], valid=["data/a.jsonl"], max_length=7)
    resolved = run.resolve_records(records)
    assert resolved == RecordsConfig(train=["runs/toy/data/a.jsonl", "elsewhere.jsonl"], valid=["runs/toy/data/a.jsonl"], max_length=7)
    assert run.resolve_records(records.model_copy(update={"valid": None})).valid is None


def test_run_folder_manifest_and_gates_are_kept_by_stage(run):
    assert run.manifest == {} and run.gates == []
    run.record("data", output="a")
    run.record("sft", output="b", loss=float("nan"))
    run.record("data", output="c")
    assert list(run.manifest) == ["data", "sft"] and run.manifest["data"]["output"] == "c" and run.manifest["sft"]["loss"] is None
    run.gate("sft", "loss", 0.5, "<= 1", True)
    run.gate("reward", "accuracy", 0.4, ">= 0.8", False)
    run.gate("sft", "loss", float("nan"), "<= 1", False)
    assert run.gates == [
        {"stage": "reward", "name": "accuracy", "value": 0.4, "bound": ">= 0.8", "verdict": "failed"},
        {"stage": "sft", "name": "loss", "value": None, "bound": "<= 1", "verdict": "failed"},
    ]
    run.forget("sft")
    assert list(run.manifest) == ["data"] and [gate["stage"] for gate in run.gates] == ["reward"]
    run.forget("sft")


# ---------------------------------------------------------------- metrics of a stage


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stage_log_writes_every_step_and_prints_some(tmp_path, capsys):
    with StageLog(tmp_path, "sft", total_steps=5, log_every=2) as log:
        log.evaluation(0, {"eval_loss": 3.0})
        for step in range(1, 6):
            log.step(step, {"loss": 2.0 / step, "tokens": 10 * step})
            assert len(rows_of(tmp_path)) == step + 1, "each row is on disk at once"
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[2]["loss"] == 1.0 and rows[2]["tokens"] == 20 and 0 <= rows[1]["seconds"] <= rows[5]["seconds"]
    assert capsys.readouterr().out.splitlines() == [
        "[sft] evaluation at step 0 | eval_loss 3",
        "[sft] step 2/5 | loss 1 | tokens 20",
        "[sft] step 4/5 | loss 0.5 | tokens 40",
        "[sft] step 5/5 | loss 0.4 | tokens 50",
    ]


def test_stage_log_writes_null_for_what_is_no_number(tmp_path):
    with StageLog(tmp_path, "sft", total_steps=1, log_every=1) as log:
        log.step(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 1e-3})
    ((row,),) = (rows_of(tmp_path),)
    assert row["loss"] is None and row["grad_norm"] is None and row["lr"] == 1e-3


def test_stage_log_starts_anew(tmp_path):
    for count in (3, 2):  # the second run stops earlier; nothing of the first may stay
        with StageLog(tmp_path, "sft", total_steps=3, log_every=10) as log:
            for step in range(1, count + 1):
                log.step(step, {"loss": 1.5})
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.5), (2, 1.5)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def fill(folder, steps, resume_step=0, **settings):
    with StageLog(folder, "sft", total_steps=6, log_every=10, resume_step=resume_step, **settings) as log:
        for step in steps:
            log.step(step, {"loss": float(10 * resume_step + step)})


def test_stage_log_resumes_after_its_last_checkpoint(tmp_path):
    """Killed at step 5 in the middle of a line; the checkpoint is of step 3."""
    fill(tmp_path, (1, 2, 3, 4, 5))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    before = rows_of_readable(tmp_path)
    fill(tmp_path, (4, 5, 6), resume_step=3)
    rows = rows_of(tmp_path)
    assert rows[:3] == before[:3] and [(row["step"], row["loss"]) for row in rows[3:]] == [(4, 34.0), (5, 35.0), (6, 36.0)]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds), "time goes on where it was"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(row["step"], row["loss"]) for row in rows]


def rows_of_readable(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]


def test_stage_log_goes_back_with_the_run(tmp_path):
    with StageLog(tmp_path, "sft", total_steps=6, log_every=10) as log:
        for step in (1, 2, 3):
            log.step(step, {"loss": 1.0})
        log.go_back(1)
        log.step(2, {"loss": 2.0})
    assert [(row["step"], row["loss"]) for row in rows_of(tmp_path)] == [(1, 1.0), (2, 2.0)]


def test_stage_log_records_an_evaluation_once_however_often_the_stage_is_resumed(tmp_path, capsys):
    fill(tmp_path, range(1, 7))
    for accuracy in (0.5, 0.25, 0.75):
        with StageLog(tmp_path, "sft", total_steps=6, log_every=10, resume_step=6) as log:
            log.evaluation(6, {"eval_accuracy": accuracy})
            log.evaluation(6, {"eval_loss": accuracy})
            log.evaluation(7, {"eval_accuracy": accuracy})
    assert [row["eval_accuracy"] for row in rows_of(tmp_path) if "eval_accuracy" in row] == [0.5, 0.75], "those of step 7 came after the resume"
    assert [row["eval_loss"] for row in rows_of(tmp_path) if "eval_loss" in row] == [0.5]
    assert "evaluation at step 6 | eval_accuracy 0.75" in capsys.readouterr().out


@contextlib.contextmanager
def files_of_at_most(num_bytes: int):
    """What this process writes beyond that into any file is refused by the kernel, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_stage_log_outlives_a_full_disk_with_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard's thread ends with a traceback
    before = set(threading.enumerate())
    with files_of_at_most(1000), StageLog(tmp_path, "sft", total_steps=200, log_every=100) as log:
        for step in range(1, 201):
            log.step(step, {"loss": 1.0})
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line for line in lines if "could not" in line) == [
        f"[sft] {what} could not be written (File too large); training goes on without" for what in ("metrics.jsonl", "tensorboard/")
    ]
    assert [line for line in lines if " step " in line] == ["[sft] step 100/200 | loss 1", "[sft] step 200/200 | loss 1"]
    assert [row["step"] for row in rows_of_readable(tmp_path)] == list(range(1, len(rows_of_readable(tmp_path)) + 1)) != []


class Full(io.StringIO):
    """A log file on a disk that is full from some moment on."""

    full = False

    def write(self, text):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_stage_log_outlives_output_that_goes_to_a_full_disk(tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Full())
    with StageLog(tmp_path, "sft", total_steps=6, log_every=1) as log:
        sys.stdout.full = sys.stderr.full = True
        log._bar.mininterval = 0  # or it would draw every 15 seconds
        for step in range(1, 7):
            log.step(step, {"loss": 1.0})
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_stage_log_line_begins_with_what_matters(tmp_path, capsys):
    with StageLog(tmp_path, "sft", total_steps=1, log_every=1) as log:
        log.step(1, {"skipped": 0, "tokens": 1234567, "tokens_per_s": 98765.4, "lr": 2.5e-4, "loss": 2.0})
    assert capsys.readouterr().out == "[sft] step 1/1 | loss 2 | lr 0.00025 | tokens 1,234,567 | tokens_per_s 98,765 | skipped 0\n"


# ---------------------------------------------------------------- Weights & Biases


class FakeWandb(ModuleType):
    """As much of the package as is used; `key` is what it has on the disk."""

    def __init__(self, key="secret", mode="online", broken=""):
        super().__init__("wandb")
        self.rows, self.runs, self.broken = [], [], broken
        self.login = lambda *, prompt, verify: key is not None
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))
        self.Settings = lambda **settings: settings

    def init(self, **settings):
        if self.broken == "init":
            raise ConnectionError("no way with the key secret")
        self.runs.append(settings)
        return self

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        if self.broken == "log":
            raise ConnectionError("no way with the key secret")
        self.rows.append(row)

    def finish(self):
        self.rows.append("finished")


def test_wandb_gets_every_row_and_a_resumed_stage_its_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := FakeWandb())
    stage = tmp_path / "toy" / "sft"
    stage.mkdir(parents=True)
    fill(stage, (1, 2), wandb_project="p")
    fill(stage, (3,), resume_step=2, wandb_project="p")
    fill(stage, (1,), wandb_project="p")
    rows = [row if row == "finished" else (row["step"], row["loss"]) for row in wandb.rows]
    assert rows == [(1, 1.0), (2, 2.0), "finished", (3, 23.0), "finished", (1, 1.0), "finished"]
    first, second, third = (run["id"] for run in wandb.runs)
    assert first == second != third and wandb.runs[0]["project"] == "p" and wandb.runs[0]["name"] == "toy/sft"


@pytest.mark.parametrize(
    ("wandb", "reason"),
    [
        (None, "the package is not installed (pip install megagpt[wandb])"),
        (FakeWandb(key=None), "nobody is logged in (wandb login, or WANDB_MODE=offline)"),
        (FakeWandb(broken="init"), "ConnectionError"),
        (FakeWandb(broken="log"), "ConnectionError"),
    ],
    ids=["absent", "not_logged_in", "no_start", "breaks_later"],
)
def test_wandb_missing_is_one_line_without_secrets(tmp_path, monkeypatch, capsys, wandb, reason):
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    fill(tmp_path, (1, 2, 3), wandb_project="p")
    out = capsys.readouterr()
    assert out.out == f"[sft] Weights & Biases gets no metrics: {reason}\n" and "secret" not in out.err
    assert len(rows_of(tmp_path)) == 3


def test_wandb_offline_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := FakeWandb(key=None, mode="offline"))
    fill(tmp_path, (1,), wandb_project="p")
    assert len(wandb.rows) == 2


def test_left_out_records_are_named_by_reason():
    assert left_out({}) == ""
    assert left_out({"repeated": 3, "empty message": 1}) == " (left out: 3 repeated, 1 empty message)"
