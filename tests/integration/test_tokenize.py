"""`megagpt tokenizer` and `megagpt tokenize` as a user calls them: mixtures, a kill at any moment, memory that does not grow with the corpus."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow
import pytest
import yaml
from megatron.core.datasets.indexed_dataset import IndexedDataset
from pyarrow import parquet

from megagpt.cli.main import main
from tests.helpers.tiny_run import command, environment_of, finished, megagpt, start, toy_tokenizer

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
LANGUAGES = {"web": "en", "books": "ja"}
MEMORY_SLACK = 16 << 20
"""What ten times the documents may cost more, bytes: allocators keep some of what they had, and ten times more are 36 MB of text."""


def rows(count: int, characters: int = 2000) -> list[dict]:
    """Documents of prepared data, two sources in turn."""
    generator = random.Random(3)
    words = ["".join(generator.choices("abcdefgh", k=generator.randrange(2, 9))) for _ in range(500)]
    for number in range(count):
        source = "books" if number % 4 == 0 else "web"
        text = " ".join(generator.choices(words, k=characters // 6))
        meta = json.dumps({"language": LANGUAGES[source]})
        yield {"id": f"{source}/{number}", "text": text, "source": source, "url": "", "licence": "", "date": "", "meta": meta, "weight": 1.0}


def write_documents(path: Path, count: int, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows(count, **settings))), path, row_group_size=500)
    return path


def write_config(path: Path, **settings) -> Path:
    path.write_text(yaml.safe_dump({"run": {"name": "t"}} | settings))
    return path


def test_tokenize_from_prepared_documents_to_a_mixture(tmp_path):
    """Found below the run folder by a pattern; the report knows sources and languages; the table is shown and the base file written."""
    for part in range(2):
        write_documents(tmp_path / f"runs/t/prepare/documents/train-0000{part}.parquet", 40)
    documents = ["prepare/documents/train-*.parquet"]
    config = write_config(tmp_path / "tokenizer.yaml", documents=documents, vocab_size=400, kind="byte_bpe", sample_characters=50_000, source_weights={"books": 2.0})
    report = json.loads(finished(megagpt("tokenizer", "train", "--config", config, cwd=tmp_path)).stdout)
    assert report["by_language"].keys() == {"en", "ja"} and report["by_source"].keys() == {"web", "books"}
    assert 0.3 < report["by_source"]["books"]["bytes"] / report["bytes"] < 0.5, "a quarter of the documents, twice as likely"
    assert report["bytes"] <= 50_000 and report["round_trip_failures"] == 0 and report["vocab_size"] == 400
    assert "<img" in (tmp_path / "runs/t/tokenizer/report.html").read_text()

    config = write_config(tmp_path / "tokenize.yaml", inputs={"train": documents}, by_source=True, mixture={"weights": {"web": 1, "books": 1}}, workers=2)
    ended = finished(megagpt("tokenize", "--config", config, cwd=tmp_path))
    mixture = {row["source"]: row for row in json.loads(ended.stdout)["mixture"]}
    assert mixture["books"]["documents"] == 20 and mixture["web"]["documents"] == 60
    assert mixture["books"]["share"] == 0.5 and mixture["books"]["epochs"] == pytest.approx(2.0, rel=0.05)
    written = (tmp_path / "runs/t/tokenize/mixture.yaml").read_text()
    assert written in ended.stderr and yaml.safe_load(written)["data"]["train"][0] == {"path": "tokenize/train/books", "weight": 0.5}
    files = IndexedDataset(str(tmp_path / "runs/t/tokenize/train/web"))
    assert len(files) == 60 and files.index.sequence_lengths.sum() == mixture["web"]["tokens"]

    wrong = megagpt("tokenize", "--config", config, "--set", "by_source=false", cwd=tmp_path)
    assert wrong.returncode == 2 and "mixture with by_source = false" in wrong.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real data sets in {SHARED}")
def test_tokenizer_report_on_published_vocabularies(tmp_path, monkeypatch, capsys):
    """GPT-2's spells everything; the sentencepiece model says what it loses."""
    monkeypatch.chdir(tmp_path)
    documents = [str(SHARED / "pretrain_books"), str(SHARED / "pretrain_c4/c4_demo.jsonl.gz")]
    config = write_config(tmp_path / "tokenizer.yaml", documents=documents, vocab_size=400, sample_characters=300_000)
    report = {}
    for name in ("gpt2_encoder.json", "spm_test_model.model"):
        assert main(["tokenizer", "report", "--config", str(config), "--tokenizer", str(SHARED / "tokenizers" / name)]) == 0
        report[name] = json.loads(capsys.readouterr().out)
        assert (tmp_path / f"runs/t/tokenizer/report_{name}.html").exists()
    gpt2, other = report.values()
    assert gpt2["round_trip_failures"] == 0 < other["round_trip_failures"] and other["failure_examples"]
    assert gpt2["by_language"]["Latin script"]["bytes_per_token"] > 2.5 > gpt2["by_language"]["Hiragana script"]["bytes_per_token"]
    assert {"tinyshakespeare", "wagahaiwa_nekodearu_ja", "c4_demo"} <= gpt2["by_source"].keys()
    assert len(other["limits"]) > 8 > len(gpt2["limits"])


