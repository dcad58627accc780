"""Which folders count as checkpoints, and how one is found from a configuration."""

import json
import os
import re
from dataclasses import asdict

import pytest

from megagpt.checkpoint.layout import (
    COMPLETE, STATE, CheckpointError, HeldOut, best_checkpoint, common_steps, complete_checkpoints, find_checkpoint, prune, step_of,
)  # fmt: skip
from megagpt.config.schema import RunConfig
from megagpt.runtime.run_folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """pretrain with steps 9 and 10, a half-written 11 and an incomplete 12; sft without any."""
    run = RunFolder(RunConfig(name="first", root=str(tmp_path)))
    for age, name in enumerate(["step_10", "step_9", "notes"]):
        folder = run.path / "pretrain/checkpoints" / name
        folder.mkdir(parents=True)
        (folder / COMPLETE).touch()
        os.utime(folder / COMPLETE, (1000 - age, 1000 - age))
    half = run.path / "pretrain/checkpoints/step_11.tmp"
    half.mkdir()
    (half / COMPLETE).touch()  # killed after the last file and before the rename
    (run.path / "pretrain/checkpoints/step_12").mkdir()
    (run.path / "sft/checkpoints").mkdir(parents=True)
    return run


@pytest.mark.parametrize(("name", "step"), [("step_0", 0), ("step_120", 120)])
def test_checkpoint_folder_names(name, step, tmp_path):
    assert step_of(tmp_path / name) == step


@pytest.mark.parametrize("name", ["step_12.tmp", "step_", "step_x", "xstep_1", "step_-1"])
def test_other_folder_names_are_not_checkpoints(name, tmp_path):
    assert step_of(tmp_path / name) is None


def test_checkpoint_list_holds_whole_ones_only_oldest_first(run):
    assert [folder.name for folder in complete_checkpoints(run.path / "pretrain")] == ["step_9", "step_10"]
    assert complete_checkpoints(run.path / "sft") == complete_checkpoints(run.path / "absent") == []


def test_checkpoint_is_found_by_stage_folder_and_own_path(run):
    newest = run.path / "pretrain/checkpoints/step_10"
    older = run.path / "pretrain/checkpoints/step_9"
    assert find_checkpoint("pretrain", run) == newest
    assert find_checkpoint(str(run.path / "pretrain"), run) == newest
    assert find_checkpoint(str(older), run) == older
    assert find_checkpoint("pretrain/checkpoints/step_9", run) == older


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("pretrian", "pretrian: no complete checkpoint there or in .*; did you mean 'pretrain'"),
        ("elsewhere", "elsewhere: no complete checkpoint there or in .*; stages with checkpoints in .*: pretrain"),
        ("sft", "sft: no complete checkpoint there"),
        ("pretrain/checkpoints/step_12", "step_12: the checkpoint is incomplete .COMPLETE is missing"),
    ],
)
def test_checkpoint_that_is_not_there_is_refused_by_name(run, where, message):
    with pytest.raises(CheckpointError) as refused:
        find_checkpoint(where, run)
    assert re.search(message, str(refused.value)) and "\n" not in str(refused.value)


def make_steps(folder, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoints/step_{step}").mkdir(parents=True)
        (folder / f"checkpoints/step_{step}" / COMPLETE).touch()


def test_checkpoint_pruning_keeps_the_newest_that_all_models_have(tmp_path):
    policy, value = tmp_path / "policy", tmp_path / "value"
    make_steps(policy, 1, 2, 3, 4, 5, 6)
    make_steps(value, 1, 2, 3, 4, 5)  # the sixth is still on its way
    assert common_steps([policy, value]) == [1, 2, 3, 4, 5]
    prune([policy, value], keep=1, keep_every=2)
    assert [path.name for path in complete_checkpoints(policy)] == ["step_2", "step_4", "step_5", "step_6"]
    assert [path.name for path in complete_checkpoints(value)] == ["step_2", "step_4", "step_5"]
    assert common_steps([policy, value])[-1] == 5, "what a resume would take is there"


def test_checkpoint_pruning_leaves_models_alone_that_have_no_step_in_common(tmp_path):
    make_steps(tmp_path / "policy", 1, 2, 3)
    prune([tmp_path / "policy", tmp_path / "value"], keep=1, keep_every=0)
    assert len(complete_checkpoints(tmp_path / "policy")) == 3


def measure_steps(folder, better: str, values: dict[int, float | None]) -> None:
    make_steps(folder, *values)
    for step, value in values.items():
        (folder / f"checkpoints/step_{step}" / STATE).write_text(json.dumps({"held_out": asdict(HeldOut("loss", value, better))}))


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("lower", {1: 3.0, 2: 2.0, 3: 2.5}, 2),
        ("higher", {1: 3.0, 2: 2.0, 3: 2.5}, 1),
        ("lower", {2: 2.0, 10: 2.0, 9: 2.0}, 10),  # of equals the newest
        ("lower", {1: 3.0, 2: None, 3: 4.0}, 1),  # None is what JSON has for a loss that is not finite
    ],
)
def test_checkpoint_that_did_best_on_held_out_data_is_found_and_stays(better, values, best, run):
    stage = run.path / "best"
    measure_steps(stage, better, values)
    make_steps(stage, 20, 21)  # saved in between, without a measurement
    assert best_checkpoint(stage).name == find_checkpoint("best", run).name == f"step_{best}"
    prune([stage], keep=1, keep_every=0)
    assert {path.name for path in complete_checkpoints(stage)} == {f"step_{best}", "step_21"}
    assert find_checkpoint("best", run).name == f"step_{best}"


def test_checkpoint_without_a_whole_or_readable_measurement_is_not_the_best(run):
    stage = run.path / "best"
    measure_steps(stage, "lower", {1: 1.0, 2: 2.0, 3: 3.0})
    (stage / "checkpoints/step_1" / COMPLETE).unlink()
    (stage / "checkpoints/step_2" / STATE).write_text("{")
    assert best_checkpoint(stage).name == "step_3"
    assert best_checkpoint(run.path / "pretrain") is None
