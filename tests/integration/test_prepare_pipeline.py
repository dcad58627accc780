"""Data preparation as a whole: every phase, every executor, the same bytes whatever runs it and wherever it was killed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pyarrow import parquet

from megagpt.cli.main import main
from megagpt.config.load import load_config
from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.run import all_phases, run_prepare
from megagpt.prepare.shards import plan_shards
from tests.helpers.prepare_corpus import config_of, make_corpus, write_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


def digests(root: Path) -> dict[str, str]:
    """Of every file of the result."""
    folder = root / "corpus" / "prepare"
    files = [*folder.glob("documents/*"), *folder.glob("ledger/*"), folder / "problems.parquet", folder / "statistics.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def prepared(corpus: Path, root: Path, **changes) -> dict[str, str]:
    """Run it in this process; digests of what came out."""
    root.mkdir()
    config = load_config(PrepareConfig, write_config(root / "prepare.yaml", config_of(corpus, root, **changes)))
    run_prepare(config, root / "corpus" / "prepare")
    return digests(root)


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("expected") / "run"
    found = prepared(corpus, root, executor={"workers": 1})
    return root, found


def ledger_of(root: Path) -> list[dict]:
    return [row for path in sorted((root / "corpus/prepare/ledger").glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def documents_of(root: Path) -> list[dict]:
    return [row for path in sorted((root / "corpus/prepare/documents").glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def test_prepare_ledger_accounts_for_every_document(expected):
    root, _ = expected
    ledger, documents = ledger_of(root), documents_of(root)
    assert len({row["id"] for row in ledger}) == len(ledger) == 60 + 20 + 1 + 2 + 4  # articles, special ones, mojibake, books, files of code
    assert {row["id"] for row in ledger if row["kept"]} == {row["id"] for row in documents}
    assert all((row["reason"] is None) == row["kept"] for row in ledger)
    reasons = [row["reason"] for row in ledger if not row["kept"]]
    assert reasons.count("duplicate_document") == 5 and reasons.count("near_duplicate") == 5
    statistics = json.loads((root / "corpus/prepare/statistics.json").read_text())
    assert sum(source["seen"] for source in statistics["sources"].values()) == len(ledger)
    assert {f"documents/{name}": facts["sha256"] for name, facts in statistics["files"].items()} == {
        name: digest for name, digest in expected[1].items() if name.startswith("documents/")
    }
    assert statistics["sources"]["articles"]["problems"] == 2  # a line that breaks, a row without text


def test_prepare_redacts_personal_data_in_documents_and_excerpts(expected):
    root, _ = expected
    whole = json.dumps([documents_of(root), ledger_of(root)])
    assert "@mail.example.com" not in whole and whole.count("<EMAIL>") >= 5


def test_prepare_of_duplicates_one_is_kept(expected):
    ledger = ledger_of(expected[0])
    clusters = {}
    for row in ledger:
        clusters.setdefault(row["cluster"], []).append(row)
    clusters.pop(None)
    assert len(clusters) == 10
    for rows in clusters.values():
        kept = [row["id"] for row in rows if row["kept"]]
        assert len(rows) == 2 and len(kept) == 1
        assert all(row["kept_instead"] == kept[0] for row in rows if not row["kept"])


@pytest.mark.parametrize("workers", [2, 4])
def test_prepare_is_the_same_with_any_number_of_workers(corpus, expected, tmp_path, workers):
    assert prepared(corpus, tmp_path / "run", executor={"workers": workers}) == expected[1]


@pytest.mark.parametrize("kind", ["ray", "mpi"])
def test_prepare_is_the_same_under_every_executor(corpus, expected, tmp_path, kind):
    path = write_config(tmp_path / "prepare.yaml", config_of(corpus, tmp_path, executor={"kind": kind}))
    launcher = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"] if kind == "mpi" else []
    subprocess.run([*launcher, sys.executable, "-m", "megagpt", "data", "run", "--config", path], cwd=ROOT, check=True, timeout=300)
    assert digests(tmp_path) == expected[1]


def test_prepare_goes_on_after_a_kill_in_each_phase(corpus, expected, tmp_path):
    """Killed or stopped as soon as each phase has begun, one after the other; the last run ends it."""
    path = write_config(tmp_path / "prepare.yaml", config_of(corpus, tmp_path, executor={"workers": 2}))
    config = load_config(PrepareConfig, path)
    phases = all_phases(config, tmp_path / "corpus" / "prepare", [shard["bytes"] for shard in plan_shards(config)["shards"]])
    tasks, killed = tmp_path / "corpus/prepare/work/tasks", []
    for phase, number in zip(phases, itertools.cycle((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)), strict=False):
        process = subprocess.Popen([sys.executable, "-m", "megagpt", "data", "run", "--config", path], cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and not (tasks / phase.name).exists():
            assert time.monotonic() < deadline, f"{phase.name} never began"
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, number)
            killed.append(phase.name)
        process.wait(30)
    assert len(killed) >= len(phases) - 1  # the last one may be too quick
    assert main(["data", "run", "--config", str(path)]) == 0
    assert digests(tmp_path) == expected[1]
    assert not (tmp_path / "corpus/prepare/work").exists()


@pytest.mark.root
def test_prepare_a_full_disk_stops_it_and_room_lets_it_go_on(corpus, expected, tmp_path, capsys):
    root = tmp_path / "disk"
    root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", root], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"root, but not permitted to mount: {mounted.stderr.strip()}")
    try:
        path = write_config(tmp_path / "prepare.yaml", config_of(corpus, root, executor={"workers": 1}))
        assert main(["data", "run", "--config", str(path)]) == 1
        told = capsys.readouterr().err
        assert "No space left on device" in told and "goes on from here" in told and "Traceback" not in told
        subprocess.run(["mount", "-o", "remount,size=64m", root], check=True)
        assert main(["data", "run", "--config", str(path)]) == 0
        assert digests(root) == expected[1]
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def test_prepare_finished_is_not_done_again_and_a_change_starts_anew(corpus, tmp_path, capsys):
    path = write_config(tmp_path / "prepare.yaml", config_of(corpus, tmp_path, executor={"workers": 1}))
    assert main(["data", "run", "--config", str(path)]) == 0
    documents = tmp_path / "corpus/prepare/documents"
    before = {file: file.stat().st_mtime_ns for file in documents.iterdir()}
    assert main(["data", "run", "--config", str(path)]) == 0
    assert {file: file.stat().st_mtime_ns for file in documents.iterdir()} == before
    assert main(["data", "run", "--config", str(path), "--set", "valid_fraction=0.5"]) == 0
    assert {file: file.stat().st_mtime_ns for file in documents.iterdir()} != before


def test_prepare_why_and_report(expected, capsys):
    root, _ = expected
    dropped = next(row for row in ledger_of(root) if row["reason"] == "near_duplicate")
    assert main(["data", "why", dropped["id"], "--run", str(root / "corpus")]) == 0
    told = capsys.readouterr().out
    assert "near_duplicate" in told and dropped["kept_instead"] in told
    assert main(["data", "why", dropped["id"] + "x", "--run", str(root / "corpus")]) == 2
    assert dropped["id"] in capsys.readouterr().err
    assert main(["data", "report", "--run", str(root / "corpus")]) == 0
    page = (root / "corpus/prepare/data.html").read_text()
    assert "near_duplicate" in page and "EMAIL" in page and "@mail.example.com" not in page and page.count("data:image/png") >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": [{"name": "a", "kind": "rows", "files": ["nowhere/*.jsonl"]}]}, "nowhere/*.jsonl"),
        ({"executor": {"kind": "slurm"}}, "executor.slurm is missing"),
        ({"sources": [{"name": "a", "kind": "rows", "files": ["x"]}] * 2}, "two are named 'a'"),
    ],
)
def test_prepare_bad_configuration_is_one_line(corpus, tmp_path, capsys, change, message):
    path = tmp_path / "prepare.yaml"
    path.write_text(yaml.safe_dump(config_of(corpus, tmp_path) | change))
    assert main(["data", "run", "--config", str(path)]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


@pytest.mark.slow
def test_prepare_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak of the one process that does everything, on a corpus and on one ten times as large."""
    peaks = {}
    for num_articles in (2_000, 20_000):
        folder = tmp_path / str(num_articles)
        make_corpus(folder, num_articles=num_articles)
        changes = {"executor": {"workers": 1, "memory_gib": 0.25}, "shard_mib": 1.0, "run": {"name": "corpus", "root": str(folder)}}
        path = write_config(tmp_path / f"{num_articles}.yaml", config_of(folder, folder, **changes))
        command = [sys.executable, "-c", PEAK, sys.executable, "-m", "megagpt", "data", "run", "--config", str(path)]
        peaks[num_articles] = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1024
    print(f"peak MiB: {peaks}")
    assert peaks[20_000] < 1.15 * peaks[2_000]


