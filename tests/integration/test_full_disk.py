"""A disk that is really full: what was saved stays whole, the run says what it could not write, and goes on once there is room."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from megagpt.checkpoint.layout import CHECKSUMS, complete_checkpoints, read_json, verify
from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from megagpt.pipeline.launch import launch_command
from tests.helpers.tiny_run import command, documents, finished, kill_group, start, toy_tokenizer, write_rows

RANKS, STEPS, TIME_LIMIT = 2, 40, 120.0
CONFIG = {
    "tokenizer": "tokenizer",
    "model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "max_sequence_length": 32},
    "optimizer": {"lr": 1e-2},
    "batch": {"micro_batch_size": 2, "global_batch_size": 4},
    "data": {"train": "tokens/train", "valid": "tokens/train"},
    "sequence_length": 32,
    "train_tokens": STEPS * 4 * 32,
    "eval_rows": 4,
    "every": {"save": 4},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    tokenizer = toy_tokenizer(tmp_path / "tokenizer")
    inputs = {"train": [write_rows(tmp_path / "documents.jsonl", documents(20))]}
    tokenize_documents(TokenizeConfig(run=RunConfig(name="toy"), inputs=inputs), tokenizer, tmp_path / "tokens")
    return tmp_path


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, with room for some checkpoints of 1.5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"root, but not permitted to mount: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(ballast: Path) -> None:
    """To the last byte."""
    with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def words_of(folder: Path, root: Path) -> list[str]:
    """The command that pre-trains into `root`."""
    path = folder / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": "r", "root": str(root), "device": "cpu"}} | CONFIG))
    return launch_command(["pretrain", "--config", path.name], RANKS, None)


def run_and_fill(words: list[str], folder: Path, stage: Path, ballast: Path) -> tuple[int, str]:
    """The run, on a disk that is kept full from the first checkpoint on. Returns its exit code and all that it printed."""
    log = folder / "full.log"
    with open(log, "wb") as output:
        launcher = start(*words, cwd=folder, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + TIME_LIMIT
        while launcher.poll() is None:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            if complete_checkpoints(stage):
                fill(ballast)  # again and again: a save that fails makes room
            time.sleep(0.001)
        return launcher.returncode, log.read_text()
    finally:
        if launcher.poll() is None:
            kill_group(launcher)


def tensor_sums(stage: Path) -> dict[str, str]:
    """SHA-256 of every tensor file of the last checkpoint."""
    last = complete_checkpoints(stage)[-1]
    assert last.name == f"step_{STEPS}" and verify(last) == []
    return {name: facts["sha256"] for name, facts in read_json(last, CHECKSUMS).items() if name.endswith(".safetensors")}


@pytest.mark.root
def test_full_disk_leaves_what_was_saved_and_the_run_goes_on_once_there_is_room(folder, disk):
    words, stage, ballast = words_of(folder, disk), disk / "r/pretrain", disk / "ballast"
    code, text = run_and_fill(words, folder, stage, ballast)
    assert code == 1
    assert "No space left on device" in text and "checkpoint not written" in text, "training goes on without"
    assert "[pretrain] metrics.jsonl could not be written (No space left on device); training goes on without" in text
    assert f"step {STEPS}/{STEPS}" in text, "to its end"
    assert f"megagpt: {stage}/checkpoints: the last checkpoint could not be written; those before it are whole" in text
    whole = complete_checkpoints(stage)
    assert whole and [verify(path) for path in whole] == [[]] * len(whole)
    assert not list(stage.glob("checkpoints/*.tmp"))

    again = command(*words, cwd=folder)
    assert again.returncode == 1 and f"megagpt: {stage}: cannot be written to (No space left on device)" in again.stderr
    assert complete_checkpoints(stage) == whole and [verify(path) for path in whole] == [[]] * len(whole)

    ballast.unlink()
    resumed = finished(command(*words, cwd=folder))
    assert f"[pretrain] goes on after step {whole[-1].name.removeprefix('step_')}" in resumed.stdout
    finished(command(*words_of(folder, folder / "undisturbed"), cwd=folder))
    assert tensor_sums(stage) == tensor_sums(folder / "undisturbed/r/pretrain")
