"""Pre-training that goes on after a stop: what it checks before, what it takes when the last checkpoint is damaged, what it may change."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import complete_checkpoints, read_state, verify
from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from tests.helpers.tiny_run import documents, finished, megagpt, toy_tokenizer, write_rows

CONFIG = {
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 32},
    "optimizer": {"lr": 1e-2},
    "batch": {"micro_batch_size": 2, "global_batch_size": 4},
    "data": {"train": "tokens/train", "valid": "tokens/train"},
    "sequence_length": 32,
    "train_tokens": 12 * 4 * 32,
    "eval_rows": 4,
    "every": {"save": 4, "keep": 3},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of 12 steps, with checkpoints at 4, 8 and 12, and the tokenizers `tokenizer` and `other`."""
    folder = tmp_path_factory.mktemp("resume").resolve()
    tokenizer = toy_tokenizer(folder / "tokenizer")
    other = toy_tokenizer(folder / "other", vocab_size=289)
    inputs = {"train": [write_rows(folder / "documents.jsonl", documents(20))]}
    for made_by, tokens in ((tokenizer, "tokens"), (other, "other_tokens")):
        tokenize_documents(TokenizeConfig(run=RunConfig(name="toy"), inputs=inputs), made_by, folder / tokens)
    (folder / "pretrain.yaml").write_text(yaml.safe_dump({"run": {"name": "r", "device": "cpu"}, "tokenizer": "tokenizer"} | CONFIG))
    finished(pretrain(folder))
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def pretrain(folder: Path, *settings: str) -> subprocess.CompletedProcess:
    return megagpt("pretrain", "--config", "pretrain.yaml", *(word for text in settings for word in ("--set", text)), cwd=folder)


def stage(folder: Path) -> Path:
    return folder / "runs/r/pretrain"


def losses(folder: Path) -> dict[int, float]:
    rows = map(json.loads, (stage(folder) / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def steps_of(folder: Path) -> list[int]:
    return [read_state(path)["step"] for path in complete_checkpoints(stage(folder))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("model.hidden_size=64", "model.hidden_size = 64: the checkpoint to resume from has 32"),
        ("model.num_layers=3", "model.num_layers = 3: the checkpoint to resume from has 2"),
        ("tokenizer=other data.train=other_tokens/train data.valid=other_tokens/train", "tokenizer = "),
        ("data.split=[0.9,0.1,0] data.valid=null", "data = "),
        ("sequence_length=16", "sequence_length = 16: the checkpoint to resume from has 32"),
        ("run.seed=7", "run.seed = 7: the checkpoint to resume from has 1234"),
        ("optimizer.name=sgd", "optimizer.name = sgd: the checkpoint to resume from has adamw"),
    ],
)
def test_resume_of_another_run_is_refused_with_the_field(trained, settings, message):
    result = pretrain(trained, *settings.split())
    lines = result.stderr.splitlines()
    assert result.returncode == 2 and len(lines) == 1 and message in lines[0] and "run.resume=never" in lines[0], result.stderr
    assert steps_of(trained) == [4, 8, 12]


@pytest.mark.parametrize("damage", ["flip", "cut", "state"])
def test_resume_goes_back_to_the_last_good_checkpoint_and_says_so(folder, damage):
    before, last = losses(folder), stage(folder) / "checkpoints/step_12"
    file = last / ("state.json" if damage == "state" else "optimizer-00001-of-00001.safetensors")
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content[:-9] if damage == "cut" else content)
    result = finished(pretrain(folder))
    assert f"{file.relative_to(folder)}: " in result.stdout and "trying the checkpoint before" in result.stdout
    assert "goes on after step 8" in result.stdout
    assert losses(folder) == before, "steps 9 to 12 again, to the bit"
    assert verify(last) == [], "the damaged one is replaced"


def test_resume_of_a_finished_stage_has_nothing_to_train(folder):
    checkpoint = stage(folder) / "checkpoints/step_12/COMPLETE"
    before, written = losses(folder), checkpoint.stat().st_mtime_ns
    assert "goes on after step 12" in finished(pretrain(folder)).stdout
    assert losses(folder) == before and checkpoint.stat().st_mtime_ns == written


def test_resume_can_make_a_run_longer_and_its_batches_larger(folder):
    """Tokens count, not steps: no row is read twice and none is left out."""
    finished(pretrain(folder, f"train_tokens={(12 * 4 + 3 * 8) * 32}", "batch.global_batch_size=8", "optimizer.schedule=constant"))
    assert steps_of(folder)[-1] == 15
    rows = map(json.loads, (stage(folder) / "metrics.jsonl").read_text().splitlines())
    assert [(row["step"], row["tokens"]) for row in rows if "loss" in row][-4:] == [(12, 48 * 32), (13, 56 * 32), (14, 64 * 32), (15, 72 * 32)]


def test_resume_never_starts_anew(folder):
    finished(pretrain(folder, "run.resume=never", f"train_tokens={6 * 4 * 32}"))
    assert steps_of(folder) == [4, 6] and sorted(losses(folder)) == [1, 2, 3, 4, 5, 6]


def test_checkpoints_of_round_steps_are_kept_besides_the_newest(trained, tmp_path):
    for name in ("tokenizer", "tokens", "pretrain.yaml"):
        (tmp_path / name).symlink_to(trained / name)
    finished(pretrain(tmp_path, "every.save=1", "every.keep=1", "every.keep_every=5"))
    assert steps_of(tmp_path) == [5, 10, 12]


def test_checkpoint_inspection_names_weights_and_optimizer(trained):
    out = finished(megagpt("checkpoint", "inspect", stage(trained) / "checkpoints/step_12")).stdout
    assert "exp_avg.layers.1.mlp.down.weight" in out and '"num_updates": 12' in out
    assert "whole" in finished(megagpt("checkpoint", "verify", stage(trained) / "checkpoints/step_12")).stdout
