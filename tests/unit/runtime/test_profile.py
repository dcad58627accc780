"""The profiler's window, and each rank's own log."""

import json
import logging

import pytest
import torch

from megagpt.runtime.profile import StepProfiler
from megagpt.runtime.rank_log import rank_log
from megagpt.runtime.stop_request import Stopped


def test_profile_traces_the_chosen_steps_alone(tmp_path, capsys):
    profiler = StepProfiler(tmp_path, first_step=2, num_steps=2)
    for step in range(1, 6):
        with profiler.step(step):
            torch.ones(step, 7) @ torch.ones(7, step)
    (file,) = (tmp_path / "profile").iterdir()
    products = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("name") == "aten::mm"]
    assert [event["args"]["Input Dims"][0] for event in products] == [[2, 7], [3, 7]]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"profile of steps 2-3: open {file} in https://ui.perfetto.dev"


def test_profile_of_no_step_costs_nothing(tmp_path):
    profiler = StepProfiler(tmp_path, first_step=0, num_steps=3)
    for step in range(4):
        with profiler.step(step):
            pass
    assert list(tmp_path.iterdir()) == []


def test_rank_log_keeps_warnings_and_the_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), rank_log(tmp_path) as file:
        logging.getLogger("megagpt.some").warning("a %s", "disk is slow")
        logging.getLogger("megagpt.some").info("nothing")
        1 / 0
    text = file.read_text()
    assert file == tmp_path / "log/rank_0.txt"
    assert "WARNING megagpt.some: a disk is slow" in text and "ERROR megagpt: this rank ends" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert "nothing" not in text
    logging.getLogger("megagpt.some").warning("later")
    assert "later" not in file.read_text()


def test_rank_log_of_a_quiet_rank_is_no_file(tmp_path):
    with pytest.raises(Stopped), rank_log(tmp_path) as file:
        raise Stopped("as asked")
    assert not file.exists()


def test_rank_log_that_cannot_be_written_hides_no_error(tmp_path, capsys):
    (tmp_path / "log").mkdir()
    (tmp_path / "log/rank_0.txt").symlink_to("/dev/full")  # every write: no space left
    with pytest.raises(ZeroDivisionError), rank_log(tmp_path):
        1 / 0
    assert "No space left" not in capsys.readouterr().err
