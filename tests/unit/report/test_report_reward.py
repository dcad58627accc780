"""Pictures and tables of a reward model's evaluation."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from megagpt.config.schema import RunConfig
from megagpt.report.build import build_report
from megagpt.report.reward import draw_evaluation, evaluation_tables, read_evaluation
from megagpt.runtime.run_folder import RunFolder


def rate(value):
    return {"value": value, "interval": [value - 0.1, value + 0.1], "prompts": 1234, "rankings": 1300, "pairs": 2000}


EVALUATION = {
    "step": 9,
    "pair_accuracy": rate(0.7),
    "kendall_tau_b": {"value": 0.4, "rankings": 12, "by_number_of_answers": {"3": {"value": 0.4, "rankings": 12}}},
    "calibration": {
        "ece": 0.05,
        "bins": [
            {"from": 0.5, "to": 0.75, "pairs": 20, "confidence": 0.6, "agreement": 0.55, "share": 1.0},
            {"from": 0.75, "to": 1.0, "pairs": 0, "confidence": None, "agreement": None, "share": 0.0},
        ],
    },
    "length": {
        "longer_wins": {"annotators": 0.55, "model": 0.81}, "score_correlation": 0.42, "better_is_longer": rate(0.8), "better_is_shorter": rate(0.45),
        "bins": [{"from": -50.0, "to": 0.0, **rate(0.4)}, {"from": 0.0, "to": 60.0, **rate(0.8)}],
    },
    "agreement": {"pairs": 30, "annotators": 3, "agreement": 0.9, "kappa": 0.8},
    "slices": {"<b>bias</b>": rate(0.61)},
}  # fmt: skip
BARE = EVALUATION | {
    "kendall_tau_b": None, "agreement": EVALUATION["agreement"] | {"kappa": None}, "slices": {},
    "length": {"longer_wins": None, "score_correlation": None, "better_is_longer": None, "better_is_shorter": None, "bins": [{"from": 0.0, "to": 0.0, **rate(0.5)}]},
}  # fmt: skip


@pytest.mark.parametrize("evaluation", [EVALUATION, BARE], ids=["whole", "bare"])
def test_report_draws_calibration_and_length_bias(evaluation, tmp_path):
    drawn = draw_evaluation(evaluation, tmp_path / "plots")
    assert [path.name for _, path in drawn] == ["calibration.png", "length_bias.png"]
    for _, path in drawn:
        pixels = imread(path)
        assert pixels.shape[:2] == (544, 832) and np.ptp(pixels[..., :3]) > 0.9


def test_report_page_shows_slices_and_escapes_their_names(tmp_path):
    run = RunFolder(RunConfig(name="toy", root=str(tmp_path)))
    (run.stage("reward") / "metrics.jsonl").write_text('{"step": 0, "eval_accuracy": 0.5, "seconds": 1.0}\n')
    (run.stage("reward") / "evaluation.json").write_text(json.dumps(EVALUATION))
    page = build_report(run).read_text(encoding="utf-8")
    assert "&lt;b&gt;bias&lt;/b&gt;" in page and "<b>bias" not in page
    assert "0.610" in page and "0.510 to 0.710" in page and "81% with the model" in page and "κ 0.80" in page
    assert page.count("data:image/png") == 3  # accuracy, calibration, length


def test_report_tables_leave_out_what_was_not_measured():
    text = "".join(evaluation_tables(BARE))
    assert "0.700" in text and "None" not in text and "longer" not in text


def test_report_without_an_evaluation(tmp_path):
    assert read_evaluation(tmp_path) is None