def test_prepare_is_a_stage_of_a_chain(corpus, tmp_path, capsys):
    """Raw files to token files by one command, which skips what is done and begins again where an input changed."""
    run = {"name": "corpus", "root": str(tmp_path)}
    files = {
        "prepare": config_of(corpus, tmp_path, executor={"workers": 1}),
        "tokenizer": {"documents": ["prepare/documents/train-*.parquet"], "vocab_size": 400},
        "tokenize": {"inputs": {"train": ["prepare/documents/train-*.parquet"]}, "by_source": True},
    }
    for stage, config in files.items():
        write_config(tmp_path / f"{stage}.yaml", {"run": run, **config})
    path = write_config(tmp_path / "chain.yaml", {"run": run, "steps": [{"stage": stage, "config": f"{stage}.yaml"} for stage in files]})
    assert main(["run", "--config", str(path)]) == 0
    assert (tmp_path / "corpus/tokenize/train/articles.bin").stat().st_size > 0
    capsys.readouterr()
    assert main(["run", "--config", str(path)]) == 0
    assert capsys.readouterr().out.count("finished before, skipped") == 3
    assert main(["run", "--config", str(path), "--dry-run", "--stage-set", "prepare.valid_fraction=0.5"]) == 0
    assert "data run --config" in capsys.readouterr().out
