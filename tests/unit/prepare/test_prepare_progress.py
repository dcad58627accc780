"""How far a phase is: what running tasks say of themselves, and the bar that is made of it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare import phase as phase_module
from megagpt.prepare import progress
from megagpt.prepare.phase import Phase, TaskStep
from megagpt.prepare.run import all_phases
from megagpt.prepare.shards import plan_shards, write_plan


class Step(TaskStep):
    name = "step"

    def run_task(self, task: int, num_tasks: int) -> None:
        pass


def test_prepare_progress_a_task_says_how_far_it_is_once_a_second(tmp_path, monkeypatch):
    now, asked = [100.0], []
    monkeypatch.setattr(phase_module.time, "monotonic", lambda: now[0])

    def share() -> float:
        asked.append(now[0])
        return len(asked) / 10

    step = Step()
    step.tell(share)
    assert not asked  # nobody looks
    step.told = tmp_path / "00003"
    for now[0] in (101.0, 101.5, 101.9, 102.0, 102.4):
        step.tell(share)
    assert asked == [101.0, 102.0] and float(step.told.read_text()) == 0.2
    step.told = tmp_path / "gone" / "00003"
    now[0] += 5
    step.tell(share)  # where nothing can be written nothing is raised


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prepare_progress_counts_whole_tasks_and_parts_of_running_ones(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "shares").mkdir()
    (tmp_path / "shares" / "00000").write_text("0.9")  # of a run that was cut
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "00001").touch()
    with progress.shown(Phase("clean", 4, Step(), [1000, 3000, 4000, 0]), tmp_path):
        (tmp_path / "shares" / "00000").write_text("0.5")
        (tmp_path / "shares" / "00001").write_text("0.7")  # it was done since
        (tmp_path / "shares" / "00002").write_text("")  # about to be written
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("clean:  44%") and "3.42k/7.81k" in last and "1 of 4 tasks" in last and "B/s" in last


def test_prepare_progress_only_rank_0_shows_it(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("RANK", "1")
    with progress.shown(Phase("clean", 1, Step()), tmp_path):
        pass
    assert not terminal.getvalue() and not list(tmp_path.iterdir())


@pytest.fixture
def shares(tmp_path, monkeypatch) -> dict[str, list[float]]:
    """What tasks say, at every document, of a source of two files."""
    for name, words in (("a", 4000), ("b", 2000)):
        rows = (json.dumps({"text": f"Document {number} of a file. " + f"word{number} " * words}) for number in range(30))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    config = PrepareConfig.model_validate({
        "stage": "prepare", "run": {"name": "web", "root": str(tmp_path)}, "steps": {"representation": {"reweighting": {}}},
        "sources": [{"name": "web", "kind": "rows", "files": [str(tmp_path / "*.jsonl")]}],
    })  # fmt: skip
    plan, told = plan_shards(config), {}
    write_plan(tmp_path / "out" / "work", plan)
    monkeypatch.setattr(TaskStep, "tell", lambda step, share: told.setdefault(step.name, []).append(share()))
    for phase in all_phases(config, tmp_path / "out", [shard["bytes"] for shard in plan["shards"]]):
        assert phase.sizes is None or list(phase.sizes) == [sum(path.stat().st_size for path in Path(tmp_path).glob("*.jsonl"))]
        for task in range(phase.num_tasks):
            phase.step.run(None, task, phase.num_tasks)
    return told


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count what a process reads")
def test_prepare_progress_of_the_phases_that_go_through_documents(shares):
    assert set(shares) == {"clean", "finish", "reweigh"}
    for said in shares.values():
        assert len(said) == 60 and said == sorted(said) and 0 <= said[0] and said[-1] <= 1
    assert shares["finish"] == [number / 60 for number in range(60)]
    assert len(set(shares["clean"])) > 10 and shares["clean"][29] < 0.7  # a file of two thirds of the bytes, and 30 documents
