"""What the report says of a PPO run beside its curves."""

import json

import pytest
from matplotlib.image import imread

from megagpt.report.memory import draw_memory
from megagpt.report.rlhf import MAX_ROWS, doctor_table, draw_phases, sample_table


def test_report_rlhf_draws_the_time_of_each_phase(tmp_path):
    rows = [{"step": step, "rollout_seconds": 2.0, "score_seconds": 1.0, "update_seconds": 4.0 + step} for step in range(1, 9)]
    ((title, path),) = draw_phases(rows, tmp_path / "plots")
    assert title == "Time of a round by phase" and imread(path).std() > 0.05
    assert draw_phases([{"step": 1, "reward": 0.1}], tmp_path / "none") == [] and not (tmp_path / "none").exists()


def test_report_rlhf_draws_memory_of_every_rank(tmp_path):
    assert draw_memory(tmp_path) == []

    def pair(predicted: int, measured: int | None) -> dict:
        return {"predicted": predicted, "measured": measured}

    models = [{"policy": {"weights": pair(4, 4), "optimizer": pair(8, 9)}, "reference": {"weights": pair(4, 4)}}, {"reward": {"weights": pair(4, 4)}}]
    phases = {"rollout": pair(20, 21), "update policy": pair(30, None)}  # left out of the round
    (tmp_path / "memory.json").write_text(json.dumps({"step": 2, "device": "cpu", "ranks": [{"models": held, "phases": phases} for held in models]}))
    ((title, path),) = draw_memory(tmp_path)
    assert title == "Memory by rank and model" and path == tmp_path / "plots/memory.png" and imread(path).std() > 0.05


def test_report_rlhf_says_what_the_doctor_said():
    assert doctor_table([{"step": 1, "reward": 0.3}]) == []
    rows = [{"step": step, "doctor": f"clip: {step}0% of the tokens: <too many>"} for step in range(1, MAX_ROWS + 3)]
    text = "".join(doctor_table(rows))
    assert f"spoke {MAX_ROWS + 2} times; the last {MAX_ROWS}:" in text and "<td>clip</td>" in text
    assert "30% of the tokens: &lt;too many&gt;" in text and ">20%" not in text


@pytest.mark.parametrize("torn", ["", '{"step": 9, "pro'])
def test_report_rlhf_shows_the_last_answers(tmp_path, torn):
    path = tmp_path / "samples.jsonl"
    assert sample_table(path) == []
    rows = [{"step": step, "prompt": "why?", "answer": answer, "score": 0.5, "kl": 1.25, "length": 3} for step in (0, 6) for answer in (f"<b>{step}", "")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    text = "".join(sample_table(path))
    assert "after round 6" in text and "&lt;b&gt;6" in text and "(no text)" in text and "&lt;b&gt;0" not in text
    assert "<td>+0.50</td>" in text and "<td>1.25</td>" in text
