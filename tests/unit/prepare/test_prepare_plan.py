"""What a data preparation of 100 TB would take: closed forms on a made measurement."""

from __future__ import annotations

import json
import math

import pytest

from megagpt.cli.main import main
from megagpt.config.load import ConfigError
from megagpt.config.prepare import PrepareConfig
from megagpt.plan.data import parse_size, plan_data

MEASURED = {
    "phases": {
        "clean": {"tasks": 4, "documents": 100, "bytes": 10_000_000, "seconds": {"all": 20.0, "reader": 12.0, "heuristics": 5.0}},
        "buckets": {"tasks": 3, "documents": 0, "bytes": 0, "seconds": {"all": 1.0}},
        "finish": {"tasks": 4, "documents": 100, "bytes": 4_000_000, "seconds": {"all": 5.0}},
    },
    "disk": {"work/clean": 3_000_000, "documents": 2_000_000},
}
CONFIG = PrepareConfig.model_validate({"run": {"name": "x"}, "sources": [{"name": "a", "kind": "rows", "files": ["a"]}]})


def test_prepare_plan_is_in_proportion_to_the_input():
    plan = plan_data(CONFIG, 100e12, 1000, MEASURED)
    by_name = {phase.name: phase for phase in plan.phases}
    assert by_name["clean"].core_hours == pytest.approx(20 * 1e7 / 3600)  # 100 TB are ten million times 10 MB
    assert by_name["clean"].tasks == by_name["finish"].tasks == math.ceil(100e12 / (256 * 2**20)) == 372530
    assert by_name["buckets"].tasks == 3  # fixed by the configuration
    assert plan.core_hours == pytest.approx(26 * 1e7 / 3600)
    assert plan.disk == {"work/clean": 3e13, "documents": 2e13}


def test_prepare_plan_start_of_a_task_does_not_grow_with_the_input():
    plan = plan_data(CONFIG, 100e12, 1000, MEASURED | {"start_seconds": {"clean": 2.0, "buckets": 0.5}})
    by_name = {phase.name: phase for phase in plan.phases}
    assert by_name["clean"].core_hours == pytest.approx(((20 - 4 * 2) * 1e7 + 2 * 372530) / 3600)
    assert by_name["buckets"].core_hours == pytest.approx(3 * 0.5 / 3600)  # three starts took longer than all of it: nothing else is known of it


def test_prepare_plan_a_phase_of_few_tasks_keeps_few_cores_busy():
    plan = plan_data(CONFIG, 100e12, 1000, MEASURED)
    per_shard = 25 * 1e7 / 3600 / 372530
    assert plan.hours == pytest.approx(per_shard * math.ceil(372530 / 1000) + 1e7 / 3600 / 3)


@pytest.mark.parametrize(("text", "num_bytes"), [("100TB", 1e14), ("1.5 gb", 1.5e9), ("3MB", 3e6)])
def test_prepare_plan_sizes(text, num_bytes):
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["100", "TB", "1..5TB", "-1TB", "10 parsecs"])
def test_prepare_plan_refuses_sizes(text):
    with pytest.raises(ConfigError, match="expected a number and one of"):
        parse_size(text)


def test_prepare_plan_command_shows_its_arithmetic(tmp_path, capsys):
    (tmp_path / "prepare.yaml").write_text("stage: prepare\nrun: {name: x}\nsources: [{name: a, kind: rows, files: [a]}]\n")
    (tmp_path / "measured.json").write_text(json.dumps(MEASURED))
    words = ["plan", "--config", str(tmp_path / "prepare.yaml"), "--measured", str(tmp_path / "measured.json"), "--ranks", "1000"]
    assert main([*words, "--size", "100TB", "--price", "0.05"]) == 0
    told = capsys.readouterr().out
    assert "20.000 core-seconds for 10.0 MB, x 10,000,000" in told and "100 TB / 256 MiB a shard = 372,530" in told and "3,611 at 0.05 a core-hour" in told
    assert main([*words, "--size", "100TB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["core_hours"] == pytest.approx(26 * 1e7 / 3600)
    assert main(words) == 2 and "--size is missing" in capsys.readouterr().err
