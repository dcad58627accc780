"""Which folders count as checkpoints, and how one is found from a configuration."""

import os
import re

import pytest

from megagpt.checkpoint.layout import COMPLETE, CheckpointError, common_steps, complete_checkpoints, find_checkpoint, prune, step_of
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
