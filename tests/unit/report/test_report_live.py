"""Curves of a stage while it runs."""

import json
import time

import pytest

from megagpt.report import live, plots
from megagpt.report.live import drawing


def stage_with(folder, num_steps, **constant):
    folder.mkdir(exist_ok=True)
    rows = [{"step": step, "loss": 5.0 - 0.1 * step, "lr": 1e-3 * step, **constant} for step in range(1, num_steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def pictures(folder):
    return {path.stem for path in (folder / "plots").glob("*.png")}


def test_curves_are_drawn_at_the_end_also_of_a_stage_that_fails(tmp_path):
    with pytest.raises(KeyError), drawing(tmp_path / "pretrain"):
        stage_with(tmp_path / "pretrain", 5)
        raise KeyError
    assert pictures(tmp_path / "pretrain") == {"loss", "lr"}


def test_curves_are_drawn_in_between(tmp_path):
    stage = stage_with(tmp_path / "sft", 5, grad_norm=1.0)
    with drawing(stage, every_seconds=0.05):
        deadline = time.monotonic() + 20
        while pictures(stage) != {"loss", "lr", "grad_norm"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_curves_of_settings_that_never_change_are_left_out(tmp_path):
    with drawing(stage_with(tmp_path / "pretrain", 5, batch_size=8, loss_scale=1.0)):
        pass
    assert pictures(tmp_path / "pretrain") == {"loss", "lr"}


def test_curves_come_from_the_rank_that_prints(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "is_main_rank", lambda: False)
    with drawing(stage_with(tmp_path / "sft", 3)):
        pass
    assert pictures(tmp_path / "sft") == set()


def test_curves_that_fail_cost_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "draw_stage", lambda *_: 1 / 0)
    with drawing(stage_with(tmp_path / "sft", 3)):
        pass
    assert capsys.readouterr().err == "[sft] curves not drawn: ZeroDivisionError: division by zero\n"
