"""`megagpt reward` as a user runs it: weighted slices, loss terms, several annotators, a scale set by demonstrations, and the report it leaves."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from megagpt.checkpoint.load import Checkpoint
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.tokenizer.chat import encode_chat
from tests.helpers.plain import PlainGPT
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import demonstrations, facts, finished, megagpt, question, rankings, toy_tokenizer, write_rows
from tests.helpers.tolerance import NORMALISED_SCORE_ABSOLUTE

MARKS = ([0, 1], [0, 1], [1, 0], [0, 0])


def judged() -> list[dict]:
    """Two annotators on one pair for each question; the second differs in half of them, and calls a tie in a quarter."""
    rows = []
    for (who, does, whom), second in zip(facts(), itertools.cycle(MARKS)):
        pair = {"prompt": question(who, does), "answers": [f"The {whom}.", "A stone."]}
        rows += [pair | {"ranks": [0, 1], "annotator": "ann"}, pair | {"ranks": second, "annotator": "bob"}]
    return rows


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> tuple[Path, str]:
    """The stage's folder and what it printed."""
    folder = tmp_path_factory.mktemp("reward").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    same = [{"prompt": "q", "chosen": "The same.", "rejected": "The same."}] * 3
    for name, rows in {"rankings": rankings() + same, "judged": judged(), "demonstrations": demonstrations()}.items():
        write_rows(folder / f"{name}.jsonl", rows)
    config = {
        "run": {"name": "toy", "device": "cpu"}, "parent": "base/sft", "optimizer": {"lr": 1e-2, "weight_decay": 0.0},
        "batch": {"micro_batch_size": 4, "global_batch_size": 8},
        "data": {"train": ["rankings.jsonl", {"path": "judged.jsonl", "slice": "stones", "weight": 0.5}], "valid_fraction": 0.3, "max_length": 48},
        "loss": {"margin": 0.2, "label_smoothing": 0.05, "centring": 0.01}, "normalise_on": ["demonstrations.jsonl"],
        "every": {"save": 8, "keep": 9},
    }  # fmt: skip
    (folder / "reward.yaml").write_text(yaml.safe_dump(config))
    return folder / "runs/toy/reward", finished(megagpt("reward", "--config", "reward.yaml", cwd=folder)).stdout


def test_reward_stage_counts_what_it_leaves_out(stage):
    assert "3 two answers are equal" in stage[1] and "12 all answers are tied" in stage[1]


def test_reward_stage_reports_slices_order_and_annotators(stage):
    evaluation = json.loads((stage[0] / "evaluation.json").read_text())
    assert set(evaluation["slices"]) == {"rankings", "stones"}
    assert sum(rate["pairs"] for rate in evaluation["slices"].values()) == evaluation["pair_accuracy"]["pairs"]
    for rate in (evaluation["pair_accuracy"], *evaluation["slices"].values()):
        assert 0 <= rate["interval"][0] <= rate["value"] <= rate["interval"][1] <= 1
    assert evaluation["kendall_tau_b"]["rankings"] > 0 and 0 <= evaluation["calibration"]["ece"] <= 1
    agreement = evaluation["agreement"]
    assert agreement["annotators"] == 2 and 0 < agreement["agreement"] < 1
    assert agreement["pairs"] == evaluation["pair_accuracy"]["prompts"]  # one pair of each held-out question, tied ones too
    rows = [json.loads(line) for line in (stage[0] / "metrics.jsonl").read_text().splitlines()]
    assert evaluation["pair_accuracy"]["value"] == pytest.approx([row["eval_accuracy"] for row in rows if "eval_accuracy" in row][-1])


def test_reward_stage_draws_its_report(stage):
    assert {"calibration.png", "length_bias.png"} <= {path.name for path in (stage[0] / "plots").iterdir()}


def test_reward_stage_puts_the_demonstrations_at_mean_0_and_deviation_1(stage):
    """Scored by the plain model on each checkpoint's weights, one demonstration at a time."""
    paths = sorted((stage[0] / "checkpoints").glob("step_*"))
    assert len(paths) > 1
    for path in paths:
        checkpoint = Checkpoint.open(path)
        model, tokenizer, scores = PlainGPT(checkpoint.model_config, scalar_head=True).eval(), checkpoint.tokenizer(), []
        with checkpoint.tensors("model") as read, torch.no_grad():
            model.load_state_dict({name: read(name) for name in model.state_dict()})
            for row in demonstrations():
                tokens, _ = encode_chat(tokenizer, row["messages"])
                scores.append(float(model(torch.tensor([tokens]))[0, -1]))
        normalised = (np.array(scores) - checkpoint.state["reward_mean"]) / checkpoint.state["reward_std"]
        assert normalised.mean() == pytest.approx(0, abs=NORMALISED_SCORE_ABSOLUTE) and normalised.std() == pytest.approx(1, abs=NORMALISED_SCORE_ABSOLUTE)
