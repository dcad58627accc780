"""Speed of data preparation, side by side: megagpt's first phase and datatrove's own blocks on the same documents, on one core and on two.

    python tests/bench/data.py [--rounds 2] [--documents 5000]      (inside .venv; needs ../shared/data; about 10 minutes)

Both read JSONL, repair encodings (ftfy), identify the language (fastText), apply Gopher's quality and repetition rules, C4's and FineWeb's, write
what is left as parquet and its MinHash signatures (16 x 7 hashes of 5 words). datatrove, in an environment of its own, `.venv-bench`, runs twice:
as it comes, with spaCy's words; and with our word splitter, which is the harder peer. Every contender runs once in each round, and
ratios are medians over the rounds. Starting processes and loading models, as long as a run over two documents, is taken off. The last line is one
JSON object, with the figures of tokens.py beside ours. README.md says what they mean.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata  # noqa: F401  datatrove uses it without importing it
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pretrain import PEERS, ROOT, install_peers

SHARED = ROOT.parent / "shared" / "data"
MODEL = SHARED / "model_lid176" / "lid.176.ftz"
SHINGLE_WORDS, BUCKETS, HASHES = 5, 16, 7
CONTENDERS = {"datatrove": PEERS / "bin/python", "datatrove_same_words": PEERS / "bin/python", "megagpt": Path(sys.executable)}
PACKAGES = ("spacy==", "datatrove==", "ftfy==", "fasttext-numpy2-wheel==", "fasteners==", "orjson==", "xxhash==", "pyarrow==")


# ---------------------------------------------------------------- what both read


def write_documents(folder: Path, number: int) -> int:
    """`number` documents in two files of JSONL, and one in each of two more for warming up; characters in all.

    C4 pages, Wikipedia articles and news, each again and again with its sentences in another order and a number in front, so that no cache knows
    them and n-grams are as they were.
    """
    texts = [json.loads(line)["text"] for line in gzip.open(SHARED / "pretrain_c4" / "c4_demo.jsonl.gz", "rt", encoding="utf-8")]
    texts += gzip.open(SHARED / "pretrain_wiki" / "wiki_demo.txt.gz", "rt", encoding="utf-8").read().splitlines()
    texts += (SHARED / "pretrain_news" / "lee_background.cor").read_text(encoding="utf-8", errors="replace").splitlines()
    texts = [text for text in texts if text.strip()]
    generator, rows = random.Random(0), []
    for place in range(number):
        round_, text = place // len(texts), texts[place % len(texts)]
        lines = [re.split(r"(?<=[.!?]) ", line) for line in text.split("\n")]
        for sentences in lines:
            if round_:
                generator.shuffle(sentences)
        rows.append({"id": str(place), "text": f"Number {place}: " + "\n".join(" ".join(sentences) for sentences in lines)})
    for name, part in {"documents": rows, "warm": rows[:2]}.items():
        (folder / name).mkdir()
        for half in range(2):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part[half::2])
            (folder / name / f"{half}.jsonl").write_text("".join(lines), encoding="utf-8")
    return sum(len(row["text"]) for row in rows)


# ---------------------------------------------------------------- the contenders, each in processes of its own


def run_datatrove(folder: Path, out: Path, workers: int, same_words: bool) -> None:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter
    from fasttext.FastText import _FastText

    class Model:
        """lid.176.ftz from its path, loaded when a task first asks: datatrove would download lid.176.bin."""

        def __init__(self) -> None:
            self.model = None

        def predict(self, document):
            self.model = self.model or _FastText(str(MODEL))
            labels, scores = self.model.predict(document.text.replace("\n", " "), k=-1)
            pairs = {label.split("__")[2]: score.item() for label, score in zip(labels, scores, strict=True)}
            return max(pairs.items(), key=lambda pair: pair[1]), {"en": pairs.get("en", 0.0)}

    words = {}
    if same_words:
        from megagpt.prepare.words import SPLITTER

        words = {"language": SPLITTER}
    hashes = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=BUCKETS, hashes_per_bucket=HASHES)
    signatures = MinhashDedupSignature(str(out / "signatures"), hashes, **words)
    signatures._hash_func = hash_text
    language = LanguageFilter(["en"])
    language.model = Model()
    pipeline = [
        JsonlReader(str(folder)), FTFYFormatter(), language, GopherQualityFilter(**words), GopherRepetitionFilter(**words), C4QualityFilter(**words),
        FineWebQualityFilter(**words), ParquetWriter(str(out / "documents")), signatures,
    ]  # fmt: skip
    LocalPipelineExecutor(pipeline, tasks=2, workers=workers, logging_dir=str(out / "logs")).run()


def hash_text(text: str) -> int:
    """datatrove's 64-bit hash: it hands xxhash strings, which xxhash 4 refuses."""
    from xxhash import xxh64_intdigest

    return xxh64_intdigest(text.encode())


