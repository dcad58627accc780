"""The guard's verdicts on fabricated losses."""

import json
import math

import pytest

from megagpt.cli import main as command_line
from megagpt.config.schema import AnomalyConfig
from megagpt.engine.anomaly import AnomalyError, AnomalyGuard

CONFIG = AnomalyConfig(spike_factor=2.0, window=5, max_skipped=3, max_rollbacks=2)


def fed(config=CONFIG, losses=(4.0, 3.0, 3.0, 2.0, 3.0)) -> AnomalyGuard:
    guard = AnomalyGuard(config)
    assert [guard.observe(step, loss, 1.0) for step, loss in enumerate(losses, 1)] == ["ok"] * len(losses)
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.inf), (2.0, math.nan)])
def test_anomaly_not_finite_steps_are_skipped_and_stop_the_run_in_a_row(loss, norm):
    guard = fed()
    assert [guard.observe(step, loss, norm) for step in (6, 7)] == ["skip", "skip"]
    assert guard.observe(8, 3.0, 1.0) == "ok", "a good step starts the count anew"
    assert [guard.observe(step, loss, norm) for step in (9, 10)] == ["skip", "skip"]
    assert guard.counts() == {"skipped": 4, "rollbacks": 0}
    with pytest.raises(AnomalyError, match=r"step 11: .*skipped 3 steps in a row \(anomaly.max_skipped\)"):
        guard.observe(11, loss, norm)


def test_anomaly_spikes_roll_back_until_the_limit():
    guard = fed()  # median 3
    assert guard.observe(6, 6.0, 1.0) == "ok", "not above the bound"
    assert guard.observe(7, 6.01, 1.0) == "rollback"
    guard.went_back()
    assert guard.observe(7, 60.0, 1.0) == "rollback", "a spike is no part of the median"
    guard.went_back()
    assert guard.counts() == {"skipped": 0, "rollbacks": 2}
    with pytest.raises(AnomalyError, match=r"step 7: loss 9 against a median of 3; the run went back 2 times before \(anomaly.max_rollbacks\)"):
        guard.observe(7, 9.0, 1.0)


def test_anomaly_spikes_that_nothing_could_be_done_about_are_not_counted():
    guard = fed()
    assert [guard.observe(step, 9.0, 1.0) for step in range(6, 12)] == ["rollback"] * 6
    assert guard.counts() == {"skipped": 0, "rollbacks": 0}


def test_anomaly_spikes_need_a_full_window_and_a_factor():
    assert fed(losses=[3.0] * 4).observe(5, 99.0, 1.0) == "ok"
    assert fed(AnomalyConfig(window=2), [3.0] * 4).observe(5, 99.0, 1.0) == "ok"


def test_anomaly_median_forgets_what_is_older_than_the_window():
    guard = fed(losses=[30.0] * 5 + [3.0] * 5)
    assert guard.observe(11, 7.0, 1.0) == "rollback"


def test_anomaly_state_goes_through_json_and_judges_the_same():
    guard = fed()
    guard.observe(6, math.nan, 1.0)
    assert guard.observe(7, 9.0, 1.0) == "rollback"
    guard.went_back()
    guard.observe(8, math.nan, 1.0)
    other = AnomalyGuard(CONFIG)
    other.load(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state() and other.counts() == {"skipped": 2, "rollbacks": 1}
    assert other.observe(9, math.nan, 1.0) == "skip"
    with pytest.raises(AnomalyError):
        other.observe(10, math.nan, 1.0)


def test_anomaly_limit_is_one_line_and_a_failure_on_the_command_line(monkeypatch, capsys):
    def run(*_):
        raise AnomalyError("step 11: too many")

    monkeypatch.setattr("megagpt.cli.report.run", run)
    monkeypatch.setattr("megagpt.cli.report.add_arguments", lambda *_: None)
    monkeypatch.delenv("RANK", raising=False)
    assert command_line.main(["report"]) == 1
    assert capsys.readouterr().err == "megagpt: step 11: too many\n"
