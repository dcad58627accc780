"""The same two steps of pre-training on two ranks, started in every way that the README names: the same losses."""

from __future__ import annotations

import json
import socket

import pytest
import yaml

from megagpt.config.load import ConfigError
from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from megagpt.pipeline.launch import launch_command, read_hosts
from megagpt.runtime.distributed import free_port
from tests.helpers.tiny_run import ROOT, command, documents, finished, toy_tokenizer, write_rows
from tests.helpers.tolerance import PARITY_RELATIVE

CONFIG = {
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_sequence_length": 32},
    "parallel": {"tensor_parallel_size": 2},
    "optimizer": {"lr": 1e-2},
    "batch": {"micro_batch_size": 2, "global_batch_size": 4},
    "data": {"train": "tokens/train", "valid": "tokens/train"},
    "sequence_length": 32,
    "train_tokens": 2 * 4 * 32,
    "eval_rows": 4,
}
LAUNCHERS = {
    "deepspeed": ["deepspeed", "--log_level", "error", "--num_accelerators", 2, "--master_port", "PORT", "--module", "megagpt"],  # says --local_rank=N
    "torchrun": ["torchrun", "--nproc-per-node", 2, "--master-port", "PORT", "-m", "megagpt"],
    "mpirun": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", 2, "python", "-m", "megagpt"],
    "run.sh": ["bash", ROOT / "launch/run.sh"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    tokenizer = toy_tokenizer(folder / "runs/toy/tokenizer")
    inputs = {"train": [write_rows(folder / "documents.jsonl", documents(20))]}
    tokenize_documents(TokenizeConfig(run=RunConfig(name="toy"), inputs=inputs), tokenizer, folder / "runs/toy/tokens")
    (folder / "pretrain.yaml").write_text(yaml.safe_dump({"run": {"name": "toy", "root": str(folder / "runs"), "device": "cpu", "resume": "never"}} | CONFIG))
    (folder / "hosts").write_text("# this machine alone\nlocalhost slots=2\n")
    return folder


def losses(folder, launcher: str) -> list[float]:
    """Of each evaluation and step."""
    words = [str(word).replace("PORT", str(free_port())) for word in LAUNCHERS[launcher]]
    rest = ["--hostfile", folder / "hosts"] if launcher == "run.sh" else []
    finished(command(*words, "pretrain", "--config", folder / "pretrain.yaml", *rest, cwd=folder))
    rows = [json.loads(line) for line in (folder / "runs/toy/pretrain/metrics.jsonl").read_text().splitlines()]
    return [row.get("loss", row.get("eval_loss")) for row in rows]


@pytest.fixture(scope="module")
def expected(folder):
    found = losses(folder, "deepspeed")
    assert len(found) == 4 and found[-1] < found[0]
    return found


@pytest.mark.parametrize("launcher", list(LAUNCHERS)[1:])
def test_launcher_gives_the_losses_of_the_others(folder, expected, launcher):
    assert losses(folder, launcher) == pytest.approx(expected, rel=PARITY_RELATIVE)


def test_launcher_says_which_port_is_taken(folder):
    """Rank 0 says it in one line, and the launcher ends the others."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [str(word).replace("PORT", str(port)) for word in LAUNCHERS["deepspeed"]]
        result = command(*words, "pretrain", "--config", folder / "pretrain.yaml", cwd=folder)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if "megagpt: " in line and f"MASTER_PORT {port}" in line]
    assert "Traceback" not in result.stderr


# ---------------------------------------------------------------- hostfiles


def test_launcher_reads_hostfiles(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# two machines\nnode-1 slots=8   # the first\n\nnode-2 slots=8\n")
    assert read_hosts(hosts) == {"node-1": 8, "node-2": 8}
    words = launch_command(["pretrain"], 1, hosts)
    assert words[-2:] == ["megagpt", "pretrain"] and words[2:5] == ["deepspeed.launcher.runner", "--hostfile", str(hosts)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"hosts: cannot read the hostfile \(No such file or directory\)"),
        ("", "hosts: the hostfile names no host"),
        ("node-1\n", "hosts:1: 'node-1': expected `HOST slots=N`"),
        ("node-1 slots=2\nnode-2 slots=none\n", "hosts:2: 'node-2 slots=none': expected `HOST slots=N`"),
    ],
)
def test_launcher_refuses_hostfiles(tmp_path, text, message):
    if text is not None:
        (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError, match=message):
        launch_command(["pretrain"], 1, tmp_path / "hosts")
