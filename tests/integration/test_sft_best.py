"""An SFT run that learns its demonstrations by heart: measured after each epoch, the best checkpoint kept and handed on, resumed exactly."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import complete_checkpoints, find_checkpoint, held_out_of, identity, step_of
from megagpt.cli.main import main
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.data.order import epoch_ends
from megagpt.runtime.run_folder import RunFolder
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import demonstrations, finished, megagpt, toy_tokenizer, write_rows

EPOCHS, ROWS_PER_STEP, HELD_OUT = 4, 3, 6
MACHINE = ("seconds", "tokens_per_s", "tflops_per_device", "memory_gib", "memory_peak_gib")
CONFIG = {
    "parent": "base/sft", "optimizer": {"lr": 3e-2, "schedule": "constant", "weight_decay": 0.0}, "packing": True, "epochs": EPOCHS,
    "batch": {"micro_batch_size": 1, "global_batch_size": ROWS_PER_STEP}, "every": {"keep": 1, "log": 1},
    "data": {"train": ["train.jsonl"], "valid": ["valid.jsonl"], "max_length": 96},
    "gates": {"max_loss_over_start": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("best").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=96, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="base", root=str(folder)), "sft", model, tokenizer, seed=1)
    # All training answers are the same, and wrong: to learn how answers look helps with the held-out ones, to learn this one by heart does not.
    wrong = [{"messages": [row["messages"][0], {"role": "assistant", "content": "The bee."}]} for row in demonstrations()[HELD_OUT:]]
    write_rows(folder / "train.jsonl", wrong)
    write_rows(folder / "valid.jsonl", demonstrations()[:HELD_OUT])
    (folder / "sft.yaml").write_text(yaml.safe_dump({"run": {"name": "whole", "device": "cpu"}} | CONFIG))
    return folder


@pytest.fixture(scope="module")
def output(folder) -> str:
    return finished(megagpt("sft", "--config", "sft.yaml", cwd=folder)).stdout


def rows_of(stage: Path) -> list[dict]:
    rows = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if name not in MACHINE} for row in rows]


def test_sft_is_measured_after_each_epoch_and_its_best_checkpoint_is_kept_and_handed_on(folder, output):
    run = RunFolder(RunConfig(name="whole", root=str(folder / "runs")))
    losses = {row["step"]: row["eval_loss"] for row in rows_of(run.path / "sft") if "eval_loss" in row}
    (packed,) = [line for line in output.splitlines() if line.startswith("[sft] packed: ")]
    num_rows = int(packed.split()[2])
    assert list(losses) == [0, *epoch_ends(EPOCHS, ROWS_PER_STEP, num_rows)]
    start, *after = losses.values()
    best = min((loss, step) for step, loss in losses.items())[1]
    assert min(after) < start and list(losses)[-1] != best, f"the task is one to overfit: {losses}"

    checkpoint = find_checkpoint("sft", run)
    assert step_of(checkpoint) == best and held_out_of(checkpoint).value == losses[best]
    assert [step_of(path) for path in complete_checkpoints(run.path / "sft")] == [best, list(losses)[-1]]
    entry = run.manifest["sft"]
    assert (entry["output"], entry["checkpoint"], entry["loss"]) == (f"runs/whole/sft/checkpoints/step_{best}", identity(checkpoint), losses[best])
    assert run.gates[0]["value"] == pytest.approx(losses[best] / start)
    assert f"best checkpoint: step_{best} (the last, step_{list(losses)[-1]}: {after[-1]:.3f})" in output


def test_packed_sft_goes_on_from_its_best_checkpoint_as_if_it_had_not_been_stopped(folder, output):
    whole, copy = folder / "runs/whole", folder / "runs/stopped"
    shutil.copytree(whole, copy)
    best, last = complete_checkpoints(copy / "sft")
    shutil.rmtree(last)
    out = finished(megagpt("sft", "--config", "sft.yaml", "--set", "run.name=stopped", cwd=folder)).stdout
    assert f"[sft] goes on after step {step_of(best)}" in out
    assert rows_of(copy / "sft") == rows_of(whole / "sft")
    sums = [json.loads((path / "sft/checkpoints" / last.name / "checksums.json").read_text()) for path in (whole, copy)]
    assert [sums[0][name] for name in sums[0] if name.endswith(".safetensors")] == [sums[1][name] for name in sums[0] if name.endswith(".safetensors")]


@pytest.mark.parametrize(("override", "line"), [("packing=false", "packing = False"), ('data.valid=["train.jsonl"]', "held_out_data = ")])
def test_sft_does_not_go_on_with_other_packing_or_other_held_out_data(override, line, folder, output, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["sft", "--config", "sft.yaml", "--set", override]) == 2
    assert re.search(rf"{line}.*: the checkpoint to resume from has", capsys.readouterr().err)
