"""report.html and its pictures from fabricated run folders: whole, half-finished, hostile."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from megagpt.config.schema import RunConfig
from megagpt.report.build import build_report
from megagpt.report.plots import PANELS, draw_stage, points, smooth
from megagpt.runtime.metrics_file import read_metrics
from megagpt.runtime.run_folder import RunFolder

SPEED = {"lr": 1e-3, "loss_scale": 1024.0, "batch_size": 8, "tokens_per_s": 1e5, "tflops_per_device": 40.0, "memory_gib": 3.0}
TRAINING = {
    "pretrain": {"loss": 5.0, "grad_norm": 1.0, "tokens": 4096} | SPEED,
    "sft": {"loss": 3.0, "grad_norm": 1.0} | SPEED,
    "reward": {"loss": 0.6, "accuracy": 0.7, "grad_norm": 1.0} | SPEED,
    "dpo": {"loss": 0.6, "accuracy": 0.7, "margin": 0.3, "chosen_reward": -0.1, "rejected_reward": -0.4, "grad_norm": 1.0} | SPEED,
    "rlhf": {"reward": 0.1, "kl": 1.0, "length": 30.0, "policy_clip_fraction": 0.1, "explained_variance": -4.0, "policy_entropy": 2.0, "value_loss": 0.3},
}
EVALUATION = {
    "pretrain": {"eval_loss": 5.1, "perplexity": 164.0, "bits_per_byte": 2.6},
    "sft": {"eval_loss": 3.1},
    "reward": {"eval_accuracy": 0.7},
    "dpo": {"eval_loss": 0.6, "eval_accuracy": 0.7, "eval_margin": 0.3, "eval_chosen_reward": -0.1, "eval_rejected_reward": -0.4},
    "rlhf": {"eval_reward": 0.2, "eval_kl": 1.0, "eval_length": 29.0, "eval_held_out_reward": 0.1, "eval_win_rate": 0.6},
}
HOSTILE = "<script>alert(1)</script>"


def make_run(root, name="toy") -> RunFolder:
    run = RunFolder(RunConfig(name=name, root=str(root)))
    run.path.mkdir()
    return run


def write_metrics(run, stage, num_steps=30):
    rows = [{"step": 0, **EVALUATION[stage], "seconds": 1.0}]
    rows += [{"step": step, **{k: v * (1 + 0.1 * np.sin(step)) for k, v in TRAINING[stage].items()}, "seconds": 2.5 * step} for step in range(1, num_steps + 1)]
    rows.append({"step": num_steps, **EVALUATION[stage], "seconds": 2.5 * num_steps})
    (run.stage(stage) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with a failed gate and a sample that would run a script; and its page."""
    run = make_run(tmp_path_factory.mktemp("runs"))
    for stage in TRAINING:
        write_metrics(run, stage)
        config = {"parallel": {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "data_parallel_size": None, "zero_stage": 3}}
        if stage == "rlhf":
            config = {"placement": {"policy": {"ranks": [0, 1], "tp": 2, "pp": 1}, "value": {"ranks": [3], "tp": 1, "pp": 1}}}
        (run.stage(stage) / "config.yaml").write_text(yaml.safe_dump(config))
    run.record("data", output=str(run.stage("data")), source="python-docs")
    run.record("pretrain", output=str(run.path / "pretrain/checkpoints/step_30"), parents={}, loss=4.2, unigram_cross_entropy=5.6)
    run.record("sft", output="elsewhere/step_30", parents={"parent": {"path": str(run.path / "pretrain/checkpoints/step_30"), "checkpoint": "ab"}})
    run.record("reward", output="r", parents={}, accuracy=0.86, longer_answer_floor=0.5, overlap_floor=0.52)
    run.record("rlhf", output="p", parents={}, kl=12.0)
    (run.path / "sft" / "finished.json").write_text('{"key": "k", "seconds": 119.6}')
    run.gate("reward", "pair_accuracy", 0.86, ">= 0.8", True)
    run.gate("rlhf", "kl", 12.0, "<= 10", False)
    samples = [{"prompt": f"Q{i} {HOSTILE}", "before": {"text": HOSTILE, "score": -0.5}, "after": {"text": "", "score": 1.25}} for i in range(4)]
    (run.path / "rlhf" / "samples.json").write_text(json.dumps(samples))
    statistics = {"source": HOSTILE, "documents": {"train": 4390, "dropped": {"too_short": 8}}, "files": {"a": {"bytes": 7, "sha256": "f" * 64}}}
    (run.path / "data" / "statistics.json").write_text(json.dumps(statistics))
    return run, build_report(run).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Checks that tags close in order; collects names, attributes that load something, and text."""

    VOID = {"meta", "img", "wbr"}

    def __init__(self, page):
        super().__init__()
        self.open, self.names, self.sources, self.text = [], [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.open += [] if tag in self.VOID else [tag]
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "style")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_has_every_section(whole):
    text = Tags(whole[1]).text
    for heading in ("Run toy", "Gates", "Stages", "Pre-training", "Supervised fine-tuning", "Reward model", "Direct preference optimization", "PPO", "Conversations before and after PPO", "Data"):
        assert heading in text
    assert "Missing" not in text
    assert "synthetic rankings" in text


def test_report_loads_nothing_and_runs_nothing(whole):
    run, page = whole
    tags = Tags(page)
    assert not {"script", "link", "iframe", "object", "base"} & set(tags.names)
    assert tags.names.count("img") == len(tags.sources) == sum(map(len, PANELS.values())) == len(list(run.path.glob("*/plots/*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "url(" not in page and "@import" not in page


def test_report_escapes_what_files_hold(whole):
    assert HOSTILE not in whole[1]
    assert Tags(whole[1]).text.count(HOSTILE) == 7  # question and answer of three samples, and the source of the data


def test_report_shows_three_samples_with_scores(whole):
    text = Tags(whole[1]).text
    assert text.count("Before: score -0.50") == text.count("After: score +1.25") == text.count("(no text)") == 3


def test_report_shows_a_failed_gate_as_failed(whole):
    text = Tags(whole[1]).text
    assert "1 of 2 failed" in text
    assert text.count("✗ failed") == 1 and text.count("✓ passed") == 1


def test_report_stage_table_names_parents_layout_output_and_time(whole):
    text = Tags(whole[1]).text
    assert "parent: pretrain/checkpoints/step_30" in text
    assert "tp 2 · pp 1 · ZeRO 3" in text
    assert "policy: tp 2 · pp 1 on ranks 0, 1" in text
    assert "elsewhere/step_30" in text
    assert "2 min 0 s" in text and "1 min 15 s" in text  # of finished.json, and of the last metric


def test_report_data_table_flattens_counts(whole):
    text = Tags(whole[1]).text
    assert "train 4,390" in text and "documents / dropped" in text and "too_short 8" in text and "ffff" not in text


def test_report_pictures_show_something(whole):
    for path in whole[0].path.glob("*/plots/*.png"):
        pixels = imread(path)[..., :3]
        assert pixels.shape[0] > 400 and pixels.shape[1] > 700
        assert (pixels < 0.9).any(axis=-1).mean() > 0.01, path


def test_report_of_a_half_finished_run_says_what_is_missing(tmp_path):
    run = make_run(tmp_path)
    write_metrics(run, "sft", num_steps=1)
    with open(run.path / "sft" / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')  # killed while writing
    text = Tags(build_report(run).read_text(encoding="utf-8")).text
    assert "Missing, since nothing was recorded yet: Pre-training, Reward model, PPO." in text
    assert "not finished" in text and "No gates recorded yet" in text
    assert "1 unreadable line of metrics.jsonl left out" in text
    assert (run.path / "sft" / "plots" / "loss.png").exists()
    assert sorted(path.name for path in run.path.iterdir()) == ["report.html", "sft"]


def test_report_of_an_empty_run_folder(tmp_path):
    assert "No stage has started yet" in build_report(make_run(tmp_path)).read_text(encoding="utf-8")


def test_report_reads_the_whole_lines_of_torn_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "note": "\xc3')
    assert read_metrics(path) == ([{"step": 1, "loss": 2.0}], 1)


def test_report_draws_the_lines_that_the_manifest_knows(tmp_path):
    rows = [{"step": step, "eval_loss": 5.0} for step in (0, 1)]
    pictures = []
    for facts in ({}, {"unigram_cross_entropy": 5.6}):
        [(_, path)] = draw_stage("pretrain", rows, facts, tmp_path)
        pictures.append(path.read_bytes())
    assert pictures[0] != pictures[1]


def test_report_points_skip_diverged_values_and_keep_the_last_of_a_step():
    rows = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": None}, {"step": 3, "eval_loss": 4.0}]
    assert points(rows, "step", "loss").tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert points(rows, "step", "absent").shape == (0, 2)


@pytest.mark.parametrize("num_points, expected", [(1, 1), (19, 1), (60, 3), (100, 5)])
def test_report_smoothing_keeps_a_straight_line(num_points, expected):
    line = np.arange(num_points, dtype=float)
    smoothed, width = smooth(line)
    margin = width // 2
    assert width == expected and len(smoothed) == num_points
    np.testing.assert_allclose(smoothed[margin : num_points - margin], line[margin : num_points - margin], rtol=1e-12)
    np.testing.assert_allclose(smooth(np.full(num_points, 3.0))[0], 3.0, rtol=1e-12)