def run_megagpt(folder: Path, out: Path, workers: int) -> None:
    from megagpt.config.prepare import (
        ExecutorConfig, HeuristicsConfig, LanguageConfig, NearDuplicatesConfig, PrepareConfig, RunConfig, SourceConfig, StepsConfig,
    )  # fmt: skip
    from megagpt.prepare.clean import clean_phase
    from megagpt.prepare.executors import run_phases
    from megagpt.prepare.shards import plan_shards, write_plan

    config = PrepareConfig(
        run=RunConfig(name="bench", root=str(out)), sources=[SourceConfig(name="bench", kind="rows", files=[str(folder)])], shard_mib=1e-6,
        steps=StepsConfig(
            language=LanguageConfig(model=str(MODEL)), heuristics=HeuristicsConfig(rows=["gopher_quality", "gopher_repetition", "c4", "fineweb"]),
            near_duplicates=NearDuplicatesConfig(shingle_words=SHINGLE_WORDS, buckets=BUCKETS, hashes=HASHES),
        ), executor=ExecutorConfig(workers=workers),
    )  # fmt: skip
    plan = plan_shards(config)
    write_plan(out / "work", plan)
    run_phases([clean_phase(config, out / "work", [shard["bytes"] for shard in plan["shards"]])], config.executor, out / "work")


def count_kept(out: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in [*out.glob("documents/*.parquet"), *out.glob("work/clean/*.parquet")])


def work(options: argparse.Namespace) -> None:
    """One contender: prints its seconds for all documents without those for two, these alone, how many are kept, and a single worker's CPU time."""
    seconds, cpu = {}, {}
    for number, name in enumerate(("warm", "warm", "documents")):  # the first imports what a single worker needs
        out = options.folder / f"out_{options.worker}_{options.workers}_{options.round}_{number}"
        began, cpu_began = time.perf_counter(), time.process_time()
        if options.worker == "megagpt":
            run_megagpt(options.folder / name, out, options.workers)
        else:
            run_datatrove(options.folder / name, out, options.workers, options.worker == "datatrove_same_words")
        seconds[name], cpu[name] = time.perf_counter() - began, time.process_time() - cpu_began
    seconds, cpu, start = seconds["documents"] - seconds["warm"], cpu["documents"] - cpu["warm"], seconds["warm"]
    found = {"seconds": seconds, "start": start, "cpu": cpu, "kept": count_kept(out)}
    print("RESULT " + json.dumps(found), flush=True)


# ---------------------------------------------------------------- the comparison


def measure(rounds: int, number: int) -> dict[str, float]:
    """Ratios of documents/s by workers and peer; the smallest is `docs_per_s_ratio`. `cpu_ratio` is of documents per second of CPU time with one
    worker and the same words: a busy machine disturbs it less."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        characters = write_documents(Path(name), number)
        print(f"{number} documents, {characters / number:.0f} characters each", flush=True)
        for round_ in range(1, rounds + 1):
            for workers in (1, 2):
                for contender, python in CONTENDERS.items():
                    result = run(python, "--worker", contender, "--folder", name, "--workers", str(workers), "--round", str(round_))
                    found.setdefault((contender, workers), []).append(result)
                    print(
                        f"round {round_}/{rounds}  {workers} workers  {contender:<21} {number / result['seconds']:6.0f} documents/s"
                        f" {characters / result['seconds'] / 1e6:6.2f} million characters/s  start {result['start']:4.1f} s  keeps {result['kept']}",
                        flush=True,
                    )  # fmt: skip

    def ratio(peer: str, workers: int, of: str = "seconds") -> float:
        pairs = zip(found[peer, workers], found["megagpt", workers], strict=True)
        return round(statistics.median(theirs[of] / ours[of] for theirs, ours in pairs), 2)

    figures = {f"{peer}_{workers}_ratio": ratio(peer, workers) for workers in (1, 2) for peer in ("datatrove", "datatrove_same_words")}
    return {"docs_per_s_ratio": min(figures.values()), **figures, "cpu_ratio": ratio("datatrove_same_words", 1, of="cpu")}


def run(python: Path, *words: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([str(python), __file__, *words], env=environment, capture_output=True, text=True, timeout=1800, cwd=ROOT)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--worker", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    if not SHARED.is_dir():
        raise SystemExit(f"needs the real data sets in {SHARED}")
    install_peers(*PACKAGES)
    figures = measure(options.rounds, options.documents)
    if (Path(__file__).parent / "tokens.py").exists():
        from tokens import measure as measure_tokens

        figures |= measure_tokens()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
