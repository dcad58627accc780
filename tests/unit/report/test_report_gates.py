"""The table of gates on the terminal."""

import pytest

from megagpt.config.schema import RunConfig
from megagpt.report.gates import print_gates, show
from megagpt.runtime.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(RunConfig(name="toy", root=str(tmp_path)))


def test_gates_table_is_aligned_and_passes(run, capsys):
    run.gate("pretrain", "loss_over_unigram", 0.70234, "<= 0.75", True)
    run.gate("rlhf", "kl", 6.0, "<= 10", True)
    assert print_gates(run) is True
    head, first, second, summary = capsys.readouterr().out.splitlines()
    assert first.split() == ["pretrain", "loss_over_unigram", "0.7023", "<=", "0.75", "passed"]
    assert head.index("value") == first.index("0.7023") == second.index("6 ")
    assert head.index("verdict") == first.index("passed") == second.index("passed")
    assert summary == "2 gates: all passed"


def test_gates_table_names_what_failed(run, capsys):
    run.gate("pretrain", "loss_over_unigram", 0.7, "<= 0.75", True)
    run.gate("rlhf", "kl", 12.0, "<= 10", False)
    assert print_gates(run) is False
    assert capsys.readouterr().out.splitlines()[-1] == "2 gates: 1 FAILED (rlhf kl)"


def test_gates_none_recorded(run, capsys):
    assert print_gates(run) is True
    assert "no gates recorded" in capsys.readouterr().out


@pytest.mark.parametrize("value, text", [(0.123456, "0.1235"), (1234567, "1,234,567"), (True, "True"), ("python-docs", "python-docs")])
def test_gates_show(value, text):
    assert show(value) == text
