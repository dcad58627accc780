"""Tasks of data preparation under every executor: all are done, once, and after a failure only those that are missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megagpt.config.prepare import ExecutorConfig, SlurmConfig
from megagpt.prepare.errors import PrepareError
from megagpt.prepare.executors import run_phases
from megagpt.prepare.phase import Phase
from megagpt.runtime.distributed import free_port
from megagpt.runtime.stop_request import Stopped, ending
from tests.helpers.prepare_tasks import Write, run

ROOT = Path(__file__).parents[2]


def results(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name.isdigit()}


def order(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "log").read_text().split()]


ALL = {str(task): f"{task} of 5" for task in range(5)}


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_prepare_executors_local(tmp_path, workers):
    run(tmp_path, "local", workers)
    assert results(tmp_path) == ALL and sorted(order(tmp_path)) == list(range(5))
    run(tmp_path, "local", workers)
    assert len(order(tmp_path)) == 5  # nothing is done again


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("fault", "message"), [("full", "write, task 1: [Errno 28] No space left on device"), ("error", "write, task 1: ValueError: a defect")]
)
def test_prepare_executors_go_on_after_a_failure(tmp_path, workers, fault, message):
    (tmp_path / "fault").touch()
    with pytest.raises(PrepareError) as raised:
        run(tmp_path, "local", workers, fault)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value) and "goes on from here" in str(raised.value)
    done = order(tmp_path)
    assert "1" not in results(tmp_path)
    (tmp_path / "fault").unlink()
    run(tmp_path, "local", workers, fault)
    assert results(tmp_path) == ALL and sorted(order(tmp_path)) == list(range(5)) and order(tmp_path)[: len(done)] == done


def test_prepare_executors_a_killed_worker_ends_the_run(tmp_path):
    (tmp_path / "fault").touch()
    with pytest.raises(PrepareError, match="was killed"):
        run(tmp_path, "local", 2, "kill")
    (tmp_path / "fault").unlink()
    run(tmp_path, "local", 2, "kill")
    assert results(tmp_path) == ALL


def command(folder: Path, kind: str, *words: object) -> list[str]:
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"] if kind == "mpi" else []
    return [*launcher, sys.executable, "-m", "tests.helpers.prepare_tasks", *map(str, (folder, kind, *words))]


needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed (group mpi)")


@pytest.mark.parametrize("kind", ["ray", pytest.param("mpi", marks=needs_mpirun)])
def test_prepare_executors_on_a_cluster(tmp_path, kind):
    """A task that fails ends the run; what others did stays, and another executor goes on. That all is done there too, the pipeline's tests show."""
    (tmp_path / "fault").touch()
    ended = subprocess.run(command(tmp_path, kind, "error"), cwd=ROOT, check=False, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "megagpt: write, task 1: ValueError: a defect" in ended.stderr and 'raise ValueError("a defect")' in ended.stderr
    (tmp_path / "fault").unlink()
    run(tmp_path, "local", 1)
    assert results(tmp_path) == ALL and sorted(order(tmp_path)) == list(range(5))


def test_prepare_executors_ray_gives_up_a_task_that_kills_its_worker(tmp_path):
    (tmp_path / "fault").touch()
    ended = subprocess.run(command(tmp_path, "ray", "kill"), cwd=ROOT, check=False, timeout=120, capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1].startswith("megagpt: write: the process of a task was killed")
    assert results(tmp_path) == {task: text for task, text in ALL.items() if task != "1"}


def test_prepare_executors_ray_names_an_address_where_nothing_answers(tmp_path):
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    ended = subprocess.run(command(tmp_path, "ray"), cwd=ROOT, check=False, timeout=120, capture_output=True, text=True, env=environment)
    assert ended.returncode == 1 and ended.stderr.startswith("megagpt: executor.kind ray: RAY_ADDRESS = 127.0.0.1:") and ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "workers", "sent", "code"),
    [
        ("local", 1, "SIGTERM", 75), ("local", 2, "SIGINT", 130), ("local", 2, "SIGKILL", -9), ("ray", 2, "SIGTERM", 75),
        pytest.param("mpi", 1, "SIGTERM", 75, marks=needs_mpirun),
    ],
)  # fmt: skip
def test_prepare_executors_a_signal_ends_all_processes_and_the_run_goes_on(tmp_path, kind, workers, sent, code):
    """In the middle of a task; SIGINT as a terminal sends it, to the whole group; under mpirun to one rank, while the other waits."""
    (tmp_path / "fault").touch()
    process = subprocess.Popen(
        command(tmp_path, kind, "wait", workers), cwd=ROOT, env={**os.environ, "STARTED_BY": str(tmp_path)}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for((tmp_path / "waits").exists)
        target = (tmp_path / "waits").read_text() if kind == "mpi" else process.pid
        (os.killpg if sent == "SIGINT" else os.kill)(int(target), getattr(signal, sent))
        _, said = process.communicate(timeout=30)
        assert process.returncode == code and "Traceback" not in said and said.count("megagpt: stopped") == (sent != "SIGKILL")
        wait_for(lambda: not started_by(tmp_path))
    finally:
        for left in started_by(tmp_path):
            left.kill()
    (tmp_path / "fault").unlink()
    run(tmp_path, "local", 1)
    assert results(tmp_path) == ALL


@pytest.mark.parametrize("fault", ["changed", "swallowed"])
def test_prepare_executors_a_stop_that_a_library_hides_is_still_one(tmp_path, fault):
    (tmp_path / "fault").touch()
    with pytest.raises(Stopped, match="^as asked$"), ending("as asked"):
        run(tmp_path, "local", 1, fault)
    assert {path.name for path in (tmp_path / "work/tasks/write/completions").iterdir()} == {"00000"}


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started_by(folder: Path) -> list[psutil.Process]:
    processes = psutil.process_iter(["environ"])  # of others' processes it is None
    return [process for process in processes if (process.info["environ"] or {}).get("STARTED_BY") == str(folder)]


SBATCH = """#!{python}
import json, os, pathlib, subprocess, sys
# Stands in for the scheduler: runs a script's array at once, in order, and says a job's number.
folder = pathlib.Path(os.environ["JOBS"])
script, arguments = sys.argv[-1], sys.argv[1:-1]
number = len(list(folder.iterdir()))
text = pathlib.Path(script).read_text()
(folder / str(number)).write_text(json.dumps(arguments) + "\\n" + text)
array = next((line.split("=")[1] for line in text.splitlines() if line.startswith("#SBATCH --array=")), "0-0")
last = int(array.split("%")[0].split("-")[1])
if "merge_stats" not in text:
    for place in range(last + 1):
        environment = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(place), "RUN_OFFSET": "0", "SLURM_NODELIST": "localhost"}}
        subprocess.run(["bash", script], env=environment, check=True, stdout=sys.stderr)
print("Submitted batch job", number)
"""


def test_prepare_executors_slurm(tmp_path, monkeypatch):
    """Job arrays as they would be submitted, run by a stand-in for sbatch and srun; the second phase depends on the first."""
    tools, jobs = tmp_path / "tools", tmp_path / "jobs"
    tools.mkdir()
    jobs.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(python=sys.executable))
    (tools / "srun").write_text('#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n')
    (tools / "scontrol").write_text("#!/bin/bash\necho localhost\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    slurm = SlurmConfig(partition="cpu", environment="true", sbatch={"account": "lab"})
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    phases = [Phase(name, 2, Write(tmp_path / name)) for name in ("first", "second")]
    assert not run_phases(phases, ExecutorConfig(kind="slurm", slurm=slurm), tmp_path / "work")
    assert results(tmp_path / "first") == results(tmp_path / "second") == {"0": "0 of 2", "1": "1 of 2"}
    submitted = [path.read_text() for path in sorted(jobs.iterdir()) if "merge_stats" not in path.read_text()]
    assert len(submitted) == 2 and all("#SBATCH --account=lab" in text and "#SBATCH --array=0-1" in text for text in submitted)
    assert '"--dependency=afterok:' in submitted[1]