# ---------------------------------------------------------------- kill, memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenize").resolve()
    toy_tokenizer(folder / "tokenizer")
    write_documents(folder / "small.parquet", 200, characters=20_000)
    write_config(folder / "small.yaml", inputs={"train": ["small.parquet"], "valid": ["small.parquet"]}, by_source=True, workers=2)
    return folder


def token_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".bin", ".idx", ".json")}


IN_PROCESSES = """
import sys
from megagpt.cli.main import main
from megagpt.data import encoding
encoding.MOST_THREADS = 1
main(sys.argv[1:])
"""
"""Two workers as a machine of many cores would have them."""
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def test_tokenize_killed_at_any_moment_leaves_no_half_pair_and_no_process(folder):
    finished(megagpt("tokenize", "--config", "small.yaml", "--set", "run.name=whole", cwd=folder))
    whole = token_files(folder / "runs/whole/tokenize")
    assert len(whole) == 12
    output = folder / "runs/killed/tokenize"
    for waits_for in (".unfinished-train", ".unfinished-valid"):
        process = start(sys.executable, "-c", IN_PROCESSES, "tokenize", "--config", "small.yaml", "--set", "run.name=killed", cwd=folder, **QUIET)
        until(lambda: list(output.glob(f"{waits_for}/*.ids0")), "documents are written")  # noqa: B023
        until(lambda: len(psutil.Process(process.pid).children()) >= 2, "both workers run")  # noqa: B023
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.wait()
        for side in ("train", "valid"):
            left = token_files(output / side) if (output / side).exists() else {}
            assert left in ({}, {name.removeprefix(f"{side}/"): content for name, content in whole.items() if name.startswith(side)})
        until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family), "workers end with their parent")  # noqa: B023
    finished(megagpt("tokenize", "--config", "small.yaml", "--set", "run.name=killed", cwd=folder))
    assert token_files(output) == whole
    assert not list(output.glob(".unfinished*"))


def test_tokenize_on_a_full_disk_says_so_and_leaves_nothing(folder):
    """A limit on the size of files stands for the disk: write() fails in the same way."""
    limited = ["bash", "-c", 'ulimit -f 512; exec "$0" -m megagpt tokenize --config small.yaml --set run.name=full', sys.executable]
    ended = command(*limited, cwd=folder)
    output = folder / "runs/full/tokenize"
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "megagpt: runs/full/tokenize/train: File too large; nothing of train was kept")
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    assert not list(output.iterdir())


def until(condition, what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)


PEAK = """
import resource, sys
from pathlib import Path
from megagpt.config.schema import RunConfig, TokenizeConfig
from megagpt.data.token_files import tokenize_documents
from megagpt.tokenizer.tokenizer import load_tokenizer
config = TokenizeConfig(run=RunConfig(name="t"), inputs={"train": [sys.argv[1]]})
tokenize_documents(config, load_tokenizer("tokenizer"), sys.argv[2])
print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_tokenize_memory_does_not_grow_with_the_corpus(folder, tmp_path):
    large = tmp_path / "large"
    large.mkdir()
    for copy in range(10):
        os.link(folder / "small.parquet", large / f"{copy}.parquet")
    peaks = []
    for name, path in (("small", folder / "small.parquet"), ("large", large)):
        words = [sys.executable, "-c", PEAK, str(path), str(tmp_path / f"tokens_{name}")]
        peaks.append(int(subprocess.run(words, cwd=folder, env=environment_of(), capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < peaks[0] + MEMORY_SLACK
