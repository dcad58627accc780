"""`megagpt dpo` as a user runs it: what it reports, which checkpoint it keeps, and who may start from it."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import complete_checkpoints, find_checkpoint, held_out_of, step_of
from megagpt.checkpoint.load import Checkpoint
from megagpt.cli.main import main
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.pipeline.launch import launch_command
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import command, facts, finished, megagpt, prompts, question, rankings, toy_tokenizer, write_rows

CONFIG = {
    "parent": "base/sft", "optimizer": {"lr": 3e-2, "schedule": "constant"}, "batch": {"micro_batch_size": 4, "global_batch_size": 8}, "epochs": 4,
    "data": {"train": ["rankings.jsonl", {"path": "bias.jsonl", "slice": "bias", "weight": 2}], "valid": ["valid.jsonl"], "max_length": 48},
    "every": {"keep": 1, "log": 1}, "gates": {"min_implicit_pair_accuracy": 0.75},
}  # fmt: skip
RLHF = {
    "policy": "dpo", "reward": None, "reward_function": "tests.helpers.rewards:letters",
    "placement": {role: {"ranks": [0]} for role in ("policy", "reference", "value")},
    "prompts": {"files": ["prompts.jsonl"], "max_prompt_length": 40, "max_response_length": 8, "eval_prompts": 4},
    "ppo": {"steps": 1, "rollout_batch_size": 4, "minibatch_size": 4, "micro_batch_size": 2},
}  # fmt: skip
TRAINED = slice(0, 36)
"""Of the 48 rankings; the others are held out."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dpo").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=64, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    # Half of the training rankings say the opposite of the others, of the held-out ones none does: to learn them by heart does not help.
    turned = [row | {"ranks": [None if rank is None else 9 - rank for rank in row["ranks"]]} if i % 2 else row for i, row in enumerate(rankings())]
    write_rows(folder / "rankings.jsonl", turned[TRAINED])
    write_rows(folder / "valid.jsonl", rankings()[TRAINED.stop :])
    same = {"prompt": "q", "chosen": "The same.", "rejected": "The same."}
    pairs = [{"prompt": question(who, does), "chosen": f"The {whom}.", "rejected": "No no no."} for who, does, whom in itertools.islice(facts(), 12)]
    write_rows(folder / "bias.jsonl", [same, *pairs])
    write_rows(folder / "prompts.jsonl", prompts())
    for stage, config in {"dpo": CONFIG, "rlhf": RLHF}.items():
        (folder / f"{stage}.yaml").write_text(yaml.safe_dump({"run": {"name": "toy", "device": "cpu"}} | config))
    return folder


@pytest.fixture(scope="module")
def output(folder) -> str:
    return finished(megagpt("dpo", "--config", "dpo.yaml", cwd=folder)).stdout


def run_of(folder: Path) -> RunFolder:
    return RunFolder(RunConfig(name="toy", root=str(folder / "runs")))


def test_dpo_stage_measures_each_epoch_and_keeps_the_checkpoint_of_the_lowest_held_out_loss(folder, output):
    run = run_of(folder)
    rows = [json.loads(line) for line in (run.path / "dpo/metrics.jsonl").read_text().splitlines()]
    held_out = {row["step"]: row for row in rows if "eval_loss" in row}
    assert list(held_out) == [0, 6, 12, 18, 24]  # 48 rankings in batches of 8
    start = held_out.pop(0)
    assert start["eval_loss"] == pytest.approx(math.log(2), abs=1e-6) and start["eval_accuracy"] == 0.5 and start["eval_margin"] == 0
    best = min(held_out, key=lambda step: held_out[step]["eval_loss"])
    assert held_out[best]["eval_loss"] < start["eval_loss"] and best != 24, f"the task is one to overfit: {held_out}"
    checkpoint = find_checkpoint("dpo", run)
    assert step_of(checkpoint) == best and held_out_of(checkpoint).value == held_out[best]["eval_loss"]
    assert [step_of(path) for path in complete_checkpoints(run.path / "dpo")] == [best, 24]
    entry = run.manifest["dpo"]
    assert (entry["loss"], entry["accuracy"], entry["margin"]) == tuple(held_out[best][f"eval_{name}"] for name in ("loss", "accuracy", "margin"))
    (gate,) = run.gates
    assert (gate["name"], gate["value"], gate["verdict"]) == ("implicit_pair_accuracy", entry["accuracy"], "passed" if entry["accuracy"] >= 0.75 else "failed")
    assert "(left out: 1 two answers are equal)" in output and f"best checkpoint: step_{best} (the last: step_24)" in output


def test_dpo_stage_with_rows_shared_by_two_ranks_has_the_metrics_of_one(folder, output):
    """Both parts of context parallelism: what is learned, and the reference's and the held-out answers' log-probabilities."""
    settings = ["run.name=shared", "parallel.context_parallel_size=2", "epochs=1", "optimizer.warmup_ratio=0.4"]  # as long as 0.1 of four epochs
    words = ["dpo", "--config", "dpo.yaml", *(word for setting in settings for word in ("--set", setting))]
    finished(command(*launch_command(words, 2, None), cwd=folder))
    one, two = ([json.loads(line) for line in (folder / f"runs/{name}/dpo/metrics.jsonl").read_text().splitlines()] for name in ("toy", "shared"))
    for metric in ("loss", "margin", "grad_norm", "eval_loss", "eval_margin"):
        here = [row[metric] for row in two if metric in row]
        assert len(here) >= 2 and here == pytest.approx([row[metric] for row in one if metric in row][: len(here)], rel=1e-4, abs=1e-5), metric


def test_dpo_stage_has_its_place_in_the_report(folder, output):
    assert main(["report", str(folder / "runs/toy")]) == 0
    page = (folder / "runs/toy/report.html").read_text()
    assert "Direct preference optimization" in page and "order by the implicit reward" in page
    assert {f"{name}.png" for name in ("loss", "accuracy", "margin", "chosen_reward")} <= {path.name for path in (folder / "runs/toy/dpo/plots").iterdir()}


def test_dpo_checkpoint_is_a_language_model_that_ppo_starts_from(folder, output):
    checkpoint = Checkpoint.open(find_checkpoint("dpo", run_of(folder))).language_model()
    assert checkpoint.state["parents"]["parent"]["path"].endswith("base/sft/checkpoints/step_1")
    finished(megagpt("rlhf", "--config", "rlhf.yaml", cwd=folder))
    assert run_of(folder).manifest["rlhf"]["parents"]["policy"]["path"] == str(checkpoint.path.relative_to(folder))


@pytest.mark.parametrize(("override", "line"), [("loss.beta=0.2", "loss.beta = 0.2"), ("data.train=[rankings.jsonl, bias.jsonl]", "data = ")])
def test_dpo_stage_does_not_go_on_with_another_beta_or_other_weights(override, line, folder, output, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["dpo", "--config", "dpo.yaml", "--set", override]) == 2
    assert re.search(rf"{line}.*: the checkpoint to resume from has", capsys.readouterr().err)
