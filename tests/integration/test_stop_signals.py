"""Signals to the launcher of a machine's ranks: every rank gets them, the launcher ends with the ranks' exit code, and nobody is left behind.

The ranks are little scripts: what is tested is the launcher, `megagpt.pipeline.ranks`.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from megagpt.runtime.distributed import free_port
from tests.helpers.tiny_run import ROOT, environment_of, kill_group, start

STOPS = """
from pathlib import Path
import os, sys, time
from megagpt.runtime.stop_request import listening, requested
if os.environ["RANK"] == "1":
    time.sleep(LATE)                       # still importing, as it were
with listening():
    Path("began" + os.environ["RANK"]).touch()
    for _ in range(600):
        if requested():
            sys.exit(75)
        time.sleep(0.05)
"""
FAILS = """
from pathlib import Path
import os, signal, sys, time
from megagpt.runtime.stop_request import listening
Path("began" + os.environ["RANK"]).write_text(str(os.getpid()))
if os.environ["RANK"] == "0":
    sys.exit(3)
with listening():
    for _ in range(600):
        time.sleep(0.1)                    # in a collective, as it were: deaf to SIGTERM
"""
NUM_RANKS = 3
GRACE_SECONDS = 2


REFUSED = """
import sys
from megagpt.cli.main import main
sys.exit(main(["sft", "--confg", "a.yaml"]))
"""


def launch(folder, script, grace=GRACE_SECONDS, **streams) -> subprocess.Popen:
    (folder / "rank.py").write_text(script)
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(NUM_RANKS))}).encode()).decode()
    words = ["--world_info", world, "--master_addr", "127.0.0.1", "--master_port", free_port(), "--log_level", "error", "--no_local_rank", "rank.py"]
    run = f"from megagpt.pipeline import ranks; ranks.GRACE_SECONDS = {grace}; ranks.main()"
    return start(sys.executable, "-c", run, *words, cwd=folder, **streams)


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.05)


def ended(process, seconds) -> int:
    try:
        return process.wait(seconds)
    finally:
        kill_group_if_any(process)


def kill_group_if_any(process) -> None:
    try:
        kill_group(process)
    except ProcessLookupError:
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_launcher_hands_signals_on_and_ends_with_75(tmp_path, number):
    """Rank 1 is not ready yet when the signal comes; it stops all the same, with 75."""
    process = launch(tmp_path, STOPS.replace("LATE", "2"))
    wait_for(tmp_path / "began0")
    assert not (tmp_path / "began1").exists()
    process.send_signal(number)
    assert ended(process, 30) == 75
    assert (tmp_path / "began1").exists()


def test_launcher_kills_ranks_that_wait_for_one_that_failed(tmp_path):
    """Together, some seconds later: DeepSpeed's own launcher would give 30 seconds to each of them."""
    process = launch(tmp_path, FAILS)
    wait_for(tmp_path / "began0")
    assert ended(process, 20) == 3
    pids = [int((tmp_path / f"began{rank}").read_text()) for rank in (1, 2)]
    assert not any(alive(pid) for pid in pids)


def test_launcher_ends_ranks_that_would_repeat_what_rank_0_said(tmp_path):
    with open(tmp_path / "errors", "w") as errors:
        process = launch(tmp_path, REFUSED, grace=60, stderr=errors)
        assert ended(process, 30) == 2, "long before the ranks other than 0 would speak, or be killed"
    assert [line for line in (tmp_path / "errors").read_text().splitlines() if line.startswith("megagpt: ")] == [
        "megagpt: sft: the following arguments are required: --config (try megagpt sft --help)"
    ]


def alive(pid: int) -> bool:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()[:1] not in ("", "Z")


# ---------------------------------------------------------------- Slurm

SRUN = """#!/usr/bin/env bash
echo "$MASTER_ADDR:$MASTER_PORT ${@: -2}" > srun.txt
trap 'sleep 1; exit CODE' USR1
touch began0
for _ in $(seq 100); do sleep 0.1; done
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo node-7; echo node-8; else echo "$@" > scontrol.txt; fi
"""


def slurm_job(tmp_path, code: int, **more) -> subprocess.Popen:
    """The script with stand-ins for Slurm's commands, once its `srun` runs."""
    for name, text in {"srun": SRUN.replace("CODE", str(code)), "scontrol": SCONTROL, "launch/setup.sh": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = environment_of(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_SUBMIT_DIR=tmp_path, SLURM_JOB_ID=12345, SLURM_JOB_NODELIST="node-[7-8]", **more)
    process = start("bash", ROOT / "launch/slurm.sbatch", "pretrain", "--dry-run", cwd=tmp_path, env=slurm)
    wait_for(tmp_path / "began0")
    return process


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False)])
def test_slurm_script_hands_the_signal_on_and_requeues_on_75(tmp_path, code, requeued):
    process = slurm_job(tmp_path, code)
    process.send_signal(signal.SIGUSR1)
    assert ended(process, 20) == code
    assert (tmp_path / "srun.txt").read_text() == "node-7:22345 pretrain --dry-run\n"
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 12345\n"


@pytest.mark.parametrize(("restarts", "last_words"), [("0", "pretrain --dry-run"), ("2", "--set run.resume=auto")])
def test_slurm_script_goes_on_when_the_job_comes_back_from_the_queue(tmp_path, restarts, last_words):
    process = slurm_job(tmp_path, code=0, SLURM_RESTART_COUNT=restarts)
    process.send_signal(signal.SIGUSR1)
    assert ended(process, 20) == 0
    assert (tmp_path / "srun.txt").read_text() == f"node-7:22345 {last_words}\n"
